//! The host's side of a session, across however many connections it takes: EXEC, and ATTACH in all
//! its modes. No I/O, no clock.
//!
//! ```text
//!            poll           HELLO         STARTED, ATTACHED       EXITED
//! Idle(at) ──────▶ Greeting ─────▶ Waiting ────────────────▶ Attached ─────▶ Leaving ─▶ Finished
//!    ▲                │               │                         │      handed on,          ▲
//!    └────────────────┴───────────────┴─────────────────────────┘      EXIT_ACK written    │
//!      closed: at once, then after growing pauses; silence              final refusal,     │
//!                                          broken protocol, deadline, gone for too long ───┘
//! ```
//!
//! # Driving it
//!
//! 1. [`SessionClient::poll`] says what is wanted. For [`Want::Connect`] drop the earlier
//!    connection, open a fresh one, write [`SessionClient::flight`] to it in one write, and report
//!    [`handle_connected`](SessionClient::handle_connected) or
//!    [`handle_closed`](SessionClient::handle_closed).
//! 2. With a connection, write what [`SessionClient::poll_output`] gives and report how much of it
//!    went out. Read while [`SessionClient::wants_read`], and bring in what comes.
//! 3. After each [`handle_bytes`](SessionClient::handle_bytes) take every event there is from
//!    [`SessionClient::poll_event`] before anything else. Output that was taken is the driver's to
//!    hand on; as it is, it says so with [`handle_consumed`](SessionClient::handle_consumed).
//! 4. When the `until` of a want has come, call
//!    [`handle_timeout`](SessionClient::handle_timeout), and poll again in any case.
//!
//! # Invariants
//!
//! - An EXEC is resent under one id until STARTED has come, so that a guest that has it attaches
//!   and never starts twice. After that the id is only attached to.
//! - There is no success without EXITED, and none before all output that it counts was handed on.
//! - Output comes in order, each byte once, and what is missing was announced by a GAP.
//! - Memory is bounded: input by its limit, output by [`READ_AHEAD_LEN_MAX`] and one read, what is
//!   to be written by a limit of its own.
//!
//! A connection of which nothing was heard in time is dropped, and the request is sent again on
//! another. A guest that was merely slow takes the end of the first for its client leaving; the
//! `keep_ms` of the request is what keeps the command running until the second is looked at, so
//! that it must be longer than [`SILENCE_MAX`]. What went out on the first is still in the ring.

mod error;
mod events;
mod input;
mod output;
mod request;
mod timing;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use error::{Fate, SessionError, severed_text};
pub use input::INPUT_LEN_MAX;
use input::Input;
pub use output::ACK_LEN;
use output::Output;
pub use request::{Deadlines, Request};

use crate::frame::{Decoder, Frame};
use crate::limits::STREAM_OFFSET_LEN;
use crate::message::{
    Ack, Attach, AttachMode, Exec, ExitAck, Exited, Fail, FailCode, Gap, Hello, Message, Ping,
    Role, SessionRef, SeverReason, Signal, Started, Stream, TtySize,
};

/// How long the guest may take to say HELLO in the first attempt, and at most in a later one. A
/// guest that has said it has the request too, which came in the same write.
pub const SILENCE_FIRST: Duration = Duration::from_secs(1);
/// See [`SILENCE_FIRST`].
pub const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Longest pause between two attempts that failed at once. The first retry has none.
pub const PAUSE_MAX: Duration = Duration::from_millis(64);

/// How long a guest may be quiet before it is asked for a sign of life, and how long it may then
/// take for one. A connection that stays silent is dead, whatever the transport says.
pub const QUIET_MAX: Duration = Duration::from_secs(10);

/// How long the guest is waited for by default after a cut: what a guest that was cut by a snapshot
/// waits for its host.
pub const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes of output that may be here without having been handed on before reading stops: the rings
/// of both streams, so that a session with the policy `block` never gets there.
pub const READ_AHEAD_LEN_MAX: u64 = 512 * 1024;

/// How long a connection must have lasted, or else have brought something, for the next cut to be
/// a new one and not the same again.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// How long EXIT_ACK may take to leave. The guest can do without it.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// Bytes ready to be written beyond which no more input is turned into frames.
const SEND_AHEAD_LEN: usize = 64 * 1024;

/// Bytes ready to be written beyond which the guest is told nothing that it can do without: answers
/// to its PINGs, and acknowledgements, of which a later one says as much. A guest that asks and
/// does not read would have them grow without an end. One that reads never lets so much wait.
const ANSWERS_LEN_MAX: usize = 256 * 1024;

