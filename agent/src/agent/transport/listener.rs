//! Life of the listener across transport resets and rebinds. No I/O, no clock.
//!
//! ```text
//!              registered                rearm wanted
//! Unregistered ──────────▶ Listening ────────────────▶ Rearming ─┐
//!      ▲                      ▲                          │       │ rearm wanted (joins)
//!      │                      └───────── registered ─────┤  ◀────┘
//!      └──────────────────────────────── failed ─────────┘
//! ```
//!
//! A listening vsock socket survives a transport reset: the kernel kills connected sockets only.
//! Why it is taken out of the poll set and put back all the same: a connection that arrived around
//! the pause for a snapshot sits in the accept queue and gives no new edge after the resume, so an
//! edge-triggered loop stays deaf to it and, behind a full backlog, to everyone (seen as a 60 s
//! outage with Firecracker 1.10 to 1.16 and guests 5.10 to 6.12). Registering again reports
//! readiness that is already there, and draining accept empties the queue of dead children. Both
//! are idempotent and cost microseconds; nothing else is concluded from a reset.
//!
//! Invariants:
//! - The serial counts registrations and never goes back. A connection carries the serial under
//!   which it was accepted.
//! - However many connections a reset ends in one loop turn, one rearm is asked for.

use std::time::Instant;

use log::warn;

use crate::agent::action::Action;
use crate::agent::timers::Timer;
use crate::agent::{Agent, LISTENER_BACKOFF};

/// Where the listener stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Not in the poll set: before the start, or because registering failed.
    Unregistered,
    /// In the poll set.
    Listening,
    /// About to be taken out and put back.
    Rearming,
}

/// The listener's count of itself.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Listener {
    state: State,
    serial: u64,
    accepts_since_rebind: u64,
    /// The serial that the last rebind gave it; zero before the first.
    serial_of_rebind: u64,
}

impl Listener {
    /// Not yet registered.
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Unregistered,
            serial: 0,
            accepts_since_rebind: 0,
            serial_of_rebind: 0,
        }
    }

    /// Notes the wish to rearm. Returns whether it has to be asked for, which it has not when that
    /// is under way.
    pub(crate) fn want_rearm(&mut self) -> bool {
        match self.state {
            State::Unregistered | State::Listening => {
                self.state = State::Rearming;
                true
            }
            State::Rearming => false,
        }
    }

    /// It is in the poll set, newly or again.
    pub(crate) fn handle_registered(&mut self) {
        self.state = State::Listening;
        self.serial += 1;
    }

    /// It was registered as a step of a rebind: connections accepted from now on are of the new
    /// generation.
    pub(crate) fn handle_rebound(&mut self) {
        self.handle_registered();
        self.serial_of_rebind = self.serial;
        self.accepts_since_rebind = 0;
    }

    /// Registering failed; the listener is out of the poll set.
    pub(crate) fn handle_failed(&mut self) {
        self.state = State::Unregistered;
    }

    /// A connection was accepted. Returns the serial that it carries from now on.
    pub(crate) fn handle_accepted(&mut self) -> u64 {
        self.accepts_since_rebind += 1;
        self.serial
    }

    /// How often it has been registered.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Connections accepted since the last rebind.
    pub(crate) fn accepts_since_rebind(&self) -> u64 {
        self.accepts_since_rebind
    }

    /// Whether a connection with this serial was accepted after the last rebind.
    pub(crate) fn is_fresh(&self, accepted_under: u64) -> bool {
        accepted_under >= self.serial_of_rebind
    }
}

impl Agent {
    /// The listener was registered, newly or again, or could not be. Answers
    /// [`Action::RearmListener`].
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

    /// Something may have happened to the whole machine: has the listener looked after.
    pub(crate) fn wake_listener(&mut self) {
        // A rebind that has not come to its listener yet will do the same.
        if !self.rebinds.will_rearm() {
            self.rearm_listener();
        }
    }

    /// Asks for the listener to be taken out of the poll set and put back, unless that is asked for
    /// already.
    pub(crate) fn rearm_listener(&mut self) {
        self.timers.stop(Timer::Listener);
        if self.listener.want_rearm() {
            self.counters.rearms += 1;
            self.actions.push_back(Action::RearmListener);
        }
    }

    /// Connections had to be closed unseen to empty the accept queue.
    pub fn handle_accept_shed(&mut self) {
        self.counters.accepts_shed += 1;
    }

    /// Accepting failed for want of resources; the queue may hold more.
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
        // A reset after the rebind must not make a probe under way fail.
        assert!(listener.want_rearm());
        listener.handle_registered();
        assert!(listener.is_fresh(fresh));
        assert_eq!((listener.serial(), listener.accepts_since_rebind()), (3, 1));
    }
}
