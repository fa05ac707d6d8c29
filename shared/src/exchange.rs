//! The host's side of a request with one completion frame: attempts, deadlines, and which frame
//! must come next. No I/O, no clock.
//!
//! ```text
//!             poll           answer to the request
//! Idle(at) ─────────▶ Open ───────────────────────▶ Finished
//!    ▲                  │                              ▲
//!    │ closed: at once, │ silence: a longer attempt    │ final refusal,
//!    └──────────────────┘                              │ broken protocol, deadline
//!    └─────────────────────────────────────────────────┘
//! ```
//!
//! The driver asks [`Exchange::poll`] what to do, does it, and reports the result. REBIND, PROBE
//! and QUIESCE may be sent any number of times: the guest answers every copy and acts on one. So an
//! attempt without an answer is repeated on a fresh connection.
//!
//! Invariants:
//! - At most one connection is open. On [`Want::Connect`], [`Want::Pause`] and a failed
//!   [`Want::Finished`] the driver drops the earlier one.
//! - No want reaches beyond the overall deadline. Reaching it is a failure, never a success.
//! - Only the completion frame of this very request completes it.

mod attempt;
mod error;
mod request;

use std::time::{Duration, Instant};

pub use attempt::{ATTEMPTS_KEPT_MAX, Attempt, AttemptEnd};
pub use error::ExchangeError;
pub use request::Request;

use attempt::Attempts;

use crate::frame::Decoder;
use crate::id::Nonce;
use crate::message::{Fail, FailCode, Hello, Message, Role};

/// How long the first attempt waits for an answer. A healthy guest answers within a few ms; an
/// attempt times out when the transport has lost the connection without reporting it.
pub const SILENCE_FIRST: Duration = Duration::from_millis(100);

/// How long an attempt waits at most. Each timeout doubles the wait of the next attempt up to this.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);

/// How long an attempt waits after PROGRESS or BUSY, which a guest sends once a second and a slow
/// guest later.
pub const SIGN_SILENCE_MAX: Duration = Duration::from_secs(3);

/// Longest pause after a connection that the guest closed at once. The first such close has no
/// pause. A guest that keeps closing has no listener yet: asking it less often does not slow its
/// boot down.
pub const PAUSE_MAX: Duration = Duration::from_millis(64);

/// What the driver should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Open a fresh connection and write [`Exchange::flight`] to it in one write.
    Connect {
        /// End of the attempt, unless it was answered.
        until: Instant,
    },
    /// Read from the open connection.
    Read {
        /// When to call [`Exchange::handle_timeout`] if no bytes have come.
        until: Instant,
    },
    /// Wait without a connection.
    Pause {
        /// When to poll again.
        until: Instant,
    },
    /// Nothing more; see [`Exchange::into_result`].
    Finished,
}

#[derive(Debug, Clone, Hash)]
enum State {
    /// No connection; the next attempt is due at `at`.
    Idle {
        at: Instant,
    },
    /// A connection is wanted or open. The attempt ends at `until`.
    Open {
        started_at: Instant,
        until: Instant,
        wanted: bool,
        nonce: Option<Nonce>,
    },
    Finished(Box<Result<Message, ExchangeError>>),
}

/// One request from its first attempt to its result. The module documents the contract.
#[derive(Debug, Clone, Hash)]
pub struct Exchange {
    request: Request,
    host_version: String,
    deadline: Instant,
    state: State,
    decoder: Decoder,
    hello: Option<Hello>,
    /// Whether HELLO was received in this attempt.
    is_greeted: bool,
    silence: Duration,
    pause: Duration,
    attempt_count: u32,
    attempts: Attempts,
    last_end: Option<AttemptEnd>,
}

impl Exchange {
    /// Starts a request now. It must be answered by `deadline`.
    #[must_use]
    pub fn new(request: Request, host_version: &str, now: Instant, deadline: Instant) -> Self {
        Self {
            request,
            host_version: host_version.to_owned(),
            deadline,
            state: State::Idle { at: now },
            decoder: Decoder::new(),
            hello: None,
            is_greeted: false,
            silence: SILENCE_FIRST,
            pause: Duration::ZERO,
            attempt_count: 0,
            attempts: Attempts::default(),
            last_end: None,
        }
    }

