//! PROBE: the proof that the listener hears connections and that commands can run. No I/O, no
//! clock.

use std::time::Instant;

use shared::id::Nonce;
use shared::message::{Depth, Fail, FailCode, Message, Probe, Probed, Progress};

use crate::agent::Agent;
use crate::agent::action::{Action, Purpose, SpawnFailure};
use crate::agent::ids::ConnectionId;
use crate::agent::program::Command;
use crate::agent::sessions::children::Owner;
use crate::agent::sessions::exec::is_shortage;
use crate::agent::sessions::session::Exit;
use crate::agent::state::{Input, Request, State};
use crate::agent::timers::Timer;
use crate::agent::transport::connection::PendingProbe;

impl Agent {
    pub(crate) fn handle_probe(&mut self, id: ConnectionId, probe: Probe, now: Instant) {
        if !self.admit(id, Request::Probe, now) {
            return;
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if !self.listener.is_fresh(connection.accepted_under) {
            let text = "this connection was accepted before the last rebind; probe on a new one";
            return self.send_fail(id, FailCode::Stale, text, now);
        }
        if connection.probe.is_some() {
            let text = "a probe of this connection is under way";
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        if let Some(wanted) = probe.generation
            && !self.is_current(id, wanted, now)
        {
            return;
        }
        self.counters.probes += 1;
        match probe.depth {
            Depth::Listener => self.send_probed(id, probe.nonce, None, now),
            Depth::Exec => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.probe = Some(PendingProbe {
                        nonce: probe.nonce,
                        started_at: now,
                    });
                }
                let progress = Progress {
                    step: Depth::Exec.as_str().to_owned(),
                };
                self.send(id, &Message::Progress(progress), now);
                let command = Box::new(Command::noop());
                self.actions.push_back(Action::Spawn {
                    purpose: Purpose::Probe(id),
                    command,
                });
            }
        }
    }

    fn send_probed(&mut self, id: ConnectionId, nonce: Nonce, exec_us: Option<u64>, now: Instant) {
        let probed = Probed {
            generation: self.generation,
            nonce,
            listener_serial: self.listener.serial(),
            accepts_since_rebind: self.listener.accepts_since_rebind(),
            exec_us,
            hooks: self.hooks.has_restore,
        };
        self.send(id, &Message::Probed(probed), now);
        // A QUIESCE or REBIND meanwhile makes the proof worthless.
        if matches!(self.state, State::Running | State::Rebound(_)) {
            self.set_state(Input::Proven);
            self.timers.stop(Timer::LogHold);
            self.announce_generation(now);
        }
    }

    pub(crate) fn handle_probe_spawned(
        &mut self,
        id: ConnectionId,
        result: Result<i32, SpawnFailure>,
        now: Instant,
    ) {
        match result {
            Ok(pid) => self.watch_child(pid, Owner::Probe(id), now),
            Err(failure) => {
                if let Some(pid) = failure.stillborn {
                    self.watch_child(pid, Owner::Stillborn, now);
                }
                let code = if is_shortage(&failure) {
                    FailCode::Limit
                } else {
                    FailCode::Probe
                };
                let text = format!("cannot spawn the probe's process: {}", failure.text);
                self.fail_probe(id, code, Some(failure.errno), text, now);
            }
        }
    }

    pub(crate) fn handle_probe_exit(&mut self, id: ConnectionId, exit: Exit, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(probe) = connection.probe.take() else {
            return;
        };
        if exit.status.shell_code() == 0 {
            let took = now.saturating_duration_since(probe.started_at);
            let exec_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.send_probed(id, probe.nonce, Some(exec_us), now);
        } else {
            let text = format!(
                "the probe's process ended with status {}",
                exit.status.shell_code()
            );
            self.fail_probe(id, FailCode::Probe, None, text, now);
        }
    }

    /// The kernel no longer knows the probe's process.
    pub(crate) fn handle_probe_lost(&mut self, id: ConnectionId, now: Instant) {
        let text = "the probe's process is lost; how it ended is unknown".to_owned();
        self.fail_probe(id, FailCode::Probe, None, text, now);
    }

    fn fail_probe(
        &mut self,
        id: ConnectionId,
        code: FailCode,
        errno: Option<i32>,
        text: String,
        now: Instant,
    ) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.probe = None;
        }
        let phase = Some(Depth::Exec.as_str().to_owned());
        self.send(
            id,
            &Message::Fail(Fail {
                code,
                phase,
                errno,
                text,
            }),
            now,
        );
    }
}
