//! The host's side of a session across any number of connections: EXEC, and ATTACH in all its
//! modes. No I/O, no clock.
//!
//! ```text
//!            poll           HELLO         STARTED, ATTACHED       EXITED
//! Idle(at) ──────▶ Greeting ─────▶ Waiting ────────────────▶ Attached ─────▶ Leaving ─▶ Finished
//!    ▲                │               │                         │      passed on,          ▲
//!    └────────────────┴───────────────┴─────────────────────────┘      EXIT_ACK written    │
//!      closed: at once, then after growing pauses; silence              final refusal,     │
//!                                         broken protocol, deadline, absent for too long ──┘
//! ```
//!
//! # Driving it
//!
//! 1. [`SessionClient::poll`] says what to do. For [`Want::Connect`] drop the earlier connection,
//!    open a fresh one, write [`SessionClient::flight`] to it in one write, and report
//!    [`handle_connected`](SessionClient::handle_connected) or
//!    [`handle_closed`](SessionClient::handle_closed).
//! 2. With a connection, write what [`SessionClient::poll_output`] returns and report how much was
//!    written. Read while [`SessionClient::wants_read`], and pass the bytes in.
//! 3. After each [`handle_bytes`](SessionClient::handle_bytes) take all events from
//!    [`SessionClient::poll_event`] before anything else. The driver passes their output on, and
//!    reports it with [`handle_consumed`](SessionClient::handle_consumed).
//! 4. When the `until` of a want is reached, call
//!    [`handle_timeout`](SessionClient::handle_timeout). Poll again in any case.
//!
//! # Invariants
//!
//! - The first EXEC is sent once the guest has said in HELLO which instance it is. Each copy names
//!   that origin and one id, so a guest that has the command attaches to it, and one that cannot
//!   tell refuses. After STARTED the client only attaches to the id.
//! - Success requires EXITED, and that all output it counts was passed on.
//! - Output comes in order, each byte once, and a GAP announces what is missing.
//! - Memory is bounded: input by its limit, output by [`READ_AHEAD_LEN_MAX`] and one read,
//!   unwritten frames by a limit of their own.
//!
//! A connection that stays silent too long before its answer is dropped, and the request is sent
//! again on another one. A guest that was merely slow sees its client leave the first one. The
//! request's `keep_ms` keeps the command running until the guest sees the second one, so it must be
//! longer than [`SILENCE_MAX`]. The output sent on the first is still in the ring.

mod error;
mod input;
mod output;
mod receiving;
mod request;
mod sending;
mod timing;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use error::{Fate, SessionError, severed_text};
pub use input::INPUT_LEN_MAX;
pub use output::ACK_LEN;
pub use receiving::Event;
pub use request::{Deadlines, Request};
pub use timing::{ABSENCE_MAX, PAUSE_MAX, QUIET_MAX, SIGN_MAX, SILENCE_FIRST, SILENCE_MAX};

use input::Input;
use output::Output;
use timing::SETTLED_AFTER;

use crate::frame::Decoder;
use crate::id::{ExecId, Instance};
use crate::message::{AttachMode, Exited, Fail, Hello, Origin, Started, Stream, TtySize};

/// Number of bytes of output not yet passed on beyond which reading stops: the rings of both
/// streams, so a session with the policy `block` never reaches it.
pub const READ_AHEAD_LEN_MAX: u64 = 512 * 1024;

/// What the driver should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Open a fresh connection and write [`SessionClient::flight`] to it.
    Connect {
        /// End of the attempt, unless HELLO has come.
        until: Instant,
    },
    /// Read from and write to the open connection.
    Talk {
        /// When to call [`SessionClient::handle_timeout`].
        until: Instant,
    },
    /// Without a connection, wait or pass on the output taken so far.
    Pause {
        /// When to poll again.
        until: Instant,
    },
    /// Nothing more; see [`SessionClient::into_result`].
    Finished,
}