    /// Lets the first attempt wait for `silence` instead of [`SILENCE_FIRST`], for transports that
    /// are known to be slow or to lose connections.
    #[must_use]
    pub fn with_first_silence(mut self, silence: Duration) -> Self {
        self.silence = silence.min(SILENCE_MAX);
        self
    }

    /// What the driver should do now.
    pub fn poll(&mut self, now: Instant) -> Want {
        if !matches!(self.state, State::Finished(_)) && now >= self.deadline {
            self.end_attempt(AttemptEnd::Silent, now);
            self.finish(Err(self.deadline_error()));
        }
        match &mut self.state {
            State::Idle { at } if now < *at => Want::Pause {
                until: (*at).min(self.deadline),
            },
            State::Idle { .. } => {
                let until = (now + self.silence).min(self.deadline);
                self.decoder = Decoder::new();
                self.is_greeted = false;
                self.attempt_count = self.attempt_count.saturating_add(1);
                self.state = State::Open {
                    started_at: now,
                    until,
                    wanted: false,
                    nonce: None,
                };
                Want::Connect { until }
            }
            State::Open {
                until,
                wanted: false,
                ..
            } => Want::Connect { until: *until },
            State::Open {
                until,
                wanted: true,
                ..
            } => Want::Read { until: *until },
            State::Finished(_) => Want::Finished,
        }
    }

    /// HELLO and the request, for one write on the connection that was just opened.
    ///
    /// `wall_clock_ns` is the host's clock in ns since 1970 UTC, read just before the write.
    /// `nonce` was drawn for this attempt.
    pub fn flight(&mut self, wall_clock_ns: u64, nonce: Nonce) -> Vec<u8> {
        if let State::Open {
            wanted,
            nonce: current,
            ..
        } = &mut self.state
        {
            *wanted = true;
            *current = Some(nonce);
        }
        let attempt = self.attempt_count;
        let request = self.request.to_message(attempt, wall_clock_ns, nonce);
        let mut bytes = Message::Hello(Hello::host(&self.host_version)).encode();
        request.encode_into(&mut bytes);
        bytes
    }

