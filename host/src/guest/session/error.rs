//! What can go wrong for the client of a session, and how much is then known about its command.

use std::fmt;
use std::io;

use shared::id::{ExecId, Instance};
use shared::message::FailCode;
use shared::session_client::{Fate, SessionError};

use crate::exit::Exit;
use crate::guest::connection::ConnectionError;

/// What was lost on this side, so that the command's own end is not the session's.
#[derive(Debug)]
pub(crate) enum Loss {
    /// The command got standard input up to this offset only.
    Input { at: u64, source: io::Error },
    /// Standard error took no more.
    Stderr(io::Error),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input { at, .. } => write!(f, "standard input was cut at byte {at}"),
            Self::Stderr(_) => f.write_str("cannot write to standard error"),
        }
    }
}

/// Why there is no exit status.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// The session client gave up.
    Session {
        error: SessionError,
        /// The latest connection that could not be made, or ended, which explains a deadline.
        last: Option<io::Error>,
    },
    /// The guest cannot be reached, and another try would fail the same way. `None` where nothing
    /// is known of the session, here and below.
    Connection(ConnectionError, Option<Fate>),
    VmmEnded(Option<Fate>),
    /// The user has sent a signal that has no command to go to, or a second one.
    Interrupted(Option<Fate>),
    /// The user has sent a signal after the command's end, while its output waited to be read.
    Unread(u8),
    /// The user's terminal was closed.
    HungUp(Option<Fate>),
    /// The command ended with this exit code, but not all bytes have passed.
    Lost(Loss, u8),
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
            Self::Interrupted(_) | Self::Unread(_) | Self::HungUp(_) => Exit::Guest,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::OutputClosed,
            Self::Connection(..) | Self::Lost(..) | Self::Output(_) | Self::Local(_) => {
                Exit::Internal
            }
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
            Self::Connection(error, fate) => {
                error.fmt(f)?;
                write_fate(f, *fate)
            }
            Self::VmmEnded(fate) => {
                f.write_str("the VMM has ended")?;
                write_fate(f, *fate)
            }
            Self::Interrupted(fate) => {
                f.write_str("given up at a signal")?;
                write_fate(f, *fate)
            }
            Self::Unread(code) => write!(
                f,
                "given up at a signal; the command ended ({code}), and not all its output was taken"
            ),
            Self::HungUp(fate) => {
                f.write_str("the terminal was closed")?;
                write_fate(f, *fate)
            }
            Self::Lost(loss @ Loss::Input { .. }, code) => {
                write!(f, "the command was told to end ({code}), because {loss}")
            }
            Self::Lost(loss @ Loss::Stderr(_), code) => {
                write!(f, "the command ended ({code}), but {loss}")
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
            Self::Output(source)
            | Self::Local(source)
            | Self::Lost(Loss::Input { source, .. } | Loss::Stderr(source), _) => Some(source),
            Self::Connection(error, _) => error.source(),
            Self::InDoubt { error, .. } => error.source(),
            Self::Session { .. }
            | Self::VmmEnded(_)
            | Self::Interrupted(_)
            | Self::Unread(_)
            | Self::HungUp(_) => None,
        }
    }
}

/// What is known about the command, behind what went wrong.
fn write_fate(f: &mut fmt::Formatter<'_>, fate: Option<Fate>) -> fmt::Result {
    fate.map_or(Ok(()), |fate| write!(f, "; {fate}"))
}
