//! What a session's client is asked for, and for how long.

use std::time::{Duration, Instant};

use crate::message::{Attach, AttachMode, Exec};

/// What is asked of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec {
        /// The command. Its offsets are filled in for each attempt.
        exec: Box<Exec>,
        /// Whether the caller chose the id, so that the command may have been started long ago.
        may_be_known: bool,
    },
    /// Attach to a session that is there.
    Attach {
        /// To which, and how. Its offsets are filled in for all attempts but the first.
        attach: Attach,
        /// Whether standard input will be sent.
        stdin: bool,
    },
}

impl Request {
    /// Whether this client acknowledges what it was given.
    pub(super) fn is_owner(&self) -> bool {
        match self {
            Self::Exec { exec, .. } => !exec.detached,
            Self::Attach { attach, .. } => attach.mode == AttachMode::Own,
        }
    }

    pub(super) fn wants_output(&self) -> bool {
        match self {
            Self::Exec { .. } => true,
            Self::Attach { attach, .. } => attach.mode != AttachMode::Wait,
        }
    }
}

/// When the client gives up. `None` means that there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// The guest must have answered the request for the first time by then.
    pub start: Option<Instant>,
    /// How long the guest may be gone after a cut. A guest that refuses for now is there.
    pub absence_max: Option<Duration>,
    /// The end must have come, and all output been handed on, by then.
    pub end: Option<Instant>,
}
