//! Ids of connections and sessions: serial numbers that are never reused.
//!
//! A late event or answer for a connection or session that has ended therefore finds nothing, and
//! cannot reach a later one.

use std::fmt;

/// An accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// A session. Its number is also its name on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Serials {
    connection: u64,
    session: u64,
}

impl ConnectionId {
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub const fn number(self) -> u64 {
        self.0
    }
}

impl SessionId {
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.0)
    }
}

impl Serials {
    /// At a million a second the numbers last half a million years.
    pub(crate) fn next_connection(&mut self) -> ConnectionId {
        self.connection += 1;
        ConnectionId(self.connection)
    }

    pub(crate) fn next_session(&mut self) -> SessionId {
        self.session += 1;
        SessionId(self.session)
    }

    /// The highest number of a session so far.
    pub(crate) fn sessions_begun(&self) -> u64 {
        self.session
    }
}