/// Most signals that wait for the guest. More of the same say nothing new.
const SIGNALS_MAX: usize = 16;

/// What the driver should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Open a fresh connection and write [`SessionClient::flight`] to it.
    Connect {
        /// Give the attempt up then.
        until: Instant,
    },
    /// Move bytes on the open connection.
    Talk {
        /// Call [`SessionClient::handle_timeout`] then.
        until: Instant,
    },
    /// Do without a connection: wait, or hand on what is here.
    Pause {
        /// Poll again then.
        until: Instant,
    },
    /// Nothing more; see [`SessionClient::into_result`].
    Finished,
}

/// What the guest said, for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The command runs, or the session is attached to, for the first time.
    Started(Started),
    /// It is attached to again after a cut.
    Resumed(Started),
    /// Output of the command.
    Output {
        /// Which.
        stream: Stream,
        /// Its next bytes.
        bytes: &'a [u8],
    },
    /// Output that is gone.
    Gap(Gap),
    /// This connection is about to be cut. Nothing is to be done.
    Severed(SeverReason),
    /// The session ended, and all its output has come.
    Exited(Exited),
}

#[derive(Debug)]
enum State {
    /// No connection; the next attempt is due at `at`.
    Idle {
        at: Instant,
    },
    /// A connection is being made, or HELLO has not come yet. The attempt ends at `until`.
    Greeting {
        until: Instant,
        is_open: bool,
    },
    /// HELLO has come, the answer to the request has not.
    Waiting,
    /// The session's frames come.
    Attached {
        since: Instant,
        has_progress: bool,
    },
    /// EXITED has come. EXIT_ACK leaves until `until`, unless the connection is gone.
    Leaving {
        exited: Exited,
        until: Option<Instant>,
        is_open: bool,
    },
    Finished(Result<Exited, SessionError>),
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Greeting { .. } => "greeting",
            Self::Waiting => "waiting",
            Self::Attached { .. } => "attached",
            Self::Leaving { .. } => "leaving",
            Self::Finished(_) => "finished",
        }
    }
}

/// One client of one session. See the module's text for the contract.
#[derive(Debug)]
pub struct SessionClient {
    request: Request,
    host_version: String,
    deadlines: Deadlines,
    state: State,
    decoder: Decoder,
    /// The guest's latest HELLO.
    hello: Option<Hello>,
    /// The first STARTED or ATTACHED, and the boot id of the guest that said it.
    started: Option<(Started, Option<String>)>,
    outputs: [Output; 2],
    input: Input,
    /// Frames for the open connection, of which `out_written` bytes have gone out.
    out: Vec<u8>,
    out_written: usize,
    /// Signals that the guest has not confirmed; the first `signals_sent` went out on this
    /// connection.
    signals: VecDeque<u8>,
    signals_sent: usize,
    /// The terminal's latest size, once it has changed.
    size: Option<TtySize>,
    fate: Fate,
    /// What was known before the open attempt, which a refusal brings back.
    fate_before: Fate,
    /// How the guest refused the latest attempt, if it did.
    refusal: Option<Fail>,
    /// How long the next attempt may be silent.
    silence: Duration,
    /// How long to wait before the attempt after the next failure.
    pause: Duration,
    /// Since when the guest has been gone, after it was there.
    absent_since: Option<Instant>,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    ping_count: u64,
    /// The guest has said that it ends.
    is_shutting_down: bool,
}

impl SessionClient {
    /// A request that starts now.
    #[must_use]
    pub fn new(request: Request, host_version: &str, now: Instant, deadlines: Deadlines) -> Self {
        let (stdin, from, fate) = match &request {
            Request::Exec { exec, may_be_known } => {
                let from = [Some(exec.stdout_from), Some(exec.stderr_from)];
                let fate = if *may_be_known {
                    Fate::Unknown
                } else {
                    Fate::NotRun
                };
                (exec.stdin && !exec.detached, from, fate)
            }
            Request::Attach { attach, stdin } => {
                let from = [attach.stdout_from, attach.stderr_from];
                (
                    *stdin && attach.mode == AttachMode::Own,
                    from,
                    Fate::Started,
                )
            }
        };
        Self {
            request,
            host_version: host_version.to_owned(),
            deadlines,
            state: State::Idle { at: now },
            decoder: Decoder::new(),
            hello: None,
            started: None,
            outputs: [
                Output::new(Stream::Stdout, from[0]),
                Output::new(Stream::Stderr, from[1]),
            ],
            input: Input::new(stdin),
            out: Vec::new(),
            out_written: 0,
            signals: VecDeque::new(),
            signals_sent: 0,
            size: None,
            fate,
            fate_before: fate,
            refusal: None,
            silence: SILENCE_FIRST,
            pause: Duration::ZERO,
            absent_since: None,
            heard_at: now,
            pinged_at: None,
            ping_count: 0,
            is_shutting_down: false,
        }
    }

