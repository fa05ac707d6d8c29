//! The listener across transport resets and rebinds. No I/O, no clock.
//!
//! ```text
//!              registered                rearm wanted
//! Unregistered ──────────▶ Listening ────────────────▶ Rearming ─┐
//!      ▲                      ▲                          │       │ rearm wanted (joins)
//!      │                      └───────── registered ─────┤  ◀────┘
//!      └──────────────────────────────── failed ─────────┘
//! ```
//!
//! A listening vsock socket survives a transport reset: the kernel kills connected sockets only. It
//! is taken out of the poll set and put back all the same, for this reason: a connection that
//! arrived around the pause for a snapshot sits in the accept queue and gives no new edge after the
//! resume, so an edge-triggered loop stays deaf to it and, behind a full backlog, to all others
//! (seen as a 60 s outage with Firecracker 1.10 to 1.16 and guests 5.10 to 6.12). Registering again
//! reports readiness that is already there, and draining accept empties the queue of dead children.
//! Both are idempotent and cost microseconds. Nothing else is concluded from a reset.
//!
//! Invariants:
//! - The serial counts registrations and never goes back. A connection carries the serial under
//!   which it was accepted.
//! - One rearm is requested, however many connections a reset ends in one turn of the loop.

use std::time::Instant;

use log::warn;

use crate::agent::action::Action;
use crate::agent::timers::Timer;
use crate::agent::{Agent, LISTENER_BACKOFF};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Before the start, or because registering failed.
    Unregistered,
    Listening,
    /// About to be taken out of the poll set and put back.
    Rearming,
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Listener {
    state: State,
    serial: u64,
    accepts_since_rebind: u64,
    /// The serial after the last rebind; zero before the first.
    serial_of_rebind: u64,
}

impl Listener {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Unregistered,
            serial: 0,
            accepts_since_rebind: 0,
            serial_of_rebind: 0,
        }
    }

    /// Returns whether a rearm has to be requested: not while one is under way.
    pub(crate) fn want_rearm(&mut self) -> bool {
        match self.state {
            State::Unregistered | State::Listening => {
                self.state = State::Rearming;
                true
            }
            State::Rearming => false,
        }
    }

    pub(crate) fn handle_registered(&mut self) {
        self.state = State::Listening;
        self.serial += 1;
    }

    /// Registered as a step of a rebind: connections accepted from now on are of the new
    /// generation.
    pub(crate) fn handle_rebound(&mut self) {
        self.handle_registered();
        self.serial_of_rebind = self.serial;
        self.accepts_since_rebind = 0;
    }

    /// Registering failed: the listener is out of the poll set.
    pub(crate) fn handle_failed(&mut self) {
        self.state = State::Unregistered;
    }

    /// Returns the serial that the accepted connection carries.
    pub(crate) fn handle_accepted(&mut self) -> u64 {
        self.accepts_since_rebind += 1;
        self.serial
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn accepts_since_rebind(&self) -> u64 {
        self.accepts_since_rebind
    }

    /// Whether a connection with this serial was accepted after the last rebind.
    pub(crate) fn is_fresh(&self, accepted_under: u64) -> bool {
        accepted_under >= self.serial_of_rebind
    }
}

impl Agent {
    /// Answers [`Action::RearmListener`].
    pub fn handle_rearmed(&mut self, result: Result<(), String>, now: Instant) {
        match result {
            Ok(()) => {
                self.listener.handle_registered();
                self.actions.push_back(Action::DrainAccept);
            }
            Err(text) => {
                warn!("cannot register the listener: {text}");
                self.listener.handle_failed();
                self.timers.set(Timer::Listener, now + LISTENER_BACKOFF);
            }
        }
    }

    /// A transport reset is possible: rearms the listener.
    pub(crate) fn wake_listener(&mut self) {
        // A rebind before its listener step will rearm it anyway.
        if !self.rebinds.will_rearm() {
            self.rearm_listener();
        }
    }

    /// Requests a rearm, unless one is requested already.
    pub(crate) fn rearm_listener(&mut self) {
        self.timers.stop(Timer::Listener);
        if self.listener.want_rearm() {
            self.counters.rearms += 1;
            self.actions.push_back(Action::RearmListener);
        }
    }

    /// The shell closed a connection unseen to empty the accept queue.
    pub fn handle_accept_shed(&mut self) {
        self.counters.accepts_shed += 1;
    }

    /// Accepting failed for lack of resources; the queue may hold more.
    pub fn handle_accept_failed(&mut self, now: Instant) {
        self.timers.set(Timer::Listener, now + LISTENER_BACKOFF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rearm_for_many_resets() {
        let mut listener = Listener::new();
        listener.handle_registered();
        assert!(listener.want_rearm());
        assert!(!listener.want_rearm());
        listener.handle_registered();
        assert!(listener.want_rearm());
        listener.handle_failed();
        assert!(
            listener.want_rearm(),
            "a failed rearm can be asked for again"
        );
    }

    #[test]
    fn freshness_follows_the_rebind_and_not_the_reset() {
        let mut listener = Listener::new();
        listener.handle_registered();
        let old = listener.handle_accepted();
        assert!(
            listener.is_fresh(old),
            "before the first rebind every connection is as good"
        );
        listener.handle_rebound();
        assert!(!listener.is_fresh(old));
        assert_eq!(listener.accepts_since_rebind(), 0);
        let fresh = listener.handle_accepted();
        assert!(listener.is_fresh(fresh));
        // A reset after the rebind must not make a running probe fail.
        assert!(listener.want_rearm());
        listener.handle_registered();
        assert!(listener.is_fresh(fresh));
        assert_eq!((listener.serial(), listener.accepts_since_rebind()), (3, 1));
    }
}
