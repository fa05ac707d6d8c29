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
    /// When it was made, and how it ended.
    pub(crate) attempt: Attempt,
    /// What ended its connection, where the system said that.
    pub(crate) cause: Option<String>,
}

/// What came of a request that was met.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// What the completion frame says.
    pub(crate) content: T,
    pub(crate) hello: Hello,
    pub(crate) attempts: u32,
    /// The first of them, at most `ATTEMPTS_KEPT_MAX`.
    pub(crate) log: Vec<AttemptLog>,
    /// The connection that carried the completion frame, still open. Only QUIESCE needs it.
    pub(crate) connection: Connection,
}

/// A request that was not met.
#[derive(Debug)]
pub(crate) struct AskError {
    /// Who was asked, for people.
    pub(crate) endpoint: Box<str>,
    pub(crate) attempts: u32,
    /// The first of them that have ended, at most `ATTEMPTS_KEPT_MAX`.
    pub(crate) log: Box<[AttemptLog]>,
    pub(crate) reason: AskErrorReason,
    /// The latest connection that could not be made, or ended, which explains a deadline.
    pub(crate) last: Option<io::Error>,
}

/// Why a request was not met.
#[derive(Debug)]
pub(crate) enum AskErrorReason {
    /// The conversation failed.
    Exchange(ExchangeError),
    VmmEnded,
    /// The conversation could not be had, and another try would give the same.
    Connection(ConnectionError),
    /// This machine failed.
    Local(io::Error),
}

impl AskError {
    /// The guest's own no, if it was that.
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
            AskErrorReason::Connection(error) => error.fmt(f)?,
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

/// What it means when a request to a guest is not met.
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