#[derive(Debug)]
enum State {
    /// No connection; the next attempt is due at `at`.
    Idle {
        at: Instant,
    },
    /// Connecting, or connected and waiting for HELLO. The attempt ends at `until`.
    Greeting {
        until: Instant,
        is_open: bool,
    },
    /// HELLO came; waiting for the answer to the request. The attempt ends at `until`, if the
    /// request was sent after HELLO: HELLO is then not a sign that the guest has it.
    Waiting {
        until: Option<Instant>,
    },
    /// Attached to the session.
    Attached {
        since: Instant,
        has_progress: bool,
    },
    /// EXITED came. EXIT_ACK must be written by `until`, unless the connection has ended.
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
            Self::Waiting { .. } => "waiting",
            Self::Attached { .. } => "attached",
            Self::Leaving { .. } => "leaving",
            Self::Finished(_) => "finished",
        }
    }
}

/// One client of one session. The module documents the contract.
#[derive(Debug)]
pub struct SessionClient {
    request: Request,
    host_version: String,
    deadlines: Deadlines,
    state: State,
    decoder: Decoder,
    /// The guest's latest HELLO.
    hello: Option<Hello>,
    /// The guest that the first copy of an EXEC was sent to. Every later copy names it.
    origin: Option<Origin>,
    /// The first STARTED or ATTACHED, and the instance that sent it. Another one has other sessions
    /// under the same numbers.
    started: Option<(Started, Option<Instance>)>,
    outputs: [Output; 2],
    input: Input,
    /// Frames for the open connection; `out_written` bytes of them have been written.
    out: Vec<u8>,
    out_written: usize,
    /// Signals that the guest has not confirmed; the first `signals_sent` were sent on this
    /// connection.
    signals: VecDeque<u8>,
    signals_sent: usize,
    /// The terminal's latest size, once it has changed.
    size: Option<TtySize>,
    fate: Fate,
    /// The fate before the open attempt, valid again if the guest refuses this attempt.
    fate_before: Fate,
    /// The guest's refusal of the latest attempt.
    refusal: Option<Fail>,
    /// How long the next attempt waits for HELLO.
    silence: Duration,
    /// The pause after the next failed attempt.
    pause: Duration,
    /// Since when the guest is unreachable, after it was reached.
    absent_since: Option<Instant>,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    ping_count: u64,
    /// How much longer than `deadlines.end` a guest may take to end the command.
    end_grace: Duration,
    /// Whether the last PING asked if the guest lives at the end.
    is_checked: bool,
    /// Whether the guest wants each piece of output acknowledged as soon as it is passed on.
    is_hurried: bool,
    /// The guest has announced its shutdown.
    is_shutting_down: bool,
}

