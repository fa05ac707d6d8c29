//! The host's side of a request with one completion frame: attempts, deadlines, and which frame
//! comes next. No I/O, no clock.
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
//! A driver asks [`Exchange::poll`] what is wanted, does it, and reports what came of it. REBIND,
//! PROBE and QUIESCE may be resent as often as needed, because the guest answers every copy and
//! acts on one, so an attempt that hears nothing is simply made again on a fresh connection.
//!
//! Invariants:
//! - At most one connection is open; [`Want::Connect`], [`Want::Pause`] and a failed
//!   [`Want::Finished`] mean that the driver has dropped the earlier one.
//! - Nothing is wanted beyond the overall deadline, and reaching it is a failure, never success.
//! - Only the completion frame that names this very request completes it.

mod attempt;
mod error;

use std::time::{Duration, Instant};

pub use error::ExchangeError;

use crate::frame::{Decoder, FrameKind};
use crate::id::{Generation, Nonce};
use crate::message::{
    AwaitCheckpoint, Depth, Fail, FailCode, Hello, Hooks, Message, Policy, Probe, Quiesce, Rebind,
    Reopen, Role, SessionsRequest, Shutdown, Signal,
};

pub use attempt::{ATTEMPTS_KEPT_MAX, Attempt, AttemptEnd};

use attempt::Attempts;

/// How long the first attempt may be silent. A healthy guest answers in single milliseconds; what
/// this answers is a connection that the transport lost without saying so.
pub const SILENCE_FIRST: Duration = Duration::from_millis(100);

/// How long an attempt may be silent at most. Each silent attempt doubles the next one up to here.
pub const SILENCE_MAX: Duration = Duration::from_secs(1);

/// The same after PROGRESS or BUSY, which a guest sends once a second, and a slow one later.
pub const SIGN_SILENCE_MAX: Duration = Duration::from_secs(3);

/// Longest pause after a connection that was closed at once. The first such close is answered
/// without any pause; only a guest that keeps closing (its listener is not there yet) is asked
/// less and less often, so that a booting guest is not slowed down by its own host.
pub const PAUSE_MAX: Duration = Duration::from_millis(64);

/// A request that is answered by one completion frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    /// Become usable under a name. The wall clock and attempt are filled in for each attempt.
    Rebind(Rebind),
    /// Prove that commands can run. Each attempt has a nonce of its own.
    Probe {
        /// The name the guest must have; `None` takes any.
        generation: Option<Generation>,
        /// How far to go.
        depth: Depth,
    },
    /// Be silent for a snapshot.
    Quiesce(Quiesce),
    /// No snapshot after all.
    Reopen(Reopen),
    /// Report figures.
    Info,
    /// List sessions.
    Sessions(SessionsRequest),
    /// Send a signal to a session. An attempt whose answer was lost is made again, so that the
    /// signal may arrive twice.
    Signal(Signal),
    /// End the guest.
    Shutdown(Shutdown),
    /// Wait for a program at a checkpoint.
    AwaitCheckpoint(AwaitCheckpoint),
    /// Run hooks.
    Hooks(Hooks),
}

impl Request {
    /// The frame that carries the request, which names it in messages.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Rebind(_) => FrameKind::Rebind,
            Self::Probe { .. } => FrameKind::Probe,
            Self::Quiesce(_) => FrameKind::Quiesce,
            Self::Reopen(_) => FrameKind::Reopen,
            Self::Info => FrameKind::Info,
            Self::Sessions(_) => FrameKind::Sessions,
            Self::Signal(_) => FrameKind::Signal,
            Self::Shutdown(_) => FrameKind::Shutdown,
            Self::AwaitCheckpoint(_) => FrameKind::AwaitCheckpoint,
            Self::Hooks(_) => FrameKind::Hooks,
        }
    }
}

