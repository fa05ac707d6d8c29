//! Deadlines: what they are for, and which comes first. No clock.
//!
//! Invariants:
//! - Each timer has at most one deadline; setting it again moves it.
//! - With no timer set there is no deadline, and the loop sleeps until an event comes. An idle
//!   agent has none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::ids::{ConnectionId, SessionId};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The peer has sent no complete HELLO.
    Hello(ConnectionId),
    /// A closing connection still has bytes that its peer does not take.
    Linger(ConnectionId),
    /// A reaped command's output is still held open by another process.
    Grace(SessionId),
    /// Nobody has come back for a session that lost its connection.
    Abandon(SessionId),
    /// A session that was told to end has not.
    Kill(SessionId),
    /// Accepting failed for want of descriptors or memory, or the listener could not be registered.
    Listener,
    /// Time for another BUSY.
    Busy,
    /// Draining sessions for QUIESCE has taken as long as the host allows.
    Drain,
    /// Time to look again whether the console is out.
    ConsolePoll,
    /// The console has not drained.
    ConsoleLimit,
    /// One more part of the wait for a host frame since QUIESCED is over.
    Silence,
    /// The probe that usually follows a rebind has not come.
    Hush,
    /// Sessions have had their time to end before the machine does.
    Shutdown,
    /// Connections have had their time to take the last frames before the machine ends.
    Farewell,
}

/// All deadlines.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_timer: BTreeMap<Timer, Instant>,
    by_time: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.stop(timer);
        self.by_timer.insert(timer, at);
        self.by_time.insert((at, timer));
    }

    /// Removes a deadline, if there is one.
    pub(super) fn stop(&mut self, timer: Timer) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// Whether a deadline is set.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.by_timer.contains_key(&timer)
    }

    /// The earliest deadline.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes and returns one timer whose deadline has come, the earliest first.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Timer> {
        let &(at, timer) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.stop(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timers_expire_in_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        assert_eq!(timers.next_timeout(), None);
        timers.set(Timer::Busy, at(20));
        timers.set(Timer::Drain, at(10));
        timers.set(Timer::Silence, at(30));
        assert_eq!(timers.next_timeout(), Some(at(10)));
        assert_eq!(timers.expire(at(9)), None);
        assert_eq!(timers.expire(at(10)), Some(Timer::Drain));
        timers.stop(Timer::Busy);
        assert_eq!(timers.expire(at(29)), None);
        timers.set(Timer::Silence, at(40));
        assert_eq!(timers.expire(at(39)), None);
        assert_eq!(timers.expire(at(40)), Some(Timer::Silence));
        assert_eq!(timers.next_timeout(), None);
    }
}