    /// What the driver should do now.
    pub fn poll(&mut self, now: Instant) -> Want {
        self.check_limits(now);
        self.leave_if_done(now);
        match self.state {
            State::Idle { at } if now < at => Want::Pause {
                until: self.limited(at),
            },
            State::Idle { .. } => {
                let until = self.limited(now + self.silence);
                self.decoder = Decoder::new();
                self.out.clear();
                self.out_written = 0;
                self.set_state(State::Greeting {
                    until,
                    is_open: false,
                });
                Want::Connect { until }
            }
            State::Greeting {
                until,
                is_open: false,
            } => Want::Connect { until },
            State::Greeting {
                until,
                is_open: true,
            } => Want::Talk { until },
            State::Waiting | State::Attached { .. } => {
                let sign_due = if self.wants_read() {
                    self.pinged_at.unwrap_or(self.heard_at) + QUIET_MAX
                } else {
                    now + QUIET_MAX
                };
                Want::Talk {
                    until: self.limited(sign_due),
                }
            }
            State::Leaving {
                until: Some(until),
                is_open: true,
                ..
            } => Want::Talk {
                until: self.limited(until),
            },
            State::Leaving { is_open, .. } => {
                let until = self.limited(now + QUIET_MAX);
                if is_open {
                    Want::Talk { until }
                } else {
                    Want::Pause { until }
                }
            }
            State::Finished(_) => Want::Finished,
        }
    }

    /// HELLO and the request, for one write on the connection that is wanted.
    #[must_use]
    pub fn flight(&self) -> Vec<u8> {
        let mut bytes = Message::Hello(Hello::host(&self.host_version)).encode();
        let [stdout_from, stderr_from] = [&self.outputs[0], &self.outputs[1]].map(Output::from);
        let request = match &self.request {
            // From here on asking for a start could only start it again, in a guest that has lost
            // it.
            Request::Exec { exec, .. } if self.started.is_some() => Message::Attach(Attach {
                session: SessionRef::Exec(exec.id),
                generation: None,
                // As the EXEC was: who does not acknowledge may not own.
                mode: if exec.detached {
                    AttachMode::Observe
                } else {
                    AttachMode::Own
                },
                stdout_from,
                stderr_from,
            }),
            Request::Exec { exec, .. } => Message::Exec(Exec {
                stdout_from: stdout_from.unwrap_or(0),
                stderr_from: stderr_from.unwrap_or(0),
                ..(**exec).clone()
            }),
            Request::Attach { attach, .. } => {
                // A number means something in one life of the guest only; an id, always.
                let id = self.started.as_ref().and_then(|(started, _)| started.id);
                Message::Attach(Attach {
                    session: id.map_or(attach.session, SessionRef::Exec),
                    stdout_from,
                    stderr_from,
                    ..*attach
                })
            }
        };
        request.encode_into(&mut bytes);
        bytes
    }

    /// The connection was made, and all of the flight was written.
    pub fn handle_connected(&mut self, now: Instant) {
        if let State::Greeting { is_open, .. } = &mut self.state {
            *is_open = true;
            self.heard_at = now;
            self.pinged_at = None;
            self.fate_before = self.fate;
            if self.fate == Fate::NotRun {
                self.fate = Fate::Unknown;
            }
        }
    }

    /// The connection could not be made, or it ended in whatever way. Never a verdict.
    pub fn handle_closed(&mut self, now: Instant) {
        match &mut self.state {
            State::Greeting { .. } | State::Waiting => self.retry(now),
            State::Attached {
                since,
                has_progress,
            } => {
                if *has_progress || now.saturating_duration_since(*since) >= SETTLED_AFTER {
                    self.absent_since = Some(now);
                    self.pause = Duration::ZERO;
                }
                self.absent_since.get_or_insert(now);
                self.retry(now);
            }
            State::Leaving { is_open, .. } => *is_open = false,
            State::Idle { .. } | State::Finished(_) => {}
        }
    }

