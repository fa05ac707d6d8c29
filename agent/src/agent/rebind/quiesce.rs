//! QUIESCE: everything still and silent, so that a snapshot cuts nothing in two. No I/O, no clock.
//!
//! ```text
//!            no session is left           no other connection     console is out
//! Draining ───────────────────▶ Closing ─────────────────────▶ Console ───────▶ Silent
//!   │ limit: FAIL(refusing)        ▲                            │ │ limit:      (QUIESCED)
//!   ▼                              └─── one more connected ─────┘ ▼ FAIL(refusing)
//! taken back                                                   taken back
//! ```
//!
//! With policy `keep` sessions are carried into the snapshot, cut off from their connections; with
//! `refuse` there are none. The workload is neither waited for nor a reason to refuse: it runs as
//! long as the machine does, and is always carried along. The connection that carried the request
//! stays open and idle, so that neither ring holds a packet at the cut.
//!
//! Programs in the guest stay connected: their sockets are the guest's own.
//!
//! Invariants:
//! - QUIESCED is sent only when no other host's connection is open and the console has sent
//!   everything.
//! - A guest that nobody talks to any more re-opens by itself after
//!   [`SILENCE_INTERVALS`] times [`SILENCE_INTERVAL`], under its
//!   old name.
//! - The same token is answered again and acts once.

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

/// How long the guest stays silent without a frame from the host, one part of it.
pub(crate) const SILENCE_INTERVAL: Duration = Duration::from_secs(15);

/// How many parts there are. A clone may find that the clock has jumped over hours; that takes one
/// part, and the host still has the others to come and name it.
pub(crate) const SILENCE_INTERVALS: u32 = 4;

/// Time between two BUSY frames while sessions drain.
pub(crate) const BUSY_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two looks at the console while it drains.
pub(crate) const CONSOLE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How long the console may take to drain: its 4 KiB buffer at 9600 baud, rounded up.
pub(crate) const CONSOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How far a quiescence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Sessions are still running.
    Draining,
    /// Other connections are still open.
    Closing,
    /// The console may still be sending.
    Console,
    /// Nothing is pending.
    Silent,
}

/// A QUIESCE under way or answered.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Quiescing {
    token: Token,
    /// The connection that is answered and stays open.
    control: ConnectionId,
    phase: Phase,
    /// Parts of the silence that have passed without a word from the host.
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
        // Whatever the last name meant, it means it before the next snapshot.
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

    /// Goes as far as nothing is in the way. Called after whatever may have cleared it.
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

    /// The console was looked at. Answers [`Action::LookAtConsole`].
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
            // Somebody connected while the console drained.
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

    /// A frame came from a host, so somebody still knows that the guest is quiesced.
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
        // A host that does not read its answers gets no more of them.
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

    /// Draining took as long as the host allows.
    pub(crate) fn abort_draining(&mut self, now: Instant) {
        let count = self.sessions.requested().count();
        let text = format!("{count} sessions are still running");
        self.abort_quiescing("drain", text, now);
    }

    /// The console did not drain.
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

    /// Part of the silence is over. After the last one the host is taken for gone, and the work
    /// need not go with it.
    pub(crate) fn note_host_silence(&mut self, now: Instant) {
        let Some(quiescing) = &mut self.quiescing else {
            return;
        };
        quiescing.silent_intervals += 1;
        if quiescing.silent_intervals < SILENCE_INTERVALS {
            self.timers.set(Timer::HostSilence, now + SILENCE_INTERVAL);
        } else {
            self.reopen(now);
            info!("no word from the host since QUIESCED; open again");
        }
    }

    fn reopen(&mut self, now: Instant) {
        self.token_reopened = self.quiescing.as_ref().map(|quiescing| quiescing.token);
        self.abandon_quiescing();
        self.set_state(Input::Reopen);
        self.timers.resume(now);
    }

    /// Forgets the quiescence; what the state becomes is the caller's to say.
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
