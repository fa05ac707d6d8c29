//! What a session's client requests, and how long it tries.

use std::time::{Duration, Instant};

use crate::message::{Attach, AttachMode, Exec, Origin};

/// What the client requests of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a command.
    Exec {
        /// The command. Each attempt fills in its offsets, and the origin unless there is one.
        exec: Box<Exec>,
        /// Whether the user chose the id, so that an earlier client may have started the command.
        may_be_known: bool,
    },
    /// Attach to an existing session.
    Attach {
        /// The session and the mode. Each attempt but the first fills in its offsets.
        attach: Attach,
        /// Whether standard input will be sent.
        stdin: bool,
    },
}

impl Request {
    /// Whether this client acknowledges output.
    pub(super) fn is_owner(&self) -> bool {
        match self {
            Self::Exec { exec, .. } => !exec.detached,
            Self::Attach { attach, .. } => attach.mode == AttachMode::Own,
        }
    }

    /// The origin that the caller gave.
    pub(super) fn origin(&self) -> Option<Origin> {
        match self {
            Self::Exec { exec, .. } => exec.origin.as_deref().copied(),
            Self::Attach { .. } => None,
        }
    }

    /// Lowers the command's own time limit, if it has one, to what is left of the client's time.
    pub(super) fn limit(&mut self, left: Duration) {
        if let Self::Exec { exec, .. } = self
            && let Some(timeout_ms) = &mut exec.timeout_ms
        {
            let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            *timeout_ms = (*timeout_ms).min(left_ms.max(1));
        }
    }

    pub(super) fn wants_output(&self) -> bool {
        match self {
            Self::Exec { .. } => true,
            Self::Attach { attach, .. } => attach.mode != AttachMode::Wait,
        }
    }
}

/// When the client gives up; `None` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// When the guest must have answered the request for the first time.
    pub start: Option<Instant>,
    /// How long the guest may be unreachable after a cut. A guest that refuses for now is
    /// reachable.
    pub absence_max: Option<Duration>,
    /// When the command must have ended and all its output been passed on.
    pub end: Option<Instant>,
}
