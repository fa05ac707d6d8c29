//! What can go wrong with a command in a guest, and how much is then known about it.

use std::fmt;
use std::io;

use shared::message::{Fail, FailCode, SeverReason};

use super::connection::ConnectionError;
use super::exec_stream::ExecStreamError;
use crate::exit::Exit;
use crate::values::printable;

/// How much is known about the command when its fate is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The request never left: the command did not run.
    NotRun,
    /// The request left and was not answered.
    Unknown,
    /// The command was started, and may still run.
    Started,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRun => "the command did not run",
            Self::Unknown => "whether the command ran is unknown",
            Self::Started => "the command was started; how it ended is unknown",
        })
    }
}

/// Why there is no exit status.
#[derive(Debug)]
pub enum ExecError {
    /// The guest refused the request; the command did not run.
    Refused(Fail),
    /// The guest broke the protocol.
    Protocol(ExecStreamError, Fate),
    /// There was no connection, or it ended.
    Connection(ConnectionError, Fate),
    /// The guest cut the connection on purpose.
    Severed(SeverReason, Fate),
    /// The deadline passed.
    Deadline(Fate),
    /// Output went to an earlier connection and could not be had from there.
    Missed {
        /// Bytes of both streams.
        count: u64,
    },
    /// Output could not be written where it belongs.
    Output(io::Error),
    /// This machine failed.
    Local(io::Error),
}

impl ExecError {
    /// What the error means for the exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(fail) => match fail.code {
                FailCode::NotFound => Exit::NotFound,
                FailCode::NotRunnable => Exit::NotRunnable,
                FailCode::Version
                | FailCode::Protocol
                | FailCode::NoSession
                | FailCode::Stale
                | FailCode::Superseded
                | FailCode::Refusing
                | FailCode::Limit
                | FailCode::Rebind
                | FailCode::Probe
                | FailCode::Unsupported
                | FailCode::Internal => Exit::Guest,
            },
            Self::Deadline(_) => Exit::Deadline,
            Self::Connection(ConnectionError::VmmEnded, _) => Exit::VmmEnded,
            Self::Protocol(..) | Self::Connection(..) | Self::Severed(..) | Self::Missed { .. } => {
                Exit::Guest
            }
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::OutputClosed,
            Self::Output(_) | Self::Local(_) => Exit::Defect,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(fail) => match fail.code {
                FailCode::NotFound | FailCode::NotRunnable => f.write_str(&printable(&fail.text)),
                code => write!(
                    f,
                    "the guest refused to run the command ({code}): {}",
                    printable(&fail.text)
                ),
            },
            Self::Protocol(error, fate) => write!(f, "{error}; {fate}"),
            Self::Connection(ConnectionError::Closed { source }, fate) => {
                write!(f, "the connection to the guest ended ({source}); {fate}")
            }
            Self::Connection(error, fate) => write!(f, "{error}; {fate}"),
            Self::Severed(SeverReason::Quiesce, fate) => {
                write!(
                    f,
                    "the guest cut the connection for a snapshot of it; {fate}"
                )
            }
            Self::Severed(SeverReason::Rebind, fate) => {
                write!(
                    f,
                    "the guest cut the connection because it got a new name; {fate}"
                )
            }
            Self::Severed(SeverReason::Shutdown, fate) => {
                write!(
                    f,
                    "the guest cut the connection because it shuts down; {fate}"
                )
            }
            Self::Deadline(fate @ (Fate::NotRun | Fate::Unknown)) => {
                write!(f, "the guest did not answer in time; {fate}")
            }
            Self::Deadline(Fate::Started) => f.write_str(
                "the command did not end in time; its connection was closed, which ends it",
            ),
            Self::Missed { count } => write!(
                f,
                "{count} bytes of output were lost with an earlier connection; {}",
                Fate::Started
            ),
            Self::Output(_) => f.write_str("cannot write the command's output"),
            Self::Local(_) => f.write_str("cannot wait for the guest"),
        }
    }
}

impl std::error::Error for ExecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Output(source) | Self::Local(source) => Some(source),
            Self::Connection(error @ ConnectionError::Local { .. }, _) => error.source(),
            Self::Refused(_)
            | Self::Protocol(..)
            | Self::Connection(..)
            | Self::Severed(..)
            | Self::Missed { .. }
            | Self::Deadline(_) => None,
        }
    }
}