    /// Bytes came on the open connection. Take their events next.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        match self.state {
            State::Greeting { .. } | State::Waiting | State::Attached { .. } => {
                self.heard_at = now;
                self.pinged_at = None;
                self.decoder.push(bytes);
            }
            // Nothing that comes after the end means anything.
            State::Idle { .. } | State::Leaving { .. } | State::Finished(_) => {}
        }
    }

    /// The instant of the last [`Want`] has come. Early or repeated calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_limits(now);
        match self.state {
            State::Greeting { until, .. } if now >= until => {
                self.silence = (self.silence * 2).min(SILENCE_MAX);
                self.pause = Duration::ZERO;
                self.retry(now);
            }
            State::Waiting | State::Attached { .. } if self.wants_read() => match self.pinged_at {
                Some(at) if now >= at + QUIET_MAX => self.handle_closed(now),
                None if now >= self.heard_at + QUIET_MAX => self.ping(now),
                Some(_) | None => {}
            },
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting
            | State::Attached { .. }
            | State::Leaving { .. }
            | State::Finished(_) => {}
        }
    }

    /// How much standard input may be brought in now. 0 while there is no credit, and for good
    /// once there is no use for more.
    #[must_use]
    pub fn input_room(&self) -> usize {
        match self.state {
            State::Leaving { .. } | State::Finished(_) => 0,
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting
            | State::Attached { .. } => self.input.room(),
        }
    }

    /// Standard input, at most [`input_room`](Self::input_room) bytes.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.input.push(bytes);
    }

    /// Standard input has ended.
    pub fn handle_input_end(&mut self) {
        self.input.end_now();
    }

    /// Sends a signal to the session's process group, now or once it is attached to. One that the
    /// guest has not confirmed when a connection is cut is sent again, so that it may arrive twice.
    pub fn handle_signal(&mut self, number: u8) {
        let is_waiting = self.signals.iter().skip(self.signals_sent);
        if self.signals.len() < SIGNALS_MAX && !is_waiting.into_iter().any(|&n| n == number) {
            self.signals.push_back(number);
        }
        self.send_signals();
    }

    /// The terminal has another size.
    pub fn handle_resize(&mut self, size: TtySize) {
        self.size = Some(size);
        if self.is_attached() {
            Message::Resize(size).encode_into(&mut self.out);
        }
    }

    /// `len` bytes of output were handed on for good.
    pub fn handle_consumed(&mut self, stream: Stream, len: usize, now: Instant) {
        let could_read = self.wants_read();
        self.outputs[stream.index()].consume(u64::try_from(len).unwrap_or(u64::MAX));
        if !could_read {
            // The silence was ours.
            self.heard_at = now;
            self.pinged_at = None;
        }
        self.send_acks(ACK_LEN);
    }

    /// Bytes to be written to the open connection. There may be none.
    pub fn poll_output(&mut self) -> &[u8] {
        if self.unwritten_len() < SEND_AHEAD_LEN {
            self.out.drain(..self.out_written);
            self.out_written = 0;
            if self.is_attached() {
                self.input.write_frame(&mut self.out);
            }
        }
        &self.out[self.out_written..]
    }

    /// Bytes that wait to be written.
    const fn unwritten_len(&self) -> usize {
        self.out.len() - self.out_written
    }

    /// `len` bytes of what [`poll_output`](Self::poll_output) gave were written.
    pub fn handle_written(&mut self, len: usize) {
        self.out_written = (self.out_written + len).min(self.out.len());
    }

    /// Whether bytes should be read from the connection. Not while more output is here than may
    /// be held for whoever reads it.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.backlog() <= READ_AHEAD_LEN_MAX
    }

    /// Whether the session's frames come and go.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached { .. })
    }

    /// Whether EXITED has come, so that all that is left is to hand on the output.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, State::Leaving { .. })
    }

    /// Signals that the guest has not confirmed.
    #[must_use]
    pub fn unconfirmed_signal_count(&self) -> usize {
        self.signals.len()
    }

    /// The guest's latest HELLO.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// What is known of the command while its end is not.
    #[must_use]
    pub const fn fate(&self) -> Fate {
        self.fate
    }

    /// The end, or why there is none. A client that is not finished counts as one whose deadline
    /// has passed.
    ///
    /// # Errors
    ///
    /// See [`SessionError`].
    pub fn into_result(self) -> Result<Exited, SessionError> {
        match self.state {
            State::Finished(result) => result,
            State::Leaving { exited, .. } => Err(SessionError::Undelivered(Box::new(exited))),
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting
            | State::Attached { .. } => Err(SessionError::Deadline(self.fate)),
        }
    }
}

#[cfg(test)]
mod tests;
