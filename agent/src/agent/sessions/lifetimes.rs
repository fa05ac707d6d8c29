//! How long sessions live: without their owner, past their time limit, and after they were told to
//! end. No I/O, no clock.
//!
//! ```text
//!          owner left, not detached            owner did not return
//! owned ──────────────────────────▶ left alone ────────────────┐  TERM             KILL
//!   │ ▲         EXEC, ATTACH as own   │                        ├──────▶ told to end ─────▶ ended
//!   │ └───────────────────────────────┘      past its timeout  │        KILL_TIMEOUT
//!   └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A lost connection means different things. A client that closed its connection may return within
//! the time that its request asked for, by default none. A connection cut by a snapshot, a rebind
//! or a transport reset says nothing about the client: it may return for at least [`CUT_KEEP_MIN`].
//!
//! Invariants:
//! - Signals go to the process group, and only while its leader has not been waited for. KILL also
//!   goes to the session's cgroup, which has no such limit.
//! - A session that was told to end leaves no process, if it has a cgroup.
//! - Both waits count session time (see [`timers`](crate::agent::timers)).
//! - A command that was told to end does not wait for a reader, unless it has an owner.
//! - KILL and the time limit end a session also after its command: what is left of its output is
//!   given up.

use std::time::{Duration, Instant};

use log::info;

use super::session::{Session, State};
use crate::agent::action::{Action, EndSignal};
use crate::agent::ids::SessionId;
use crate::agent::timers::Timer;
use crate::agent::{Agent, DetachReason};

/// Time between TERM and KILL.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Least time that a command runs on after its connection was cut against its client's will.
pub(crate) const CUT_KEEP_MIN: Duration = Duration::from_secs(60);

impl Agent {
    /// A running session has lost its owner.
    pub(crate) fn handle_owner_left(&mut self, id: SessionId, reason: DetachReason, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let spec = session.spec();
        if session.is_terminating {
            // No client waits for its output any more, so it does not wait for a reader either.
            return self.resume_output(id);
        }
        if spec.is_detached {
            return;
        }
        let keep = match reason {
            DetachReason::ClientLeft => spec.keep,
            DetachReason::Cut => spec.keep.max(CUT_KEEP_MIN),
            DetachReason::Done => return,
        };
        if keep.is_zero() {
            self.terminate_session(id, now);
        } else {
            self.timers.set_after(Timer::Abandon(id), keep, now);
        }
    }

    pub(crate) fn abandon_session(&mut self, id: SessionId, now: Instant) {
        info!("{id}: its owner did not return");
        self.counters.abandoned += 1;
        self.terminate_session(id, now);
    }

    pub(crate) fn time_out_session(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if matches!(session.state(), State::Reaped(_)) {
            // The command itself has ended in time, so only output that is lost counts.
            session.is_timed_out |= session.unread_len() > 0;
            self.kill_cgroup(id);
            self.give_up_output(id, now);
        } else if session.group().is_some() && !session.is_terminating {
            session.is_timed_out = true;
            self.counters.timeouts += 1;
            self.terminate_session(id, now);
        }
    }

    /// TERM now, and KILL after [`KILL_TIMEOUT`].
    pub(crate) fn terminate_session(&mut self, id: SessionId, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.is_terminating = true;
            self.timers.stop(Timer::Abandon(id));
            self.timers.stop(Timer::Timeout(id));
            self.timers.set(Timer::Kill(id), now + KILL_TIMEOUT);
            self.signal_session(id, EndSignal::Terminate.number());
            self.resume_output(id);
        }
    }

    /// Ends a session by force. Of a command that has ended, the rest of the output is given up.
    pub(crate) fn kill_session(&mut self, id: SessionId, now: Instant) {
        self.signal_session(id, EndSignal::Kill.number());
        let state = self.sessions.get(id).map(Session::state);
        if matches!(state, Some(State::Reaped(_))) {
            self.give_up_output(id, now);
        }
    }

    /// Kills every running session at once. Returns how many there were.
    pub(crate) fn kill_sessions(&mut self, now: Instant) -> usize {
        // A workload between two runs has no process.
        let is_between = |it: &&Session| it.is_workload() && it.group().is_none();
        let running = self.sessions.running().filter(|it| !is_between(it));
        let ids: Vec<_> = running.map(Session::id).collect();
        for id in &ids {
            self.timers.stop(Timer::Abandon(*id));
            self.timers.stop(Timer::Timeout(*id));
            if let Some(session) = self.sessions.get_mut(*id) {
                session.is_terminating = true;
            }
            self.resume_output(*id);
            self.kill_session(*id, now);
        }
        ids.len()
    }

    /// Sends a signal to a session's process group, if it has one. KILL is for all its processes.
    pub(crate) fn signal_session(&mut self, id: SessionId, number: u8) {
        if let Some(group) = self.sessions.get(id).and_then(Session::group) {
            self.actions
                .push_back(Action::SignalGroup { group, number });
        }
        if number == EndSignal::Kill.number() {
            self.kill_cgroup(id);
        }
    }

    /// Kills what is left of a session, also what has left its process group, if the session has a
    /// cgroup.
    pub(crate) fn kill_cgroup(&mut self, id: SessionId) {
        if self.settings.confinement.has_cgroups {
            self.actions.push_back(Action::KillSession(id));
        }
    }

    pub(crate) fn stop_session_timers(&mut self, id: SessionId) {
        for timer in [
            Timer::Grace(id),
            Timer::Abandon(id),
            Timer::Timeout(id),
            Timer::Kill(id),
        ] {
            self.timers.stop(timer);
        }
    }
}
