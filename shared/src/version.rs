//! Protocol versions and their negotiation.
//!
//! Each side sends the range it speaks, and both use the highest common version. A snapshot
//! contains the agent of its image, so a newer host often talks to an older agent.

use std::fmt;

/// The protocol versions that this build speaks.
pub const SUPPORTED: VersionRange = VersionRange { min: 1, max: 1 };

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VersionRange {
    /// Lowest version.
    pub min: u16,
    /// Highest version; at least `min`.
    pub max: u16,
}

impl VersionRange {
    /// The highest version in both ranges.
    ///
    /// # Errors
    ///
    /// When the ranges do not overlap. The error contains both.
    pub fn negotiate(self, peer: Self) -> Result<u16, NoCommonVersion> {
        let version = self.max.min(peer.max);
        if version >= self.min.max(peer.min) {
            Ok(version)
        } else {
            Err(NoCommonVersion {
                ours: self,
                theirs: peer,
            })
        }
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// The two sides share no protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoCommonVersion {
    /// The versions that this side speaks.
    pub ours: VersionRange,
    /// The versions that the peer speaks.
    pub theirs: VersionRange,
}

impl fmt::Display for NoCommonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no common protocol version: this side speaks {}, the peer {}",
            self.ours, self.theirs
        )
    }
}

impl std::error::Error for NoCommonVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_wins() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 1).negotiate(range(1, 1)), Ok(1));
        assert_eq!(range(1, 4).negotiate(range(2, 3)), Ok(3));
        assert_eq!(range(2, 3).negotiate(range(1, 4)), Ok(3));
        assert_eq!(range(1, 2).negotiate(range(2, 9)), Ok(2));
        let error = range(1, 2).negotiate(range(3, 4)).unwrap_err();
        let text = "no common protocol version: this side speaks 1 to 2, the peer 3 to 4";
        assert_eq!(error.to_string(), text);
        assert!(range(3, 3).negotiate(range(1, 2)).is_err());
    }
}
