//! The owner of each child process, and the looks for children whose end was not told. No I/O, no
//! clock.
//!
//! Process 1 inherits every orphan of the machine. A process that is not in the table is an orphan:
//! it is counted and forgotten.
//!
//! The end of a child is an edge: SIGCHLD is read once, and one read that fails loses it. So a
//! child that runs is a reason to look by itself, soon after its start and after its outputs have
//! closed, and then less and less often. The look is at every source that tells of something once;
//! see [`Action::CheckSources`].
//!
//! Invariants:
//! - A process id is in the table from the start of its process until it was reaped. The kernel
//!   cannot reuse it before, so it means one process at most.
//! - While a process is in the table, or a source has failed, a look is due. Without both, none is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::session::Exit;
use crate::agent::Agent;
use crate::agent::action::Action;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::timers::Timer;

/// Pause before the first look, and after a failure of a source.
pub(crate) const CHECK_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Each look that finds nothing doubles the pause, up to this. A workload may run for months.
pub(crate) const CHECK_PAUSE_MAX: Duration = Duration::from_secs(60);

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
    /// The pause before the look that is due.
    pause: Duration,
    /// Whether a source has failed since the last look.
    has_failure: bool,
    /// Whether the kernel knew none of them when it was last asked.
    is_unknown: bool,
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

    /// Whether any process is in the table.
    pub(crate) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whether a look is due.
    pub(crate) fn is_check_due(&self) -> bool {
        self.has_failure || !self.is_empty()
    }

    /// Reaped processes that the agent had not started.
    pub(crate) fn orphans_reaped(&self) -> u64 {
        self.orphans_reaped
    }
}

impl Agent {
    /// A child was started.
    pub(crate) fn watch_child(&mut self, pid: i32, owner: Owner, now: Instant) {
        self.children.insert(pid, owner);
        self.children.is_unknown = false;
        self.check_soon(now);
    }

    /// A child has closed its outputs, so it is about to end. The look after its start is as good.
    pub(crate) fn expect_child(&mut self, now: Instant) {
        if self.children.pause > CHECK_PAUSE_MIN {
            self.check_soon(now);
        }
    }

    /// Begins again with the shortest pause.
    fn check_soon(&mut self, now: Instant) {
        self.children.pause = CHECK_PAUSE_MIN;
        self.timers.set(Timer::Check, now + CHECK_PAUSE_MIN);
    }

    /// A source that tells of something once could not be read, or had nothing to tell when it was
    /// said to: signals, ended children, a listener.
    pub fn handle_source_failed(&mut self, now: Instant) {
        self.children.has_failure = true;
        self.check_soon(now);
    }

    /// The pause is over.
    pub(crate) fn check_sources(&mut self, now: Instant) {
        self.children.has_failure = false;
        self.actions.push_back(Action::CheckSources);
        if !self.children.is_empty() {
            let pause = (self.children.pause * 2).min(CHECK_PAUSE_MAX);
            self.children.pause = pause;
            self.timers.set(Timer::Check, now + pause);
        }
    }

    pub fn handle_child_exit(&mut self, pid: i32, exit: Exit, now: Instant) {
        match self.children.remove(pid) {
            Some(Owner::Session(id)) => self.handle_session_exit(id, exit, now),
            Some(Owner::Probe(id)) => self.handle_probe_exit(id, exit, now),
            Some(Owner::Stillborn) => {}
            None => debug!("reaped orphan {pid}"),
        }
        self.stop_checks();
    }

    /// Every child that had ended was reaped. `are_left`: whether the kernel knows others.
    pub fn handle_reaped_all(&mut self, are_left: bool, now: Instant) {
        let was_unknown = std::mem::replace(&mut self.children.is_unknown, !are_left);
        if are_left || self.children.is_empty() {
            return;
        }
        if !was_unknown {
            // The answer may have been wrong. Two in a row are not.
            return self.handle_source_failed(now);
        }
        for (pid, owner) in std::mem::take(&mut self.children.owners) {
            warn!("the kernel does not know process {pid} any more");
            match owner {
                Owner::Session(id) => self.handle_session_lost(id, now),
                Owner::Probe(id) => self.handle_probe_lost(id, now),
                Owner::Stillborn => {}
            }
        }
        self.stop_checks();
    }

    fn stop_checks(&mut self) {
        if !self.children.is_check_due() {
            self.timers.stop(Timer::Check);
        }
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
