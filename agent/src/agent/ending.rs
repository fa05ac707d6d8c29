//! SHUTDOWN, and its equivalents: signals, and the end of a workload that powers the machine off.
//! No I/O, no clock.
//!
//! ```text
//!            no session is left,           no connection is left,
//!            or the grace is over          or the last wait is over
//! Sessions ──────────────────────▶ FinalFlush ───────────────────▶ Over
//! ```
//!
//! Invariants:
//! - The host that asked gets OK before its SEVER, and both are flushed before the end.
//! - Every wait here has a limit: a machine that was told to end, ends.

use std::time::{Duration, Instant};

use log::info;
use shared::message::{Message, PowerAction, SeverReason, Shutdown};

use super::action::{Action, End, EndSignal, Signal};
use super::ids::ConnectionId;
use super::sessions::session::Session;
use super::state::{Input, Request};
use super::timers::Timer;
use super::{Agent, LIMIT_MAX};

/// Time for the connections to read their last frames.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Sessions have been told to end.
    Sessions,
    /// Only connections are left, with frames to be read.
    FinalFlush,
    /// The end has been asked of the shell.
    Over,
}

#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Ending {
    end: End,
    phase: Phase,
}

impl Agent {
    pub(super) fn handle_shutdown(&mut self, id: ConnectionId, request: Shutdown, now: Instant) {
        if !self.admit(id, Request::Shutdown, now) {
            return;
        }
        self.send(id, &Message::Ok, now);
        let end = match request.action {
            PowerAction::PowerOff => End::PowerOff,
            PowerAction::Reboot => End::Reboot,
        };
        self.begin_ending(end, Duration::from_millis(request.grace_ms), now);
    }

    pub fn handle_signal(&mut self, signal: Signal, now: Instant) {
        let end = match signal {
            Signal::Interrupt if self.settings.is_init => End::Reboot,
            Signal::Interrupt | Signal::End => End::PowerOff,
        };
        self.begin_ending(end, self.settings.grace, now);
    }

    pub(super) fn begin_ending(&mut self, end: End, grace: Duration, now: Instant) {
        if self.ending.is_some() {
            return self.sever_all(now);
        }
        info!("ending: {end:?} after at most {} ms", grace.as_millis());
        self.set_state(Input::End);
        self.abandon_quiescing();
        self.cancel_workload_restart(now);
        self.timers.stop(Timer::LogHold);
        drop(self.rebinds.abandon());
        self.ending = Some(Ending {
            end,
            phase: Phase::Sessions,
        });
        self.timers.set(Timer::Shutdown, now + grace.min(LIMIT_MAX));
        self.sever_all(now);
        let sessions: Vec<_> = self.sessions.running().map(Session::id).collect();
        for id in sessions {
            self.terminate_session(id, now);
            // The grace of this request applies, not that of a single session.
            self.timers.stop(Timer::Kill(id));
        }
        if self.settings.is_init {
            self.actions
                .push_back(Action::SignalEveryone(EndSignal::Terminate));
        }
        self.advance_ending(now);
    }

    fn sever_all(&mut self, now: Instant) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.sever(id, SeverReason::Shutdown, now);
        }
    }

    /// Moves on if no session or connection is in the way any more. Called wherever one may have
    /// gone.
    pub(super) fn advance_ending(&mut self, now: Instant) {
        let Some(Ending { end, phase }) = self.ending else {
            return;
        };
        match phase {
            Phase::Sessions if self.sessions.running_count() == 0 => self.end_sessions(now),
            Phase::FinalFlush if self.connections.is_empty() => {
                self.timers.stop(Timer::FinalFlush);
                self.ending = Some(Ending {
                    end,
                    phase: Phase::Over,
                });
                self.actions.push_back(Action::End(end));
            }
            Phase::Sessions | Phase::FinalFlush | Phase::Over => {}
        }
    }

    /// All sessions have ended, or the grace is over.
    pub(super) fn end_sessions(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        ending.phase = Phase::FinalFlush;
        self.timers.stop(Timer::Shutdown);
        self.kill_sessions(now);
        if self.settings.is_init {
            self.actions
                .push_back(Action::SignalEveryone(EndSignal::Kill));
        }
        self.timers.set(Timer::FinalFlush, now + FLUSH_TIMEOUT);
        self.advance_ending(now);
    }

    /// The connections have had their time.
    pub(super) fn end_final_flush(&mut self) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        if ending.phase != Phase::Over {
            ending.phase = Phase::Over;
            let end = ending.end;
            self.actions.push_back(Action::End(end));
        }
    }
}
