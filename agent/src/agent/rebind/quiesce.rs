//! QUIESCE: makes the guest silent, so that a snapshot cuts nothing in two. No I/O, no clock.
//!
//! ```text
//!            no session is left           no other connection     console is empty
//! Draining ───────────────────▶ Closing ─────────────────────▶ Console ───────▶ Silent
//!   │ limit: FAIL(refusing)        ▲                            │ │ limit:      (QUIESCED)
//!   ▼                              └─── one more connected ─────┘ ▼ FAIL(refusing)
//!  reopened                                                     reopened
//! ```
//!
//! With policy `keep` sessions are carried into the snapshot, detached from their connections; with
//! `refuse` there are none. The workload is neither waited for nor a reason to refuse: it runs as
//! long as the machine does and is always carried along. The connection of the request stays open
//! and idle, so that neither vsock ring holds a packet when the snapshot is taken.
//!
//! Programs in the guest stay connected: their sockets are inside the guest.
//!
//! Invariants:
//! - QUIESCED is sent only when no other host's connection is open and the console has sent
//!   everything.
//! - Without a frame from a host, the guest re-opens under its old generation after
//!   [`SILENCE_INTERVALS`] times [`SILENCE_INTERVAL`].
//! - A repeated request with the same token is answered again and does nothing.

use std::time::{Duration, Instant};

use log::{info, warn};
use shared::id::Token;
use shared::limits::BUSY_SESSIONS_MAX;
use shared::message::{Busy, Fail, FailCode, Message, Policy, Quiesce, Reopen, SeverReason};

use crate::agent::action::Action;
use crate::agent::ids::ConnectionId;
use crate::agent::state::{Input, Request, State};
use crate::agent::timers::Timer;
use crate::agent::transport::connection::Connection;
use crate::agent::{Agent, DetachReason, LIMIT_MAX};

/// One interval without a frame from a host.
pub(crate) const SILENCE_INTERVAL: Duration = Duration::from_secs(15);

/// Intervals until the guest re-opens. A clone may find that the clock has jumped by hours. That
/// ends one interval, and the host has the others to send its REBIND.
pub(crate) const SILENCE_INTERVALS: u32 = 4;

/// Time between two BUSY frames while sessions drain.
pub(crate) const BUSY_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two checks of the console while it drains.
pub(crate) const CONSOLE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Time limit for the console: its 4 KiB buffer at 9600 baud, rounded up.
pub(crate) const CONSOLE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Sessions are still running.
    Draining,
    /// Other connections are still open.
    Closing,
    /// The console may still be sending.
    Console,
    Silent,
}

/// A QUIESCE under way or answered.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Quiescing {
    token: Token,
    /// The connection that gets the answer and stays open.
    control: ConnectionId,
    phase: Phase,
    /// Intervals without a frame from a host.
    silent_intervals: u32,
}

impl Quiescing {
    /// Whether log lines have to be held back for the console to drain.
    pub(crate) fn is_draining_console(&self) -> bool {
        match self.phase {
            Phase::Console | Phase::Silent => true,
            Phase::Draining | Phase::Closing => false,
        }
    }
}

impl Agent {
    pub(crate) fn handle_quiesce(&mut self, id: ConnectionId, request: Quiesce, now: Instant) {
        if !self.admit(id, Request::Quiesce, now) {
            return;
        }
        if let Some(quiescing) = &mut self.quiescing {
            if quiescing.token != request.token {
                let text = "the guest is quiescing for another request";
                return self.send_fail(id, FailCode::Refusing, text, now);
            }
            quiescing.control = id;
            if quiescing.phase == Phase::Silent {
                return self.send(id, &Message::Quiesced(request.token), now);
            }
            return self.advance_quiescing(now);
        }
        if self.hooks.is_running() {
            return self.send_fail(id, FailCode::Refusing, "hooks are running", now);
        }
        let count = self.sessions.requested().count();
        let phase = match request.policy {
            Policy::Refuse if count > 0 => {
                let text = format!("{count} sessions are running");
                return self.send_fail(id, FailCode::Refusing, text, now);
            }
            Policy::Drain => Phase::Draining,
            Policy::Keep | Policy::Refuse => Phase::Closing,
        };
        self.counters.quiesces += 1;
        // Programs hear of the current generation before the next snapshot.
        self.announce_generation(now);
        self.set_state(Input::Quiesce);
        self.pause_mmds(now);
        self.timers.pause(now);
        self.timers.stop(Timer::LogHold);
        self.quiescing = Some(Quiescing {
            token: request.token,
            control: id,
            phase,
            silent_intervals: 0,
        });
        if phase == Phase::Draining && count > 0 {
            let limit = Duration::from_millis(request.limit_ms).min(LIMIT_MAX);
            self.timers.set(Timer::Drain, now + limit);
            self.report_busy(now);
        }
        self.advance_quiescing(now);
    }

    pub(crate) fn handle_reopen(&mut self, id: ConnectionId, request: Reopen, now: Instant) {
        if !self.admit(id, Request::Reopen, now) {
            return;
        }
        let current = self.quiescing.as_ref().map(|quiescing| quiescing.token);
        if current == Some(request.token) {
            self.reopen(now);
        } else if current.is_some() || self.token_reopened != Some(request.token) {
            let text = "the guest is not quiescing for this request";
            return self.send_fail(id, FailCode::Refusing, text, now);
        }
        self.send(id, &Message::Ok, now);
    }

