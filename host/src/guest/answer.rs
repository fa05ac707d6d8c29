//! The result of a request to a guest: its answer, or why none came and what that means for the
//! command.

use std::fmt;
use std::io;

use shared::exchange::{Attempt, ExchangeError};
use shared::message::{Fail, Hello};

use super::connection::{Connection, ConnectionError};
use crate::error::Failure;
use crate::exit::Exit;

/// One attempt that has ended, for records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttemptLog {
    /// When it began, and how it ended.
    pub(crate) attempt: Attempt,
    /// The system's error for its connection, if there was one.
    pub(crate) cause: Option<String>,
}

/// A request that was answered.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// The content of the completion frame.
    pub(crate) content: T,
    pub(crate) hello: Hello,
    pub(crate) attempts: u32,
    /// The first attempts, at most `ATTEMPTS_KEPT_MAX`.
    pub(crate) log: Vec<AttemptLog>,
    /// The connection that carried the completion frame, still open. Only QUIESCE needs it.
    pub(crate) connection: Connection,
}

/// A request that was not answered, or was refused.
#[derive(Debug)]
pub(crate) struct AskError {
    /// The guest's address, for messages.
    pub(crate) endpoint: Box<str>,
    pub(crate) attempts: u32,
    /// The first attempts that have ended, at most `ATTEMPTS_KEPT_MAX`.
    pub(crate) log: Box<[AttemptLog]>,
    pub(crate) reason: AskErrorReason,
    /// Why the latest connection failed, which explains a deadline.
    pub(crate) last: Option<io::Error>,
}

/// Why a request was not answered, or who refused it.
#[derive(Debug)]
pub(crate) enum AskErrorReason {
    /// The exchange ended without its completion frame.
    Exchange(ExchangeError),
    VmmEnded,
    /// The guest cannot be reached, and another try would fail the same way.
    Connection(ConnectionError),
    /// A system call of this program failed.
    Local(io::Error),
}

impl AskError {
    /// The FAIL frame of a guest that refused.
    pub(crate) const fn refusal(&self) -> Option<&Fail> {
        match &self.reason {
            AskErrorReason::Exchange(ExchangeError::Refused { fail, .. }) => Some(fail),
            AskErrorReason::Exchange(_)
            | AskErrorReason::VmmEnded
            | AskErrorReason::Connection(_)
            | AskErrorReason::Local(_) => None,
        }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            AskErrorReason::Exchange(error) => error.fmt(f)?,
            AskErrorReason::VmmEnded => f.write_str("the VMM ended before the guest answered")?,
            AskErrorReason::Connection(error) => write!(f, "{}: {error}", self.endpoint)?,
            AskErrorReason::Local(error) => error.fmt(f)?,
        }
        if matches!(
            self.reason,
            AskErrorReason::Exchange(ExchangeError::Deadline { .. })
        ) {
            write!(f, "; tried {}", self.endpoint)?;
            if let Some(last) = &self.last {
                write!(f, ": {last}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            AskErrorReason::Connection(error) => std::error::Error::source(error),
            AskErrorReason::Exchange(_) | AskErrorReason::VmmEnded | AskErrorReason::Local(_) => {
                None
            }
        }
    }
}

/// The exit code and text of a request that failed.
pub(crate) const fn exit_of(error: &AskError) -> Exit {
    match &error.reason {
        AskErrorReason::Exchange(ExchangeError::Deadline { .. }) => Exit::Deadline,
        AskErrorReason::Exchange(
            ExchangeError::Refused { .. }
            | ExchangeError::Version(_)
            | ExchangeError::Protocol { .. },
        ) => Exit::Guest,
        AskErrorReason::VmmEnded => Exit::VmmEnded,
        AskErrorReason::Connection(_) | AskErrorReason::Local(_) => Exit::Internal,
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::new(exit_of(&error), error)
    }
}
