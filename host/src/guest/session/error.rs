//! What can go wrong for the client of a session, and how much is then known about its command.

use std::fmt;
use std::io;

use shared::id::{ExecId, Instance};
use shared::message::FailCode;
use shared::session_client::{Fate, SessionError};

use crate::exit::Exit;
use crate::guest::connection::ConnectionError;

/// Why there is no exit status.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// The session client gave up.
    Session {
        error: SessionError,
        /// The latest connection that could not be made, or ended, which explains a deadline.
        last: Option<io::Error>,
    },
    /// The guest cannot be reached, and another try would fail the same way.
    Connection(ConnectionError, Fate),
    VmmEnded(Fate),
    /// The user interrupted while the guest could not be reached.
    Interrupted(Fate),
    /// The command's output could not be written. The command was told to end.
    Output(io::Error),
    /// A system call of this program failed.
    Local(io::Error),
    /// Whether the command ran is unknown, and the agent that it was sent to may know.
    InDoubt {
        error: Box<Self>,
        id: ExecId,
        instance: Instance,
    },
}

impl ClientError {
    /// Whether the guest knows no such session.
    pub(crate) fn is_unknown_session(&self) -> bool {
        match self {
            Self::Session {
                error: SessionError::Refused { fail, .. },
                ..
            } => fail.code == FailCode::NoSession,
            Self::InDoubt { error, .. } => error.is_unknown_session(),
            _ => false,
        }
    }

    /// What the error means for the exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Session { error, .. } => session_exit(error),
            Self::VmmEnded(_) => Exit::VmmEnded,
            Self::Interrupted(_) => Exit::Guest,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::OutputClosed,
            Self::Connection(..) | Self::Output(_) | Self::Local(_) => Exit::Internal,
            Self::InDoubt { error, .. } => error.exit(),
        }
    }
}

fn session_exit(error: &SessionError) -> Exit {
    match error {
        SessionError::Refused { fail, .. } => match fail.code {
            FailCode::NotFound => Exit::NotFound,
            FailCode::NotRunnable => Exit::NotRunnable,
            FailCode::Version
            | FailCode::Protocol
            | FailCode::NoSession
            | FailCode::Unknown
            | FailCode::Stale
            | FailCode::Superseded
            | FailCode::Refusing
            | FailCode::Limit
            | FailCode::Rebind
            | FailCode::Probe
            | FailCode::Unsupported
            | FailCode::Internal => Exit::Guest,
        },
        SessionError::Deadline(_) | SessionError::Unanswered | SessionError::Undelivered(_) => {
            Exit::Deadline
        }
        SessionError::Superseded
        | SessionError::Forgotten
        | SessionError::ShutDown(_)
        | SessionError::Absent(_)
        | SessionError::Version(_)
        | SessionError::Protocol { .. } => Exit::Guest,
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { error, last } => {
                error.fmt(f)?;
                let is_explained = matches!(
                    error,
                    SessionError::Absent(_)
                        | SessionError::Unanswered
                        | SessionError::Deadline(Fate::NotRun | Fate::Unknown)
                );
                match last {
                    Some(last) if is_explained => write!(f, " (the last connection: {last})"),
                    Some(_) | None => Ok(()),
                }
            }
            Self::Connection(error, fate) => write!(f, "{error}; {fate}"),
            Self::VmmEnded(fate) => write!(f, "the VMM has ended; {fate}"),
            Self::Interrupted(fate) => {
                write!(f, "given up while the guest could not be reached; {fate}")
            }
            Self::Output(_) => f.write_str("cannot write the command's output"),
            Self::Local(_) => f.write_str("cannot wait for the guest"),
            Self::InDoubt {
                error,
                id,
                instance,
            } => write!(
                f,
                "{error}; to find out, run it again with --id {id} --instance {instance}: it does \
                 not run twice"
            ),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Output(source) | Self::Local(source) => Some(source),
            Self::Connection(error, _) => error.source(),
            Self::InDoubt { error, .. } => error.source(),
            Self::Session { .. } | Self::VmmEnded(_) | Self::Interrupted(_) => None,
        }
    }
}
