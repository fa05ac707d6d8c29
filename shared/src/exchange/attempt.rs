//! The record of attempts, for reports. No I/O, no clock.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use crate::message::FailCode;

/// Attempts whose record is kept. Later ones are only counted.
pub const ATTEMPTS_KEPT_MAX: usize = 64;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptEnd {
    /// With the completion frame.
    Answered,
    /// The connection could not be made, or ended.
    Closed,
    /// Nothing came in time.
    Silent,
    /// The guest said no for now.
    Refused(FailCode),
    /// The guest said no for good, or broke the protocol.
    Failed,
}

impl fmt::Display for AttemptEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Closed => f.write_str("connection closed"),
            Self::Silent => f.write_str("no answer"),
            Self::Refused(code) => write!(f, "refused ({code})"),
            Self::Failed => f.write_str("failed"),
        }
    }
}

/// One attempt, as it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// When it was wanted.
    pub started_at: Instant,
    /// When it ended.
    pub ended_at: Instant,
    /// How it ended.
    pub end: AttemptEnd,
}

/// The record of attempts. It decides nothing, so two exchanges that differ in it alone are in the
/// same state.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts(Vec<Attempt>);

impl Hash for Attempts {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Attempts {
    /// Keeps it if there is room.
    pub(super) fn push(&mut self, attempt: Attempt) {
        if self.0.len() < ATTEMPTS_KEPT_MAX {
            self.0.push(attempt);
        }
    }

    /// Those that were kept.
    pub(super) const fn as_slice(&self) -> &[Attempt] {
        self.0.as_slice()
    }
}