impl SessionClient {
    /// Starts a request now.
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
            origin: request.origin(),
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
            end_grace: Duration::ZERO,
            is_checked: false,
            is_hurried: false,
            is_shutting_down: false,
        }
    }

    /// Lets a guest that answers take so much longer than [`Deadlines::end`], to end a command
    /// whose own time limit has the same end, and to report it.
    #[must_use]
    pub const fn with_end_grace(mut self, grace: Duration) -> Self {
        self.end_grace = grace;
        self
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
                self.limit_request(now);
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
            State::Greeting { until, is_open } if is_open => Want::Talk { until },
            State::Greeting { until, .. } => Want::Connect { until },
            State::Waiting { until: Some(until) } => Want::Talk {
                until: self.limited(until),
            },
            State::Waiting { until: None } | State::Attached { .. } => {
                let sign_due = if self.wants_read() {
                    let answer_due = self.pinged_at.map(|at| at + QUIET_MAX);
                    answer_due.unwrap_or_else(|| self.ping_due())
                } else {
                    now + QUIET_MAX
                };
                Want::Talk {
                    until: self.limited(sign_due),
                }
            }
            State::Leaving { until, is_open, .. } if is_open => Want::Talk {
                until: self.limited(until.unwrap_or(now + QUIET_MAX)),
            },
            State::Leaving { .. } => Want::Pause {
                until: self.limited(now + QUIET_MAX),
            },
            State::Finished(_) => Want::Finished,
        }
    }

    /// The connection was made, and the whole flight was written.
    pub fn handle_connected(&mut self, now: Instant) {
        if let State::Greeting { is_open, .. } = &mut self.state {
            *is_open = true;
            self.heard_at = now;
            self.pinged_at = None;
            self.fate_before = self.fate;
            if self.knows_origin() {
                self.note_sent();
            }
        }
    }

    /// Whether the request can be sent before the guest's HELLO.
    pub(super) const fn knows_origin(&self) -> bool {
        match &self.request {
            Request::Exec { .. } => self.origin.is_some() || self.started.is_some(),
            Request::Attach { .. } => true,
        }
    }

    /// The guest may act on the request from now on.
    pub(super) fn note_sent(&mut self) {
        if self.fate == Fate::NotRun {
            self.fate = Fate::Unknown;
        }
    }

    /// The connection could not be made, or it ended for any reason. That decides nothing.
    pub fn handle_closed(&mut self, now: Instant) {
        match &mut self.state {
            State::Greeting { .. } | State::Waiting { .. } => self.retry(now),
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

    /// Bytes were read from the open connection. Take their events next.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        match self.state {
            State::Greeting { .. } | State::Waiting { .. } | State::Attached { .. } => {
                self.heard_at = now;
                self.pinged_at = None;
                self.decoder.push(bytes);
            }
            // Bytes after the end have no meaning.
            State::Idle { .. } | State::Leaving { .. } | State::Finished(_) => {}
        }
    }

    /// The time of the last [`Want`] was reached. Early or repeated calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.check_limits(now);
        match self.state {
            State::Greeting { until, .. } | State::Waiting { until: Some(until) }
                if now >= until =>
            {
                self.silence = (self.silence * 2).min(SILENCE_MAX);
                self.pause = Duration::ZERO;
                self.retry(now);
            }
            State::Waiting { until: None } | State::Attached { .. } if self.wants_read() => {
                match self.pinged_at {
                    Some(at) if now >= at + QUIET_MAX => self.handle_closed(now),
                    None if now >= self.ping_due() => self.ping(now),
                    Some(_) | None => {}
                }
            }
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting { .. }
            | State::Attached { .. }
            | State::Leaving { .. }
            | State::Finished(_) => {}
        }
    }

    /// Whether the driver should read from the connection: not while it has too much output to pass
    /// on.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.backlog() <= READ_AHEAD_LEN_MAX
    }

    /// Whether the open connection is attached to the session.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached { .. })
    }

    /// Whether EXITED came, so that only output remains to be passed on.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, State::Leaving { .. })
    }

    /// The command's end, as long as output remains to be passed on.
    #[must_use]
    pub const fn exited(&self) -> Option<&Exited> {
        if let State::Leaving { exited, .. } = &self.state {
            return Some(exited);
        }
        None
    }

    /// Number of signals that the guest has not confirmed.
    #[must_use]
    pub fn unconfirmed_signal_count(&self) -> usize {
        self.signals.len()
    }

    /// The guest's latest HELLO.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// The id of a command of which is not known whether it ran, and the guest that its first copy
    /// was sent to.
    #[must_use]
    pub fn doubt(&self) -> Option<(ExecId, Origin)> {
        match &self.request {
            Request::Exec { exec, .. } if self.fate == Fate::Unknown => {
                Some((exec.id, self.origin?))
            }
            Request::Exec { .. } | Request::Attach { .. } => None,
        }
    }

    /// What is known about the command while its end is not.
    #[must_use]
    pub const fn fate(&self) -> Fate {
        self.fate
    }

    /// The command's end, or why it is not known. An unfinished client counts as one whose deadline
    /// has passed.
    pub fn into_result(self) -> Result<Exited, SessionError> {
        match self.state {
            State::Finished(result) => result,
            State::Leaving { exited, .. } => Err(SessionError::Undelivered(Box::new(exited))),
            State::Idle { .. }
            | State::Greeting { .. }
            | State::Waiting { .. }
            | State::Attached { .. } => Err(SessionError::Deadline(self.fate)),
        }
    }
}

#[cfg(test)]
mod tests;
