//! Deadlines: what they are for, and which comes first. No clock.
//!
//! Some timers count the time of sessions, which stands still while the guest is between two names:
//! around a snapshot nobody can come back for a session, and a clone may find hours gone. These are
//! paused as a whole and go on with what was left.
//!
//! Invariants:
//! - Each timer has at most one deadline; setting it again moves it.
//! - With no timer set there is no deadline, and the loop sleeps until an event comes. An idle
//!   agent has none, unless it is to watch the metadata service.
//! - A paused timer has no deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ids::{ConnectionId, SessionId};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// The peer has sent no complete HELLO.
    Hello(ConnectionId),
    /// A closing connection still has bytes that its peer does not take.
    Linger(ConnectionId),
    /// A reaped command's output is still held open by another process.
    Grace(SessionId),
    /// Nobody has come back for a session that lost its owner.
    Abandon(SessionId),
    /// A session has run as long as it may.
    Timeout(SessionId),
    /// Time to act on the end of the workload: to start it again, or to end with it.
    Workload,
    /// Time to look at the metadata service, or to give up a look.
    Mmds,
    /// A session that was told to end has not.
    Kill(SessionId),
    /// Accepting failed for want of descriptors or memory, or the listener could not be registered.
    Listener,
    /// Time for another BUSY.
    BusyReport,
    /// Draining sessions for QUIESCE has taken as long as the host allows.
    Drain,
    /// Time to look again whether the console is out.
    ConsolePoll,
    /// The console has not drained.
    ConsoleLimit,
    /// One more part of the wait for a host frame since QUIESCED is over.
    HostSilence,
    /// The probe that usually follows a rebind has not come.
    LogHold,
    /// A program has waited for a snapshot as long as it will.
    Checkpoint(ConnectionId),
    /// Time for another PROGRESS to whoever waits.
    ProgressReport,
    /// Sessions have had their time to end before the machine does.
    Shutdown,
    /// Connections have had their time to take the last frames before the machine ends.
    FinalFlush,
}

impl Timer {
    /// Whether it counts the time of sessions.
    fn is_pausable(self) -> bool {
        match self {
            Self::Abandon(_)
            | Self::Timeout(_)
            | Self::Workload
            | Self::Mmds
            | Self::Checkpoint(_) => true,
            Self::Hello(_)
            | Self::Linger(_)
            | Self::Grace(_)
            | Self::Kill(_)
            | Self::Listener
            | Self::BusyReport
            | Self::Drain
            | Self::ConsolePoll
            | Self::ConsoleLimit
            | Self::HostSilence
            | Self::LogHold
            | Self::ProgressReport
            | Self::Shutdown
            | Self::FinalFlush => false,
        }
    }
}

/// All deadlines.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Timers {
    by_timer: BTreeMap<Timer, Instant>,
    by_time: BTreeSet<(Instant, Timer)>,
    /// While the time of sessions stands still: what is left of each timer that counts it.
    paused: Option<Vec<(Timer, Duration)>>,
}

impl Timers {
    /// Sets or moves a deadline to some time from now. If the timer counts the time of sessions and
    /// that stands still, it begins to count when time goes on.
    pub(super) fn set_after(&mut self, timer: Timer, delay: Duration, now: Instant) {
        self.stop(timer);
        match &mut self.paused {
            Some(paused) if timer.is_pausable() => paused.push((timer, delay)),
            Some(_) | None => self.set(timer, now + delay),
        }
    }

    /// Lets the time of sessions stand still. Twice is the same as once.
    pub(super) fn pause(&mut self, now: Instant) {
        let mut paused = self.paused.take().unwrap_or_default();
        let pausable = self
            .by_timer
            .iter()
            .filter(|(timer, _)| timer.is_pausable());
        let pausable: Vec<_> = pausable.map(|(timer, at)| (*timer, *at)).collect();
        for (timer, at) in pausable {
            self.stop(timer);
            paused.push((timer, at.saturating_duration_since(now)));
        }
        self.paused = Some(paused);
    }

    /// Lets the time of sessions go on, with what was left of each timer.
    pub(super) fn resume(&mut self, now: Instant) {
        for (timer, left) in self.paused.take().unwrap_or_default() {
            self.set(timer, now + left);
        }
    }

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
        if let Some(paused) = &mut self.paused {
            paused.retain(|(other, _)| *other != timer);
        }
    }

    /// How long until a deadline, if it is set.
    pub(super) fn left(&self, timer: Timer, now: Instant) -> Option<Duration> {
        let at = self.by_timer.get(&timer)?;
        Some(at.saturating_duration_since(now))
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

    #[test]
    fn timers_expire_in_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        assert_eq!(timers.next_timeout(), None);
        timers.set(Timer::BusyReport, at(20));
        timers.set(Timer::Drain, at(10));
        timers.set(Timer::HostSilence, at(30));
        assert_eq!(timers.next_timeout(), Some(at(10)));
        assert_eq!(timers.expire(at(9)), None);
        assert_eq!(timers.expire(at(10)), Some(Timer::Drain));
        timers.stop(Timer::BusyReport);
        assert_eq!(timers.expire(at(29)), None);
        timers.set(Timer::HostSilence, at(40));
        assert_eq!(timers.expire(at(39)), None);
        assert_eq!(timers.expire(at(40)), Some(Timer::HostSilence));
        assert_eq!(timers.next_timeout(), None);
    }

    #[test]
    fn the_time_of_sessions_stands_still_and_goes_on() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let session = SessionId::from_number(1);
        let (abandon, timeout) = (Timer::Abandon(session), Timer::Timeout(session));
        let mut timers = Timers::default();
        timers.set_after(abandon, Duration::from_millis(100), at(0));
        timers.set_after(Timer::BusyReport, Duration::from_millis(50), at(0));
        timers.pause(at(30));
        timers.set_after(timeout, Duration::from_millis(10), at(40));
        timers.set_after(Timer::Workload, Duration::from_millis(10), at(40));
        timers.stop(Timer::Workload);
        timers.pause(at(45));
        assert_eq!(
            timers.next_timeout(),
            Some(at(50)),
            "what is not a session's goes on"
        );
        // Hours later.
        let hour = 3_600_000;
        assert_eq!(timers.expire(at(hour)), Some(Timer::BusyReport));
        assert_eq!(timers.expire(at(hour)), None);
        timers.resume(at(hour));
        assert_eq!(timers.expire(at(hour + 10)), Some(timeout));
        assert_eq!(timers.expire(at(hour + 69)), None);
        assert_eq!(timers.expire(at(hour + 70)), Some(abandon));
        assert_eq!(timers.next_timeout(), None);
    }
}
