//! The workload: the image's program, in a session that no host started. No I/O, no clock.
//!
//! ```text
//!               ended, could not be started
//! Running ─┬──────────────────────────────────▶ to be started again ─▶ Pausing ─┐
//!    ▲     └────▶ not to be ─▶ Ended ─▶ the machine runs on, or ends ─▶ Done     │
//!    └───────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It starts with the agent, needs no client and runs as long as the machine does. A restart keeps
//! the session: its offsets grow on and connections stay attached. Its result is that of its last
//! run.
//!
//! A REBIND that kills inherited sessions also kills the workload. This end does not count against
//! it: it is restarted if failures are, and the machine does not end for it.
//!
//! Invariants:
//! - It is not started, and the machine not ended, while session time stands still.
//! - A program that keeps failing costs less and less: the pause before the next start doubles.

use std::time::{Duration, Instant};

use log::{info, warn};
use shared::message::{ExitStatus, Exited, Fail, FailCode, OutputPolicy, ResourceUsage};

use super::session::{Exit, Session, Spec, command_text};
use crate::agent::Agent;
use crate::agent::action::End;
use crate::agent::ids::SessionId;
use crate::agent::program::Command;
use crate::agent::settings::{Restart, WorkloadEnd, WorkloadSettings};
use crate::agent::state::State;
use crate::agent::timers::Timer;

/// Pause before the first restart.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(100);

pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// After a run of this length the next pause is the shortest again.
pub(crate) const RUN_LEN_MIN: Duration = Duration::from_secs(10);

/// A shell's exit code for a missing program.
const CODE_NOT_FOUND: u8 = 127;

/// A shell's exit code for a program that cannot be run.
const CODE_NOT_RUNNABLE: u8 = 126;

/// The exit code of container tools when they fail, and not the program.
const CODE_SHORTAGE: u8 = 125;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Running,
    /// It will be started again. The last run ended like this.
    Pausing(Exited),
    /// It has ended for good; the machine may have to end for it.
    Ended,
    /// It has ended for good, and nothing is left to do.
    Done,
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Workload {
    settings: WorkloadSettings,
    session: SessionId,
    phase: Phase,
    /// The pause before the next start.
    pause: Duration,
    started_at: Instant,
    /// Whether a REBIND has killed this run.
    is_dropped: bool,
}

/// The status that a shell would report for a program that could not be started, and 125 for one
/// that may be started later.
pub(crate) fn status_of_never_ran(fail: &Fail) -> ExitStatus {
    ExitStatus::Code(match fail.code {
        FailCode::NotFound => CODE_NOT_FOUND,
        FailCode::Limit => CODE_SHORTAGE,
        _ => CODE_NOT_RUNNABLE,
    })
}

impl Agent {
    /// Starts the workload, if the image has one.
    pub(crate) fn start_workload(&mut self, now: Instant) {
        let Some(settings) = self.settings.workload.clone() else {
            return;
        };
        let session = self.serials.next_session();
        let spec = Spec {
            exec: None,
            command: command_text(settings.argv.iter().map(Vec::as_slice)),
            generation: self.generation,
            tty: None,
            has_input: false,
            output: OutputPolicy::DropOldest,
            is_detached: true,
            keep: Duration::ZERO,
            timeout: None,
        };
        let mut fresh = Session::new(session, spec, now);
        // At the start there is memory. If not, its output is dropped until there is.
        fresh.open(&mut self.buffers);
        self.sessions.insert(fresh);
        self.spawn_session(session, Command::of_workload(&settings));
        self.workload = Some(Workload {
            settings,
            session,
            phase: Phase::Running,
            pause: PAUSE_MIN,
            started_at: now,
            is_dropped: false,
        });
    }

