//! Why a payload is invalid.

use std::error::Error;
use std::fmt;

use crate::frame::FrameKind;
use crate::json::JsonError;

/// Why a payload is invalid. The receiver ends the connection.
#[derive(Debug)]
pub enum PayloadError {
    /// The JSON object of a control frame is invalid.
    Json {
        /// The frame that carried it.
        kind: FrameKind,
        /// What is wrong with it.
        source: JsonError,
    },
    /// A stream payload is shorter than its offset.
    Truncated {
        /// The frame that carried it.
        kind: FrameKind,
    },
    /// The sender's side of the conversation never sends such a frame.
    WrongDirection {
        /// The frame received.
        kind: FrameKind,
    },
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { kind, source } => match source {
                JsonError::Syntax(_) => write!(f, "{kind} payload is {source}"),
                JsonError::Field { .. } => write!(f, "{kind} payload: {source}"),
            },
            Self::Truncated { kind } => write!(f, "{kind} payload is shorter than its offset"),
            Self::WrongDirection { kind } => write!(f, "{kind} frame from the wrong side"),
        }
    }
}

impl Error for PayloadError {
    /// What the JSON parser said. The message contains the [`JsonError`] itself.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Json { source, .. } => source.source(),
            Self::Truncated { .. } | Self::WrongDirection { .. } => None,
        }
    }
}
