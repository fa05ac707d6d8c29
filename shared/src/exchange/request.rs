//! The requests of an exchange: which frame carries one and which frame completes it.

use crate::frame::FrameKind;
use crate::id::{Generation, Nonce};
use crate::message::{
    AwaitCheckpoint, Depth, FailCode, Hooks, Message, Policy, Probe, Quiesce, Rebind, Reopen,
    SessionsRequest, Shutdown, Signal,
};

/// A request that is answered by one completion frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// REBIND. Each attempt fills in the wall clock and its own number.
    Rebind(Rebind),
    /// PROBE. Each attempt has a nonce of its own.
    Probe {
        /// The generation that the guest must have; `None` accepts any.
        generation: Option<Generation>,
        /// How far to go.
        depth: Depth,
    },
    /// QUIESCE.
    Quiesce(Quiesce),
    /// REOPEN.
    Reopen(Reopen),
    /// INFO.
    Info,
    /// SESSIONS.
    Sessions(SessionsRequest),
    /// SIGNAL. An attempt whose answer was lost is repeated, so the signal may arrive twice.
    Signal(Signal),
    /// SHUTDOWN.
    Shutdown(Shutdown),
    /// AWAIT_CHECKPOINT.
    AwaitCheckpoint(AwaitCheckpoint),
    /// HOOKS.
    Hooks(Hooks),
}

impl Request {
    /// The frame that carries the request. Error messages call the request by it.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Rebind(_) => FrameKind::Rebind,
            Self::Probe { .. } => FrameKind::Probe,
            Self::Quiesce(_) => FrameKind::Quiesce,
            Self::Reopen(_) => FrameKind::Reopen,
            Self::Info => FrameKind::Info,
            Self::Sessions(_) => FrameKind::Sessions,
            Self::Signal(_) => FrameKind::Signal,
            Self::Shutdown(_) => FrameKind::Shutdown,
            Self::AwaitCheckpoint(_) => FrameKind::AwaitCheckpoint,
            Self::Hooks(_) => FrameKind::Hooks,
        }
    }

    /// The message of one attempt.
    pub(super) fn to_message(&self, attempt: u32, wall_clock_ns: u64, nonce: Nonce) -> Message {
        match self {
            Self::Rebind(rebind) => Message::Rebind(Rebind {
                wall_clock_ns,
                attempt,
                ..rebind.clone()
            }),
            Self::Probe { generation, depth } => Message::Probe(Probe {
                generation: *generation,
                nonce,
                depth: *depth,
            }),
            Self::Quiesce(quiesce) => Message::Quiesce(*quiesce),
            Self::Reopen(reopen) => Message::Reopen(*reopen),
            Self::Info => Message::InfoRequest,
            Self::Sessions(request) => Message::SessionsRequest(*request),
            Self::Signal(signal) => Message::Signal(*signal),
            Self::Shutdown(shutdown) => Message::Shutdown(*shutdown),
            Self::AwaitCheckpoint(request) => Message::AwaitCheckpoint(request.clone()),
            Self::Hooks(hooks) => Message::Hooks(*hooks),
        }
    }

    /// Whether FAIL with `code` ends the exchange although it means "not now" elsewhere: a QUIESCE
    /// that asked to be refused while sessions run, or a REOPEN of a quiescence that has ended.
    pub(super) const fn is_final(&self, code: FailCode) -> bool {
        match self {
            Self::Quiesce(quiesce) => {
                matches!((quiesce.policy, code), (Policy::Refuse, FailCode::Refusing))
            }
            Self::Reopen(_) => matches!(code, FailCode::Refusing),
            Self::Rebind(_)
            | Self::Probe { .. }
            | Self::Info
            | Self::Sessions(_)
            | Self::Signal(_)
            | Self::Shutdown(_)
            | Self::AwaitCheckpoint(_)
            | Self::Hooks(_) => false,
        }
    }

    /// Whether `message` completes this very request, whose attempt had this nonce, and if not, how
    /// it differs.
    pub(super) fn check_answer(
        &self,
        message: &Message,
        nonce: Option<Nonce>,
    ) -> Result<(), String> {
        let is_ours = match (self, message) {
            (Self::Rebind(rebind), Message::Rebound(rebound)) => {
                rebind.generation == rebound.generation
            }
            (Self::Probe { generation, depth }, Message::Probed(probed)) => {
                nonce == Some(probed.nonce)
                    && (generation.is_none() || *generation == probed.generation)
                    && (*depth == Depth::Exec) == probed.exec_us.is_some()
                    && probed.accepts_since_rebind > 0
            }
            (Self::Quiesce(quiesce), Message::Quiesced(token)) => quiesce.token == *token,
            (Self::Reopen(_) | Self::Signal(_) | Self::Shutdown(_), Message::Ok) => true,
            (Self::Info, Message::Info(_)) => true,
            (Self::AwaitCheckpoint(request), Message::Checkpoint(checkpoint)) => {
                request.tag.is_none() || request.tag == checkpoint.tag
            }
            (Self::Hooks(hooks), Message::Hooked(hooked)) => hooks.token == hooked.token,
            (Self::Sessions(request), Message::Sessions(sessions)) => {
                let numbers = sessions.sessions.iter().map(|session| session.session);
                std::iter::once(request.after)
                    .chain(numbers)
                    .is_sorted_by(|a, b| a < b)
            }
            _ => return Err(format!("unexpected {}", message.kind())),
        };
        if is_ours {
            Ok(())
        } else {
            Err(format!("{} of another request", message.kind()))
        }
    }
}
