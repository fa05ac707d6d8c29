//! The attempts of an exchange as reports list them. No I/O, no clock.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Instant;

use crate::message::FailCode;

/// Number of attempts that are recorded. Later ones are only counted.
pub const ATTEMPTS_KEPT_MAX: usize = 64;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptEnd {
    /// The completion frame came.
    Answered,
    /// The connection could not be made, or ended.
    Closed,
    /// No answer came in time.
    Silent,
    /// The guest refused for now.
    Refused(FailCode),
    /// The guest refused for good, or broke the protocol.
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

/// One attempt that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// When the connection was wanted.
    pub started_at: Instant,
    /// When the attempt ended.
    pub ended_at: Instant,
    /// How it ended.
    pub end: AttemptEnd,
}

/// The recorded attempts. They decide nothing, so exchanges that differ only in them are in the
/// same state and have the same hash.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts(Vec<Attempt>);

impl Hash for Attempts {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Attempts {
    /// Records an attempt, if there is room.
    pub(super) fn push(&mut self, attempt: Attempt) {
        if self.0.len() < ATTEMPTS_KEPT_MAX {
            self.0.push(attempt);
        }
    }

    pub(super) const fn as_slice(&self) -> &[Attempt] {
        self.0.as_slice()
    }
}
