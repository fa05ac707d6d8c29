//! When a session's client retries, pings and gives up.

use std::time::{Duration, Instant};

use super::error::{Fate, SessionError};
use super::request::Request;
use super::{SessionClient, State};
use crate::message::{Exited, Message, Ping};

/// How long the first attempt waits for HELLO, and then for the answer to a request that was sent
/// after it. A guest that answered a HELLO has the request that was in the same write.
pub const SILENCE_FIRST: Duration = Duration::from_secs(1);

/// How long an attempt waits so at most. Each timeout doubles the wait of the next attempt
/// up to this.
pub const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Longest pause between two attempts that fail at once. The first retry has none.
pub const PAUSE_MAX: Duration = Duration::from_millis(64);

/// How long a guest may be quiet before the client sends a PING, and how long the answer may take.
/// After that the connection counts as dead, even if the transport reports nothing.
pub const QUIET_MAX: Duration = Duration::from_secs(10);

/// How long a guest may be silent while it ends a command at the time limit.
pub const SIGN_MAX: Duration = Duration::from_secs(1);

/// How long the client waits by default for a guest to be reachable again after a cut. A guest that
/// was cut for a snapshot waits as long for its host.
pub const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// Age from which the end of a connection counts as a new cut, and not as a repetition of the last
/// one. A younger connection counts as well if it has brought anything.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// How long writing EXIT_ACK may take. The guest can do without it.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(1);

impl SessionClient {
    /// When the client gives up in its present state, and with which error.
    fn limit(&self) -> Option<(Instant, SessionError)> {
        let end = |error| self.end_limit().map(|end| (end, error));
        let earlier = match &self.state {
            State::Finished(_) => return None,
            State::Leaving { exited, .. } => {
                return end(SessionError::Undelivered(Box::new(*exited)));
            }
            State::Attached { .. } => None,
            State::Idle { .. } | State::Greeting { .. } | State::Waiting { .. } => {
                match (&self.started, self.absent_since) {
                    (Some(_), Some(since)) => {
                        let absence_max = self.deadlines.absence_max;
                        absence_max.map(|max| (since + max, SessionError::Absent(self.fate)))
                    }
                    (None, _) | (Some(_), None) => {
                        self.deadlines.start.map(|at| (at, self.refused_or_late()))
                    }
                }
            }
        };
        let end = end(self.refused_or_late());
        match (earlier, end) {
            (Some(earlier), Some(end)) if end.0 < earlier.0 => Some(end),
            (Some(limit), _) | (None, Some(limit)) => Some(limit),
            (None, None) => None,
        }
    }

    /// When the client gives up at the end of its time.
    ///
    /// A guest that ends the command itself then gets the grace time for it, but only while it
    /// shows signs of life: one that does not answer must not cost more time than the caller gave.
    fn end_limit(&self) -> Option<Instant> {
        let end = self.deadlines.end?;
        let is_attached = self.is_attached();
        if self.end_grace.is_zero() || !(is_attached || self.has_ended()) {
            return Some(end);
        }
        let limit = match self.pinged_at {
            // Not the guest is slow, but the reader of its output.
            _ if !is_attached || !self.wants_read() => self.heard_at + SIGN_MAX,
            Some(at) if at < end => end,
            Some(at) => at + SIGN_MAX,
            None => end + self.end_grace,
        };
        Some(limit.clamp(end, end + self.end_grace))
    }

    /// When a quiet guest is asked for a sign of life: after a while, and shortly before the end of
    /// the client's time, whatever it has sent before.
    pub(super) fn ping_due(&self) -> Instant {
        let due = self.heard_at + QUIET_MAX;
        match self.check_at() {
            Some(_) if self.is_checked => due.min(self.heard_at + SIGN_MAX),
            Some(check_at) => due.min(check_at.max(self.heard_at)),
            None => due,
        }
    }

    /// When it must be known whether the guest lives; `None` if the end does not depend on it.
    fn check_at(&self) -> Option<Instant> {
        let end = self.deadlines.end.filter(|_| !self.end_grace.is_zero())?;
        self.is_attached()
            .then(|| end.checked_sub(SIGN_MAX).unwrap_or(end))
    }

    /// The error at the deadline: the guest's latest refusal, if it only refused.
    fn refused_or_late(&self) -> SessionError {
        match &self.refusal {
            Some(fail) if self.started.is_none() => SessionError::Refused {
                fail: fail.clone(),
                fate: self.known_fate(),
            },
            _ => self
                .known_fate()
                .map_or(SessionError::Unanswered, SessionError::Deadline),
        }
    }

    /// What is known about the command: nothing until an ATTACH is answered.
    #[must_use]
    pub fn known_fate(&self) -> Option<Fate> {
        match &self.request {
            Request::Attach { .. } if self.started.is_none() => None,
            Request::Attach { .. } | Request::Exec { .. } => Some(self.fate),
        }
    }

    /// Lets the command's own time limit end with the client's, however late the guest hears of it.
    pub(super) fn limit_request(&mut self, now: Instant) {
        if let Some(end) = self.deadlines.end {
            self.request.limit(end.saturating_duration_since(now));
        }
    }

    /// The earlier of `at` and the time when the client gives up.
    pub(super) fn limited(&self, at: Instant) -> Instant {
        self.limit().map_or(at, |(limit, _)| limit.min(at))
    }

    pub(super) fn check_limits(&mut self, now: Instant) {
        if let Some((limit, error)) = self.limit()
            && now >= limit
        {
            self.finish(Err(error));
        }
    }

    /// The attempt failed: makes another one after a pause, which doubles each time.
    pub(super) fn retry(&mut self, now: Instant) {
        self.refusal = None;
        if self.is_shutting_down {
            let fate = self.fate;
            self.finish(Err(SessionError::ShutDown(fate)));
            return;
        }
        let at = now + self.pause;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
        self.set_state(State::Idle { at });
    }

    /// Bytes of output of both streams that the driver has not passed on.
    pub(super) fn backlog(&self) -> u64 {
        let [stdout, stderr] = &self.outputs;
        stdout.backlog().saturating_add(stderr.backlog())
    }

    /// Asks for a sign of life. The connection is quiet, so this also acknowledges all output that
    /// was passed on and empties the guest's rings.
    pub(super) fn ping(&mut self, now: Instant) {
        self.ping_count += 1;
        self.pinged_at = Some(now);
        self.is_checked = self.check_at().is_some_and(|at| now >= at);
        let nonce = self.ping_count;
        Message::Ping(Ping { nonce }).encode_into(&mut self.out);
        self.send_acks(1);
    }

    pub(super) fn finish(&mut self, result: Result<Exited, SessionError>) {
        self.set_state(State::Finished(result));
    }

    pub(super) fn set_state(&mut self, state: State) {
        log::debug!("session client: {} -> {}", self.state.name(), state.name());
        self.state = state;
    }
}
