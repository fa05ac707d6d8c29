//! Deadlines: their purposes, and which comes first. No clock.
//!
//! Some timers count *session time*, which stands still from QUIESCE or REBIND until REOPEN or
//! REBOUND: no client can come back to a session meanwhile, and a clone may find that hours have
//! passed. These timers pause together and continue with what was left.
//!
//! Invariants:
//! - Each timer has at most one deadline; setting it again moves it.
//! - Without a timer there is no deadline, and the loop sleeps until an event comes. An idle agent
//!   has none, unless it watches the metadata service or a child of it runs.
//! - A paused timer has no deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ids::{ConnectionId, SessionId};

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// The peer has sent no complete HELLO.
    Hello(ConnectionId),
    /// A closing connection still has bytes that its peer does not read.
    Linger(ConnectionId),
    /// Another process still holds a reaped command's output open.
    Grace(SessionId),
    /// No client has come back to a session that lost its owner.
    Abandon(SessionId),
    /// A session has reached its time limit.
    Timeout(SessionId),
    /// Acts on the end of the workload: starts it again, or ends the machine.
    Workload,
    /// Asks the metadata service, or ends a question that has no answer.
    Mmds,
    /// A session was told to end and has not.
    Kill(SessionId),
    /// Looks at sources whose edge may have been lost: a child runs, or one of them has failed.
    Check,
    /// Accepting failed for lack of descriptors or memory, or registering the listener failed.
    Listener,
    /// Sends another BUSY.
    BusyReport,
    /// Draining sessions for QUIESCE has taken as long as the host allows.
    Drain,
    /// Checks again whether the console has sent everything.
    ConsolePoll,
    /// The console has not sent everything in time.
    ConsoleLimit,
    /// One interval without a frame from a host since QUIESCED is over.
    HostSilence,
    /// Log lines are held back for the probe that usually follows a rebind; it has not come.
    LogHold,
    /// A program at a checkpoint has reached its time limit.
    Checkpoint(ConnectionId),
    /// Sends another PROGRESS to the hosts that wait.
    ProgressReport,
    /// Sessions have had their time to end before the machine does.
    Shutdown,
    /// Connections have had their time to read the last frames before the machine ends.
    FinalFlush,
}

impl Timer {
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
            | Self::Check
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

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Timers {
    by_timer: BTreeMap<Timer, Instant>,
    by_time: BTreeSet<(Instant, Timer)>,
    /// While session time stands still: the rest of each timer that counts it.
    paused: Option<Vec<(Timer, Duration)>>,
}

impl Timers {
    /// Sets or moves a deadline. A timer that counts session time starts when that continues.
    pub(super) fn set_after(&mut self, timer: Timer, delay: Duration, now: Instant) {
        self.stop(timer);
        match &mut self.paused {
            Some(paused) if timer.is_pausable() => paused.push((timer, delay)),
            Some(_) | None => self.set(timer, now + delay),
        }
    }

    /// Stops session time. Twice is the same as once.
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

    /// Continues session time, with what was left of each timer.
    pub(super) fn resume(&mut self, now: Instant) {
        for (timer, left) in self.paused.take().unwrap_or_default() {
            self.set(timer, now + left);
        }
    }

    /// Sets or moves a deadline, without regard to session time.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.stop(timer);
        self.by_timer.insert(timer, at);
        self.by_time.insert((at, timer));
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
        if let Some(paused) = &mut self.paused {
            paused.retain(|(other, _)| *other != timer);
        }
    }

    pub(super) fn left(&self, timer: Timer, now: Instant) -> Option<Duration> {
        let at = self.by_timer.get(&timer)?;
        Some(at.saturating_duration_since(now))
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.by_timer.contains_key(&timer)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The same without [`Timer::Check`].
    pub(super) fn next_timeout_but_checks(&self) -> Option<Instant> {
        let mut timers = self.by_time.iter();
        let next = timers.find(|(_, timer)| *timer != Timer::Check);
        next.map(|(at, _)| *at)
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
    fn session_time_stands_still_and_continues() {
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
        assert_eq!(timers.next_timeout(), Some(at(50)), "other timers run on");
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
