//! Names of connections and sessions: serial numbers that are never used twice.
//!
//! A number that is never reused cannot reach the wrong thing: an event or an answer for something
//! that has ended finds nothing, and says so by finding nothing.

use std::fmt;

/// One accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// One command. The number is also the session's name on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

/// Hands out the numbers.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Serials {
    connection: u64,
    session: u64,
}

impl ConnectionId {
    /// The name with this number.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl SessionId {
    /// The name with this number.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number.
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
    /// A name that no connection has had. At a million a second the numbers last half a million
    /// years.
    pub(crate) fn next_connection(&mut self) -> ConnectionId {
        self.connection += 1;
        ConnectionId(self.connection)
    }

    /// A name that no session has had.
    pub(crate) fn next_session(&mut self) -> SessionId {
        self.session += 1;
        SessionId(self.session)
    }
}