    /// Moves on if nothing is in the way any more. Called wherever something may have gone.
    pub(crate) fn advance_quiescing(&mut self, now: Instant) {
        let Some(Quiescing { control, phase, .. }) = self.quiescing else {
            return;
        };
        match phase {
            Phase::Draining if self.sessions.requested().next().is_none() => {
                self.timers.stop(Timer::Drain);
                self.timers.stop(Timer::BusyReport);
                self.set_phase(Phase::Closing);
                self.advance_quiescing(now);
            }
            Phase::Closing => {
                self.release_session(control, DetachReason::Cut, now);
                let is_open = |other: &Connection| !other.is_closing() && !other.is_local();
                let others = self.connections.iter().filter(|(id, _)| **id != control);
                let open: Vec<_> = others
                    .filter(|(_, other)| is_open(other))
                    .map(|(id, _)| *id)
                    .collect();
                for id in open {
                    self.sever(id, SeverReason::Quiesce, now);
                }
                if !self.has_others(control) {
                    self.set_phase(Phase::Console);
                    self.timers.set(Timer::ConsoleLimit, now + CONSOLE_TIMEOUT);
                    self.actions.push_back(Action::LookAtConsole);
                }
            }
            Phase::Draining | Phase::Console | Phase::Silent => {}
        }
    }

    /// Answers [`Action::LookAtConsole`].
    pub fn handle_console(&mut self, is_drained: bool, now: Instant) {
        let Some(Quiescing {
            token,
            control,
            phase,
            ..
        }) = self.quiescing
        else {
            return;
        };
        if phase != Phase::Console {
            return;
        }
        if self.has_others(control) {
            // A host connected while the console drained.
            self.timers.stop(Timer::ConsoleLimit);
            self.set_phase(Phase::Closing);
            self.advance_quiescing(now);
        } else if is_drained {
            self.timers.stop(Timer::ConsoleLimit);
            self.set_phase(Phase::Silent);
            self.set_state(Input::Silent);
            self.send(control, &Message::Quiesced(token), now);
            self.timers.set(Timer::HostSilence, now + SILENCE_INTERVAL);
        } else {
            self.timers
                .set(Timer::ConsolePoll, now + CONSOLE_POLL_INTERVAL);
        }
    }

    /// A frame came from a host: it still knows that the guest is quiesced.
    pub(crate) fn note_host_alive(&mut self, now: Instant) {
        if self.state == State::Quiesced
            && let Some(quiescing) = &mut self.quiescing
        {
            quiescing.silent_intervals = 0;
            self.timers.set(Timer::HostSilence, now + SILENCE_INTERVAL);
        }
    }

    /// Tells the host which sessions it waits for, and that the guest is alive.
    pub(crate) fn report_busy(&mut self, now: Instant) {
        let Some(Quiescing { token, control, .. }) = self.quiescing else {
            return;
        };
        self.timers.set(Timer::BusyReport, now + BUSY_INTERVAL);
        // A host that does not read its answers gets no more.
        let reads = self
            .connections
            .get(&control)
            .is_some_and(|host| host.outbox.takes_requests());
        if reads {
            let sessions = self.sessions.requested().take(BUSY_SESSIONS_MAX);
            let sessions = sessions.map(|session| session.id().number()).collect();
            self.send(control, &Message::Busy(Busy { token, sessions }), now);
        }
    }

    pub(crate) fn abort_draining(&mut self, now: Instant) {
        let count = self.sessions.requested().count();
        let text = format!("{count} sessions are still running");
        self.abort_quiescing("drain", text, now);
    }

    pub(crate) fn abort_console_wait(&mut self, now: Instant) {
        let text = format!(
            "the console did not drain within {} s",
            CONSOLE_TIMEOUT.as_secs()
        );
        self.abort_quiescing("console", text, now);
    }

    fn abort_quiescing(&mut self, phase: &str, text: String, now: Instant) {
        let Some(control) = self.quiescing.as_ref().map(|quiescing| quiescing.control) else {
            return;
        };
        self.reopen(now);
        warn!("not quiesced: {text}");
        let phase = Some(phase.to_owned());
        let fail = Fail {
            code: FailCode::Refusing,
            phase,
            errno: None,
            text,
        };
        self.send(control, &Message::Fail(fail), now);
    }

    /// After the last interval the host counts as gone, and the guest returns to its work.
    pub(crate) fn note_host_silence(&mut self, now: Instant) {
        let Some(quiescing) = &mut self.quiescing else {
            return;
        };
        quiescing.silent_intervals += 1;
        if quiescing.silent_intervals < SILENCE_INTERVALS {
            self.timers.set(Timer::HostSilence, now + SILENCE_INTERVAL);
        } else {
            self.reopen(now);
            info!("no frame from the host since QUIESCED; re-opened");
        }
    }

    fn reopen(&mut self, now: Instant) {
        self.token_reopened = self.quiescing.as_ref().map(|quiescing| quiescing.token);
        self.abandon_quiescing();
        self.set_state(Input::Reopen);
        self.timers.resume(now);
    }

    /// The caller changes the root state.
    pub(crate) fn abandon_quiescing(&mut self) {
        self.quiescing = None;
        for timer in [
            Timer::BusyReport,
            Timer::Drain,
            Timer::ConsolePoll,
            Timer::ConsoleLimit,
            Timer::HostSilence,
        ] {
            self.timers.stop(timer);
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(quiescing) = &mut self.quiescing {
            log::debug!("quiescing {:?} -> {phase:?}", quiescing.phase);
            quiescing.phase = phase;
        }
    }

    fn has_others(&self, control: ConnectionId) -> bool {
        let mut hosts = self.connections.iter().filter(|(_, it)| !it.is_local());
        hosts.any(|(id, _)| *id != control)
    }
}
