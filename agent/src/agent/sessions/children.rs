//! The owner of each child process. No I/O, no clock.
//!
//! Process 1 inherits every orphan of the machine. A process that is not in the table is an orphan:
//! it is counted and forgotten.
//!
//! Invariant: a process id is in the table from the start of its process until it was reaped. The
//! kernel cannot reuse it before, so it means one process at most.

use std::collections::BTreeMap;

use crate::agent::ids::{ConnectionId, SessionId};

/// Why the agent started a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A session's command.
    Session(SessionId),
    /// The no-op that proves to this connection that commands can run.
    Probe(ConnectionId),
    /// It failed before it executed its program and only has to be reaped.
    Stillborn,
}

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Children {
    owners: BTreeMap<i32, Owner>,
    orphans_reaped: u64,
}

impl Children {
    pub(crate) fn insert(&mut self, pid: i32, owner: Owner) {
        let previous = self.owners.insert(pid, owner);
        debug_assert!(
            previous.is_none(),
            "process {pid} was started twice without being reaped"
        );
    }

    /// A process was reaped. `None`: it was an orphan.
    pub(crate) fn remove(&mut self, pid: i32) -> Option<Owner> {
        let owner = self.owners.remove(&pid);
        if owner.is_none() {
            self.orphans_reaped += 1;
        }
        owner
    }

    /// Reaped processes that the agent had not started.
    pub(crate) fn orphans_reaped(&self) -> u64 {
        self.orphans_reaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_counted_and_our_own_are_not() {
        let mut children = Children::default();
        let owner = Owner::Session(SessionId::from_number(1));
        children.insert(7, owner);
        children.insert(8, Owner::Stillborn);
        assert_eq!(children.remove(9), None);
        assert_eq!(children.remove(7), Some(owner));
        assert_eq!(children.remove(8), Some(Owner::Stillborn));
        assert_eq!(
            children.remove(7),
            None,
            "a reused id has no owner until it is inserted again"
        );
        assert_eq!(children.orphans_reaped(), 2);
        assert!(children.owners.is_empty());
    }
}
