//! Which child belongs to whom. No I/O, no clock.
//!
//! Process 1 inherits every orphan of the machine, so most ends may mean nothing to us: what is not
//! in the table is an orphan, counted and forgotten.
//!
//! Invariant: a process id is in the table from the moment its process was started until it was
//! reaped, so it names one process at most; the kernel cannot reuse it before.

use std::collections::BTreeMap;

use crate::agent::ids::{ConnectionId, SessionId};

/// Why we started a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// It is a session's command.
    Session(SessionId),
    /// It is the no-op that proves to this connection that commands can run.
    Probe(ConnectionId),
    /// It could not become the program it was started for, and only has to be reaped.
    Stillborn,
}

/// Our own children, and a count of the others.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Children {
    owners: BTreeMap<i32, Owner>,
    orphans_reaped: u64,
}

impl Children {
    /// A process was started.
    pub(crate) fn insert(&mut self, pid: i32, owner: Owner) {
        let previous = self.owners.insert(pid, owner);
        debug_assert!(
            previous.is_none(),
            "process {pid} was started twice without being reaped"
        );
    }

    /// A process was reaped. Returns whose it was, or `None` for an orphan.
    pub(crate) fn remove(&mut self, pid: i32) -> Option<Owner> {
        let owner = self.owners.remove(&pid);
        if owner.is_none() {
            self.orphans_reaped += 1;
        }
        owner
    }

    /// Processes reaped that nobody here had started.
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
            "a reused id is nobody's until it is inserted again"
        );
        assert_eq!(children.orphans_reaped(), 2);
        assert!(children.owners.is_empty());
    }
}
