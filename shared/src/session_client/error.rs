//! Why a session's client has no end to report, and how much is known about the command then.

use std::fmt;

use crate::message::{Exited, Fail, FailCode, SeverReason};
use crate::version::NoCommonVersion;

/// How much is known about a command whose end is not.
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

/// Why there is no end to report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// The guest refused the request for good.
    Refused {
        /// What it said.
        fail: Fail,
        /// What is known of the command, which an earlier copy of an EXEC may have started, or
        /// which runs; `None` where an ATTACH has told us nothing.
        fate: Option<Fate>,
    },
    /// Nothing is known of the session, since the guest has not answered an ATTACH in time.
    Unanswered,
    /// Another client has taken the session over.
    Superseded,
    /// After a cut, the guest knew the session no more.
    Forgotten,
    /// The guest ends.
    ShutDown(Fate),
    /// The guest could not be reached for as long as the caller waits for it.
    Absent(Fate),
    /// The caller's deadline passed.
    Deadline(Fate),
    /// The caller's deadline passed when the command had ended, and its output was not handed on.
    Undelivered(Box<Exited>),
    /// The guest speaks no version that this host speaks.
    Version(NoCommonVersion),
    /// The guest broke the protocol.
    Protocol {
        /// How.
        text: String,
        /// What is known of the command.
        fate: Fate,
    },
}

impl SessionError {
    /// The error that a FAIL means, which neither a new attempt nor waiting would change.
    pub(super) fn of_refusal(fail: Fail, fate: Option<Fate>, was_attached: bool) -> Self {
        match fail.code {
            FailCode::NoSession if was_attached => Self::Forgotten,
            FailCode::Superseded if was_attached => Self::Superseded,
            // The answer is about the command itself, whichever copy of the request had it.
            FailCode::NotFound | FailCode::NotRunnable => Self::Refused { fail, fate: None },
            FailCode::NoSession
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
            Self::Forgotten => write!(f, "the guest knows the session no more; {}", Fate::Started),
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

/// Why a connection was cut, as a sentence.
#[must_use]
pub const fn severed_text(reason: SeverReason) -> &'static str {
    match reason {
        SeverReason::Quiesce => "the guest cut the connection for a snapshot of it",
        SeverReason::Rebind => "the guest cut the connection because it got a new name",
        SeverReason::Shutdown => "the guest cut the connection because it shuts down",
    }
}