    /// A workload that cannot be started has failed like any other, except for a shortage: then it
    /// is tried again, because it has not run.
    pub(crate) fn handle_workload_never_ran(&mut self, fail: &Fail, now: Instant) {
        warn!("workload: {}", fail.text);
        let Some(id) = self.workload.as_ref().map(|workload| workload.session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.handle_never_ran(Exit {
            status: status_of_never_ran(fail),
            usage: ResourceUsage::default(),
        });
        let has_run = fail.code != FailCode::Limit;
        if let Some(exited) = session.completion() {
            self.end_workload_run(id, exited, has_run, now);
        }
    }

    /// Its process has ended, and all of its output was read.
    pub(crate) fn handle_workload_over(&mut self, id: SessionId, exited: Exited, now: Instant) {
        self.end_workload_run(id, exited, true, now);
    }

    /// `has_run`: unless the guest lacked what its process takes.
    fn end_workload_run(&mut self, id: SessionId, exited: Exited, has_run: bool, now: Instant) {
        let is_ending = self.state == State::Ending;
        let (Some(workload), Some(session)) = (&mut self.workload, self.sessions.get_mut(id))
        else {
            return;
        };
        let status = exited.status.shell_code();
        let has_failed = exited.status != ExitStatus::Code(0) || exited.fault.is_some();
        let is_wanted = match workload.settings.restart {
            Restart::No => !has_run,
            Restart::OnFailure => has_failed,
        };
        let is_again = is_wanted && !is_ending;
        if !is_again {
            info!("workload: ended with status {status}");
            workload.phase = Phase::Ended;
            self.timers.set_after(Timer::Workload, Duration::ZERO, now);
            return self.end_session(id, exited, now);
        }
        if now.saturating_duration_since(workload.started_at) >= RUN_LEN_MIN {
            workload.pause = PAUSE_MIN;
        }
        let pause = workload.pause;
        info!(
            "workload: ended with status {status}; again in {} ms",
            pause.as_millis()
        );
        workload.phase = Phase::Pausing(exited);
        workload.pause = (pause * 2).min(PAUSE_MAX);
        session.handle_restart();
        self.timers.set_after(Timer::Workload, pause, now);
    }

    /// Acts on its end.
    pub(crate) fn handle_workload_timer(&mut self, now: Instant) {
        match self.workload.as_ref().map(|workload| workload.phase) {
            Some(Phase::Pausing(_)) => self.restart_workload(now),
            Some(Phase::Ended) => self.act_on_workload_end(now),
            Some(Phase::Running | Phase::Done) | None => {}
        }
    }

    fn restart_workload(&mut self, now: Instant) {
        let Some(workload) = &mut self.workload else {
            return;
        };
        workload.phase = Phase::Running;
        workload.is_dropped = false;
        workload.started_at = now;
        self.counters.restarts += 1;
        let command = Command::of_workload(&workload.settings);
        let id = workload.session;
        if let Some(session) = self.sessions.get_mut(id) {
            session.restarts = session.restarts.saturating_add(1);
        }
        self.spawn_session(id, command);
    }

    fn act_on_workload_end(&mut self, now: Instant) {
        let Some(workload) = &mut self.workload else {
            return;
        };
        workload.phase = Phase::Done;
        let ends = match workload.settings.at_end {
            WorkloadEnd::Keep => false,
            WorkloadEnd::PowerOff => !workload.is_dropped,
        };
        if ends && self.state != State::Ending {
            self.begin_ending(End::PowerOff, self.settings.grace, now);
        }
    }

    /// A REBIND kills inherited sessions.
    pub(crate) fn drop_workload(&mut self) {
        if let Some(workload) = &mut self.workload {
            workload.is_dropped |= workload.phase == Phase::Running;
        }
    }

    /// The machine ends, so the workload is not started again.
    pub(crate) fn cancel_workload_restart(&mut self, now: Instant) {
        self.timers.stop(Timer::Workload);
        let Some(workload) = &mut self.workload else {
            return;
        };
        if let Phase::Pausing(exited) = workload.phase {
            workload.phase = Phase::Done;
            let id = workload.session;
            if let Some(session) = self.sessions.get_mut(id) {
                session.handle_never_ran(Exit {
                    status: exited.status,
                    usage: exited.usage,
                });
            }
            self.end_session(id, exited, now);
        }
    }
}
