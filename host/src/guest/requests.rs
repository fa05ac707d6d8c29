//! What a guest is asked for.

use shared::exchange::Request;
use shared::id::Generation;
use shared::message::{Cause, Identity, InheritedSessions, Rebind};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::random;

/// A generation for a guest, and why it gets one.
#[derive(Debug, Clone)]
pub(crate) struct RebindPlan {
    /// The generation. The guest acts once on it, however often it is told.
    pub(crate) generation: Generation,
    /// The generation of the snapshot, or the one that the source had.
    pub(crate) parent: Option<Generation>,
    /// Why the guest gets a generation.
    pub(crate) cause: Cause,
    /// What tells the guest from its siblings.
    pub(crate) identity: Identity,
}

impl RebindPlan {
    pub(crate) fn new(
        cause: Cause,
        parent: Option<Generation>,
        identity: Identity,
    ) -> Result<Self, Failure> {
        let drawn = random::generation();
        Ok(Self {
            generation: drawn.or_fail(Exit::Internal, || "cannot draw a generation".to_owned())?,
            parent,
            cause,
            identity,
        })
    }

    /// The request that tells the guest, with fresh entropy.
    pub(crate) fn request(&self) -> Result<Request, Failure> {
        let entropy =
            random::bytes::<32>().or_fail(Exit::Internal, || "cannot draw entropy".to_owned())?;
        Ok(Request::Rebind(Rebind {
            generation: self.generation,
            cause: self.cause,
            parent: self.parent,
            // Both are filled in for each attempt.
            wall_clock_ns: 0,
            attempt: 0,
            entropy: Some(entropy),
            identity: self.identity.clone(),
            sessions: InheritedSessions::Keep,
        }))
    }
}