/// What the driver should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Open a fresh connection and write [`Exchange::flight`] to it in one write.
    Connect {
        /// Give the attempt up when it has not been answered by then.
        until: Instant,
    },
    /// Wait for bytes on the open connection.
    Read {
        /// Call [`Exchange::handle_timeout`] when none have come by then.
        until: Instant,
    },
    /// Wait, without a connection.
    Pause {
        /// Poll again then.
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

/// One request on its way. See the module's text for the contract.
#[derive(Debug, Clone, Hash)]
pub struct Exchange {
    request: Request,
    host_version: String,
    deadline: Instant,
    state: State,
    decoder: Decoder,
    hello: Option<Hello>,
    /// Whether this attempt's HELLO has come.
    is_greeted: bool,
    silence: Duration,
    pause: Duration,
    attempt_count: u32,
    attempts: Attempts,
    last_end: Option<AttemptEnd>,
}

impl Exchange {
    /// A request that starts now and must be answered by `deadline`.
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

    /// Has the first attempt be silent for another time than [`SILENCE_FIRST`], where connections
    /// are known to get lost, or to be slow.
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
    /// `wall_clock_ns` is the host's clock, ns since 1970 UTC, read just before the write, and
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
        let request = match &self.request {
            Request::Rebind(rebind) => {
                let attempt = self.attempt_count;
                Message::Rebind(Rebind {
                    wall_clock_ns,
                    attempt,
                    ..rebind.clone()
                })
            }
            Request::Probe { generation, depth } => Message::Probe(Probe {
                generation: *generation,
                nonce,
                depth: *depth,
            }),
            Request::Quiesce(quiesce) => Message::Quiesce(*quiesce),
            Request::Reopen(reopen) => Message::Reopen(*reopen),
            Request::Info => Message::InfoRequest,
            Request::Sessions(request) => Message::SessionsRequest(*request),
            Request::Signal(signal) => Message::Signal(*signal),
            Request::Shutdown(shutdown) => Message::Shutdown(*shutdown),
            Request::AwaitCheckpoint(request) => Message::AwaitCheckpoint(request.clone()),
            Request::Hooks(hooks) => Message::Hooks(*hooks),
        };
        let mut bytes = Message::Hello(Hello::host(&self.host_version)).encode();
        request.encode_into(&mut bytes);
        bytes
    }

    /// Bytes came on the open connection.
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
                Err(text) => self.fail(self.protocol_error(text), now),
            }
        }
        self.decoder = decoder;
    }

    /// The connection could not be made, or it ended in whatever way. Never a verdict: the same
    /// request goes out again on a fresh one.
    pub fn handle_closed(&mut self, now: Instant) {
        if matches!(self.state, State::Open { .. }) {
            self.end_attempt(AttemptEnd::Closed, now);
            self.retry_after_pause(now);
        }
    }

    /// The instant of the last [`Want`] has come. Early or repeated calls do nothing.
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

    /// The latest HELLO of the guest.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// The first [`ATTEMPTS_KEPT_MAX`] attempts that have ended.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        self.attempts.as_slice()
    }

    /// Attempts begun.
    #[must_use]
    pub const fn attempt_count(&self) -> u32 {
        self.attempt_count
    }

    /// The completion frame, or why there is none. An exchange that is not finished counts as one
    /// whose deadline has passed.
    ///
    /// # Errors
    ///
    /// See [`ExchangeError`].
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
            // The guest is about to cut this connection; the close that follows is what counts. It
            // may come before HELLO, to one of two attempts that a slow guest sees at once.
            Message::Sever(_) => {}
            message if !self.is_greeted => {
                self.fail(
                    self.protocol_error(format!("{} before HELLO", message.kind())),
                    now,
                );
            }
            // Both are signs of life and nothing else: the attempt may last as long again.
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
                Err(text) => self.fail(self.protocol_error(text), now),
            },
        }
    }

    fn handle_hello(&mut self, hello: Hello, now: Instant) {
        if self.is_greeted || hello.role != Role::Guest {
            self.fail(self.protocol_error("unexpected HELLO".to_owned()), now);
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
            FailCode::Refusing | FailCode::Limit if !self.is_refusal_final(fail.code) => {
                self.end_attempt(AttemptEnd::Refused(fail.code), now);
                self.retry_after_pause(now);
            }
            FailCode::Refusing
            | FailCode::Limit
            | FailCode::Version
            | FailCode::Protocol
            | FailCode::NoSession
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

    /// Whether "not now" is the answer that was asked for: a snapshot that is to be refused while
    /// anything runs, or a quiescence to be taken back that is not there.
    const fn is_refusal_final(&self, code: FailCode) -> bool {
        match &self.request {
            Request::Quiesce(quiesce) => {
                matches!((quiesce.policy, code), (Policy::Refuse, FailCode::Refusing))
            }
            Request::Reopen(_) => matches!(code, FailCode::Refusing),
            Request::Rebind(_)
            | Request::Probe { .. }
            | Request::Info
            | Request::Sessions(_)
            | Request::Signal(_)
            | Request::Shutdown(_)
            | Request::AwaitCheckpoint(_)
            | Request::Hooks(_) => false,
        }
    }

    /// Whether `message` completes this very request, and if not, how it differs.
    fn check_answer(&self, message: &Message) -> Result<(), String> {
        let nonce = match &self.state {
            State::Open { nonce, .. } => *nonce,
            State::Idle { .. } | State::Finished(_) => None,
        };
        let same = match (&self.request, message) {
            (Request::Rebind(rebind), Message::Rebound(rebound)) => {
                rebind.generation == rebound.generation
            }
            (Request::Probe { generation, depth }, Message::Probed(probed)) => {
                nonce == Some(probed.nonce)
                    && (generation.is_none() || *generation == probed.generation)
                    && (*depth == Depth::Exec) == probed.exec_us.is_some()
                    && probed.accepts_since_rebind > 0
            }
            (Request::Quiesce(quiesce), Message::Quiesced(token)) => quiesce.token == *token,
            (Request::Reopen(_) | Request::Signal(_) | Request::Shutdown(_), Message::Ok) => true,
            (Request::Info, Message::Info(_)) => true,
            (Request::AwaitCheckpoint(request), Message::Checkpoint(checkpoint)) => {
                request.tag.is_none() || request.tag == checkpoint.tag
            }
            (Request::Hooks(hooks), Message::Hooked(hooked)) => hooks.token == hooked.token,
            (Request::Sessions(request), Message::Sessions(sessions)) => {
                let numbers = sessions.sessions.iter().map(|session| session.session);
                std::iter::once(request.after)
                    .chain(numbers)
                    .is_sorted_by(|a, b| a < b)
            }
            _ => return Err(format!("unexpected {}", message.kind())),
        };
        if same {
            Ok(())
        } else {
            Err(format!("{} of another request", message.kind()))
        }
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

    fn finish(&mut self, result: Result<Message, ExchangeError>) {
        self.state = State::Finished(Box::new(result));
    }

    /// Records the end of the open attempt, if there is one.
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

    fn protocol_error(&self, text: String) -> ExchangeError {
        ExchangeError::Protocol {
            request: self.request.kind(),
            text,
        }
    }
}

#[cfg(test)]
mod tests;
