//! SHUTDOWN, and its equivalents: signals, and the end of a workload that powers the machine off.
//! No I/O, no clock.
//!
//! ```text
//!           no session is left,         no client is attached,          no connection is left,
//!           or the grace is over        or its time is over             or their time is over
//! Sessions ─────────────────────▶ Output ──────────────────▶ FinalFlush ─────────────────▶ Over
//! ```
//!
//! Invariants:
//! - The host that asked gets OK before its SEVER, and both are flushed before the end.
//! - A client that is attached to a session gets the rest of the output and EXITED before its
//!   SEVER, if it reads.
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

/// Time for attached clients to read the rest of the output, and then for all connections to read
/// their last frames.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Sessions have been told to end.
    Sessions,
    /// The sessions are over, or killed. Their clients read the rest of the output.
    Output,
    /// All connections are cut, and have frames to be read.
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
            return self.sever_unattached(now);
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
        self.sever_unattached(now);
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

    /// Cuts all connections, except for those that a session still has something for.
    fn sever_unattached(&mut self, now: Instant) {
        let idle = self.connections.iter();
        let idle = idle.filter(|(_, connection)| connection.attachment.is_none());
        let idle: Vec<_> = idle.map(|(id, _)| *id).collect();
        for id in idle {
            self.sever(id, SeverReason::Shutdown, now);
        }
    }

    /// A client has got everything of its session.
    pub(super) fn sever_if_ending(&mut self, id: ConnectionId, now: Instant) {
        if self.ending.is_some() {
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
            Phase::Output if !self.has_attached() => self.begin_final_flush(now),
            Phase::FinalFlush if self.connections.is_empty() => {
                self.timers.stop(Timer::FinalFlush);
                self.ending = Some(Ending {
                    end,
                    phase: Phase::Over,
                });
                self.actions.push_back(Action::End(end));
            }
            Phase::Sessions | Phase::Output | Phase::FinalFlush | Phase::Over => {}
        }
    }

    fn has_attached(&self) -> bool {
        let mut connections = self.connections.values();
        connections.any(|connection| connection.attachment.is_some())
    }

    /// All sessions have ended, or the grace is over.
    pub(super) fn end_sessions(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        ending.phase = Phase::Output;
        self.timers.stop(Timer::Shutdown);
        self.kill_sessions(now);
        if self.settings.is_init {
            self.actions
                .push_back(Action::SignalEveryone(EndSignal::Kill));
        }
        self.timers.set(Timer::FinalFlush, now + FLUSH_TIMEOUT);
        self.advance_ending(now);
    }

    /// The clients of sessions have everything, or have had their time.
    fn begin_final_flush(&mut self, now: Instant) {
        if let Some(ending) = &mut self.ending {
            ending.phase = Phase::FinalFlush;
        }
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.sever(id, SeverReason::Shutdown, now);
        }
        self.timers.set(Timer::FinalFlush, now + FLUSH_TIMEOUT);
        self.advance_ending(now);
    }

    /// The connections have had their time.
    pub(super) fn end_final_flush(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        match ending.phase {
            Phase::Output => self.begin_final_flush(now),
            Phase::Sessions | Phase::FinalFlush => {
                ending.phase = Phase::Over;
                let end = ending.end;
                self.actions.push_back(Action::End(end));
            }
            Phase::Over => {}
        }
    }
}