    /// Bytes were read from the open connection.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        if !matches!(self.state, State::Open { .. }) {
            return;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        decoder.push(bytes);
        while matches!(self.state, State::Open { .. }) {
            let message = match decoder.poll_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => Message::parse(frame, Role::Guest).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match message {
                Ok(message) => self.handle_message(message, now),
                Err(text) => self.fail_protocol(text, now),
            }
        }
        self.decoder = decoder;
    }

    /// The connection could not be made, or it ended for any reason. That decides nothing: the same
    /// request is sent again on a fresh one.
    pub fn handle_closed(&mut self, now: Instant) {
        if matches!(self.state, State::Open { .. }) {
            self.end_attempt(AttemptEnd::Closed, now);
            self.retry_after_pause(now);
        }
    }

    /// The time of the last [`Want`] was reached. Early or repeated calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let State::Open { until, .. } = self.state
            && now >= until
            && now < self.deadline
        {
            self.end_attempt(AttemptEnd::Silent, now);
            self.silence = (self.silence * 2).min(SILENCE_MAX);
            self.pause = Duration::ZERO;
            self.state = State::Idle { at: now };
        }
    }

    /// The guest's latest HELLO.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// The first [`ATTEMPTS_KEPT_MAX`] attempts that ended.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.attempts.as_slice()
    }

    /// Number of attempts begun, the open one included.
    #[must_use]
    pub const fn attempt_count(&self) -> u32 {
        self.attempt_count
    }

    /// The completion frame, or why there is none. An unfinished exchange counts as one whose
    /// deadline has passed.
    pub fn into_result(self) -> Result<Message, ExchangeError> {
        let unfinished = self.deadline_error();
        match self.state {
            State::Finished(result) => *result,
            State::Idle { .. } | State::Open { .. } => Err(unfinished),
        }
    }

    fn handle_message(&mut self, message: Message, now: Instant) {
        match message {
            Message::Hello(hello) => self.handle_hello(hello, now),
            Message::Fail(fail) => self.handle_fail(fail, now),
            // The guest is about to cut this connection. The close that follows decides. SEVER may
            // come before HELLO, when a slow guest sees two attempts at once.
            Message::Sever(_) => {}
            message if !self.is_greeted => {
                self.fail_protocol(format!("{} before HELLO", message.kind()), now);
            }
            // Both are only signs of life: the attempt may wait as long again.
            Message::Progress(_) | Message::Busy(_) => {
                if let State::Open { until, .. } = &mut self.state {
                    *until = (now + SIGN_SILENCE_MAX).min(self.deadline);
                }
            }
            message => match self.check_answer(&message) {
                Ok(()) => {
                    self.end_attempt(AttemptEnd::Answered, now);
                    self.finish(Ok(message));
                }
                Err(text) => self.fail_protocol(text, now),
            },
        }
    }

    fn handle_hello(&mut self, hello: Hello, now: Instant) {
        if self.is_greeted || hello.role != Role::Guest {
            self.fail_protocol("unexpected HELLO".to_owned(), now);
            return;
        }
        let negotiated = hello.negotiate();
        self.is_greeted = true;
        self.hello = Some(hello);
        if let Err(error) = negotiated {
            self.fail(ExchangeError::Version(error), now);
        }
    }

    fn handle_fail(&mut self, fail: Fail, now: Instant) {
        match fail.code {
            FailCode::Refusing | FailCode::Limit if !self.request.is_final(fail.code) => {
                self.end_attempt(AttemptEnd::Refused(fail.code), now);
                self.retry_after_pause(now);
            }
            FailCode::Refusing
            | FailCode::Limit
            | FailCode::Version
            | FailCode::Protocol
            | FailCode::NoSession
            | FailCode::Unknown
            | FailCode::Stale
            | FailCode::Superseded
            | FailCode::NotFound
            | FailCode::NotRunnable
            | FailCode::Rebind
            | FailCode::Probe
            | FailCode::Unsupported
            | FailCode::Internal => {
                self.fail(
                    ExchangeError::Refused {
                        request: self.request.kind(),
                        fail,
                    },
                    now,
                );
            }
        }
    }

    fn check_answer(&self, message: &Message) -> Result<(), String> {
        let nonce = match &self.state {
            State::Open { nonce, .. } => *nonce,
            State::Idle { .. } | State::Finished(_) => None,
        };
        self.request.check_answer(message, nonce)
    }

    fn retry_after_pause(&mut self, now: Instant) {
        self.state = State::Idle {
            at: now + self.pause,
        };
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
    }

    fn fail(&mut self, error: ExchangeError, now: Instant) {
        self.end_attempt(AttemptEnd::Failed, now);
        self.finish(Err(error));
    }

    fn fail_protocol(&mut self, text: String, now: Instant) {
        let request = self.request.kind();
        self.fail(ExchangeError::Protocol { request, text }, now);
    }

    fn finish(&mut self, result: Result<Message, ExchangeError>) {
        self.state = State::Finished(Box::new(result));
    }

    /// Records the end of the open attempt, if any.
    fn end_attempt(&mut self, end: AttemptEnd, now: Instant) {
        let State::Open { started_at, .. } = self.state else {
            return;
        };
        self.last_end = Some(end);
        log::debug!(
            "{} attempt {}: {end}",
            self.request.kind(),
            self.attempt_count
        );
        self.attempts.push(Attempt {
            started_at,
            ended_at: now,
            end,
        });
    }

    fn deadline_error(&self) -> ExchangeError {
        ExchangeError::Deadline {
            request: self.request.kind(),
            attempts: self.attempt_count,
            last: self.last_end,
        }
    }
}

#[cfg(test)]
mod tests;
