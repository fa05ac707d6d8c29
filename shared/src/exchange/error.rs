//! Why an exchange failed.

use std::fmt;

use super::attempt::AttemptEnd;
use crate::frame::FrameKind;
use crate::message::Fail;
use crate::version::NoCommonVersion;

/// Why an exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExchangeError {
    /// The caller's deadline passed.
    Deadline {
        /// The frame that carried the request.
        request: FrameKind,
        /// Number of attempts made.
        attempts: u32,
        /// How the last finished attempt ended.
        last: Option<AttemptEnd>,
    },
    /// The guest refused the request.
    Refused {
        /// The frame that carried the request.
        request: FrameKind,
        /// What the guest answered.
        fail: Fail,
    },
    /// The guest and this host share no protocol version.
    Version(NoCommonVersion),
    /// The guest broke the protocol.
    Protocol {
        /// The frame that carried the request.
        request: FrameKind,
        /// What was wrong.
        text: String,
    },
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline {
                request,
                attempts,
                last,
            } => {
                write!(f, "{request} was not answered in time ({attempts} attempts")?;
                match last {
                    Some(end) => write!(f, ", the last: {end})"),
                    None => f.write_str(")"),
                }
            }
            Self::Refused { request, fail } => {
                write!(f, "the guest refused {request} ({}): ", fail.code)?;
                if let Some(phase) = &fail.phase {
                    write!(f, "step {}: ", phase.escape_debug())?;
                }
                write!(f, "{}", fail.text.escape_debug())
            }
            Self::Version(error) => error.fmt(f),
            Self::Protocol { request, text } => {
                write!(
                    f,
                    "the guest broke the protocol in answer to {request}: {text}"
                )
            }
        }
    }
}

impl std::error::Error for ExchangeError {}
