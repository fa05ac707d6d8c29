//! Why a session's client cannot report how its command ended, and what it knows about the command.

use std::fmt;

use crate::message::{Exited, Fail, FailCode, SeverReason};
use crate::version::NoCommonVersion;

/// What is known about a command whose end is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The request was never sent, so the command did not run.
    NotRun,
    /// The request was sent and not answered.
    Unknown,
    /// The command was started, and may be running still.
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

/// Why the end is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// The guest refused the request for good.
    Refused {
        /// What the guest answered.
        fail: Fail,
        /// What is known about the command, which an earlier copy of the EXEC may have started.
        /// `None` for an ATTACH that was never answered.
        fate: Option<Fate>,
    },
    /// The guest did not answer an ATTACH in time, so nothing is known about the session.
    Unanswered,
    /// Another client has taken the session over.
    Superseded,
    /// After a cut, the guest no longer had the session.
    Forgotten,
    /// The guest shuts down.
    ShutDown(Fate),
    /// The guest was unreachable for longer than the caller accepts.
    Absent(Fate),
    /// The caller's deadline passed.
    Deadline(Fate),
    /// The caller's deadline passed after the command's end, before all its output was passed on.
    Undelivered(Box<Exited>),
    /// The guest and this host share no protocol version.
    Version(NoCommonVersion),
    /// The guest broke the protocol.
    Protocol {
        /// What was wrong.
        text: String,
        /// What is known about the command.
        fate: Fate,
    },
}

impl SessionError {
    /// The error of a final refusal: another attempt would not change the guest's answer.
    pub(super) fn of_refusal(fail: Fail, fate: Option<Fate>, was_attached: bool) -> Self {
        match fail.code {
            FailCode::NoSession if was_attached => Self::Forgotten,
            FailCode::Superseded if was_attached => Self::Superseded,
            // This answer is about the command itself, whichever copy of the request it answers.
            FailCode::NotFound | FailCode::NotRunnable => Self::Refused { fail, fate: None },
            FailCode::NoSession
            | FailCode::Unknown
            | FailCode::Superseded
            | FailCode::Version
            | FailCode::Protocol
            | FailCode::Stale
            | FailCode::Refusing
            | FailCode::Limit
            | FailCode::Rebind
            | FailCode::Probe
            | FailCode::Unsupported
            | FailCode::Internal => Self::Refused { fail, fate },
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { fail, fate } => {
                let text = fail.text.escape_debug();
                match (fail.code, fate) {
                    (FailCode::NotFound | FailCode::NotRunnable, _) => write!(f, "{text}"),
                    (code, None | Some(Fate::NotRun)) => {
                        write!(f, "the guest refused ({code}): {text}")
                    }
                    (code, Some(fate)) => write!(f, "the guest refused ({code}): {text}; {fate}"),
                }
            }
            Self::Unanswered => f.write_str("the guest did not answer in time"),
            Self::Superseded => f.write_str(
                "another client has taken the session over; this one no longer gets its output",
            ),
            Self::Forgotten => write!(
                f,
                "the guest no longer knows the session; {}",
                Fate::Started
            ),
            Self::ShutDown(fate) => {
                write!(f, "{}; {fate}", severed_text(SeverReason::Shutdown))
            }
            Self::Absent(fate) => write!(f, "the guest could not be reached again; {fate}"),
            Self::Deadline(Fate::Started) => {
                write!(f, "the command did not end in time; {}", Fate::Started)
            }
            Self::Deadline(fate @ (Fate::NotRun | Fate::Unknown)) => {
                write!(f, "the guest did not answer in time; {fate}")
            }
            Self::Undelivered(exited) => write!(
                f,
                "the command ended ({}), but its output was not taken in time",
                exited.status.shell_code()
            ),
            Self::Version(error) => error.fmt(f),
            Self::Protocol { text, fate } => {
                write!(f, "the guest broke the protocol: {text}; {fate}")
            }
        }
    }
}

impl std::error::Error for SessionError {}

/// A sentence for the user about why the guest cut a connection.
#[must_use]
pub const fn severed_text(reason: SeverReason) -> &'static str {
    match reason {
        SeverReason::Quiesce => "the guest cut the connection for a snapshot of it",
        SeverReason::Rebind => "the guest cut the connection because it got a new generation",
        SeverReason::Shutdown => "the guest cut the connection because it shuts down",
    }
}
