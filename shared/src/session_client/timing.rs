//! When a session's client tries again, and when it gives up.

use super::{
    ANSWERS_LEN_MAX, Ack, Exited, Fate, Instant, Message, Request, SessionClient, SessionError,
    Signal, State, Stream,
};

impl SessionClient {
    /// When the client gives up as things stand, and with what error.
    fn limit(&self) -> Option<(Instant, SessionError)> {
        let end = |error| self.deadlines.end.map(|end| (end, error));
        let earlier = match &self.state {
            State::Finished(_) => return None,
            State::Leaving { exited, .. } => {
                return end(SessionError::Undelivered(Box::new(*exited)));
            }
            State::Attached { .. } => None,
            State::Idle { .. } | State::Greeting { .. } | State::Waiting => {
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

    /// A guest that says "not now" until the deadline has given a reason.
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

    /// What is known of the command: nothing as long as an ATTACH was not answered.
    pub(super) fn known_fate(&self) -> Option<Fate> {
        match &self.request {
            Request::Attach { .. } if self.started.is_none() => None,
            Request::Attach { .. } | Request::Exec { .. } => Some(self.fate),
        }
    }

    /// `at`, or when the client gives up if that is earlier.
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

    /// The attempt failed: another one, after a pause that grows.
    pub(super) fn retry(&mut self, now: Instant) {
        self.refusal = None;
        if self.is_shutting_down {
            let fate = self.fate;
            self.finish(Err(SessionError::ShutDown(fate)));
            return;
        }
        let at = now + self.pause;
        self.grow_pause();
        self.set_state(State::Idle { at });
    }

    /// Output that has come and was not handed on, of both streams.
    pub(super) fn backlog(&self) -> u64 {
        let [stdout, stderr] = &self.outputs;
        stdout.backlog().saturating_add(stderr.backlog())
    }

    /// Tells the guest what was handed on, of streams of which that is `len_min` bytes or more.
    pub(super) fn send_acks(&mut self, len_min: u64) {
        let has_room = self.unwritten_len() < ANSWERS_LEN_MAX;
        if !self.is_attached() || !self.request.is_owner() || !has_room {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(offset) = self.outputs[stream.index()].take_ack(len_min) {
                Message::Ack(Ack { stream, offset }).encode_into(&mut self.out);
            }
        }
    }

    pub(super) fn send_signals(&mut self) {
        if !self.is_attached() {
            return;
        }
        for &number in self.signals.iter().skip(self.signals_sent) {
            let session = None;
            Message::Signal(Signal { session, number }).encode_into(&mut self.out);
        }
        self.signals_sent = self.signals.len();
    }

    pub(super) fn finish(&mut self, result: Result<Exited, SessionError>) {
        self.set_state(State::Finished(result));
    }

    pub(super) fn set_state(&mut self, state: State) {
        log::debug!("session client: {} -> {}", self.state.name(), state.name());
        self.state = state;
    }
}
