//! What the host asks for: one function that looks at every message, and the short answers. No I/O,
//! no clock.
//!
//! The longer conversations are in [`rebind`](crate::agent::rebind) and its folder, for REBIND,
//! QUIESCE, checkpoints and hooks; in [`sessions`](crate::agent::sessions), for EXEC, ATTACH and
//! what follows either; and in [`ending`](crate::agent::ending), for SHUTDOWN.

use std::collections::BTreeMap;
use std::time::Instant;

use log::debug;
use shared::id::{Generation, Nonce};
use shared::message::{Depth, Fail, FailCode, Hello, Info, Message, Probe, Probed, Progress, Role};
use shared::version;

use super::connection::{PendingProbe, Received, answer_hello};
use crate::agent::action::{Action, Figures, Purpose, SpawnFailure};
use crate::agent::ids::ConnectionId;
use crate::agent::sessions::children::Owner;
use crate::agent::sessions::program::Command;
use crate::agent::sessions::session::Exit;
use crate::agent::state::{Input, Request, State};
use crate::agent::timers::Timer;
use crate::agent::{Agent, Departure};

impl Agent {
    /// Takes a connection's requests, as far as it may ask for more.
    pub(crate) fn take_requests(&mut self, id: ConnectionId, now: Instant) {
        while let Some(connection) = self.connections.get_mut(&id) {
            match connection.poll_message() {
                Ok(Some(Received::Message(message))) => self.handle_message(id, message, now),
                Ok(Some(Received::Input { offset, len })) => {
                    self.note_host_alive(now);
                    self.handle_stdin(id, offset, len, now);
                }
                Ok(None) => return,
                Err(mistake) => return self.refuse_mistake(id, &mistake, now),
            }
        }
    }

    fn handle_message(&mut self, id: ConnectionId, message: Message, now: Instant) {
        if self.connections.get(&id).is_some_and(|it| !it.is_local()) {
            self.note_host_alive(now);
        }
        match message {
            Message::Hello(hello) => self.handle_hello(id, &hello, now),
            // In every state: it asks whether anybody is there.
            Message::Ping(ping) => self.send(id, &Message::Pong(ping), now),
            Message::InfoRequest => self.handle_info(id, now),
            Message::Rebind(rebind) => self.handle_rebind(id, rebind, now),
            Message::Probe(probe) => self.handle_probe(id, probe, now),
            Message::Quiesce(quiesce) => self.handle_quiesce(id, quiesce, now),
            Message::Reopen(reopen) => self.handle_reopen(id, reopen, now),
            Message::Exec(exec) => self.handle_exec(id, &exec, now),
            Message::Shutdown(shutdown) => self.handle_shutdown(id, shutdown, now),
            Message::Attach(attach) => self.handle_attach(id, attach, now),
            Message::Ack(ack) => self.handle_ack(id, ack, now),
            Message::StdinEof(eof) => self.handle_stdin_eof(id, eof, now),
            Message::Signal(signal) => self.handle_signal_request(id, signal, now),
            Message::Resize(size) => self.handle_resize(id, size),
            Message::ExitAck(ack) => self.handle_exit_ack(id, ack),
            Message::SessionsRequest(request) => self.handle_sessions(id, request, now),
            Message::Hooks(request) => self.handle_hooks(id, request, now),
            Message::AwaitCheckpoint(request) => self.handle_await_checkpoint(id, request, now),
            Message::CheckpointRequest(request) => self.handle_checkpoint(id, request, now),
            Message::GenerationRequest(request) => self.handle_generation_request(id, request, now),
            // Answers to what the agent has not asked. It has nothing to conclude from them.
            Message::Pong(_) | Message::Fail(_) => {}
            // `Message::parse` refuses these from a host and from programs in the guest.
            Message::Ok
            | Message::Progress(_)
            | Message::Rebound(_)
            | Message::Probed(_)
            | Message::Busy(_)
            | Message::Quiesced(_)
            | Message::Sever(_)
            | Message::Started(_)
            // This one never comes here, it is taken without being one.
            | Message::Stdin(_)
            | Message::Stdout(_)
            | Message::Stderr(_)
            | Message::Exited(_)
            | Message::Attached(_)
            | Message::Gap(_)
            | Message::Window(_)
            | Message::Sessions(_)
            | Message::Checkpoint(_)
            | Message::Verdict(_)
            | Message::Generation(_)
            | Message::Hooked(_)
            | Message::Info(_) => {
                let text = format!("{} frame from the wrong side", message.kind());
                self.refuse(id, &Fail::new(FailCode::Protocol, text), now);
            }
        }
    }

    fn handle_hello(&mut self, id: ConnectionId, hello: &Hello, now: Instant) {
        self.timers.stop(Timer::Hello(id));
        debug!("{id}: HELLO from version {}", hello.version.escape_debug());
        let ours = Hello {
            protocol: version::SUPPORTED,
            role: Role::Guest,
            version: self.settings.version.clone(),
            boot_id: Some(self.settings.boot_id.clone()),
            generation: self.generation,
        };
        match answer_hello(hello, ours) {
            Ok(answer) => self.send(id, &answer, now),
            Err(fail) => self.refuse(id, &fail, now),
        }
    }

    fn handle_info(&mut self, id: ConnectionId, now: Instant) {
        if self.admit(id, Request::Look, now) {
            self.actions.push_back(Action::CollectFigures(id));
        }
    }

    /// What INFO reports was collected. Answers [`Action::CollectFigures`].
    pub fn handle_figures(&mut self, id: ConnectionId, figures: Figures, now: Instant) {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let info = Info {
            agent_version: self.settings.version.clone(),
            generation: self.generation,
            boot_id: self.settings.boot_id.clone(),
            state: self.state.name().to_owned(),
            kernel: self.settings.kernel.clone(),
            uptime_ms: millis(now, self.started_at),
            sessions: count(self.sessions.running_count()),
            connections: count(self.host_count()),
            fds: figures.fds,
            rss_kib: figures.rss_kib,
            orphans_reaped: self.children.orphans_reaped(),
            counters: self.counters_by_name(),
        };
        self.send(id, &Message::Info(info), now);
    }

    fn counters_by_name(&self) -> BTreeMap<String, u64> {
        let counters = self.counters;
        [
            ("accepts", counters.accepts),
            ("accepts_shed", counters.accepts_shed),
            ("peers_refused", counters.peers_refused),
            ("resets", counters.resets),
            ("rearms", counters.rearms),
            ("mistakes", counters.mistakes),
            ("execs", counters.execs),
            ("attaches", counters.attaches),
            ("superseded", counters.superseded),
            ("gaps", counters.gaps),
            ("timeouts", counters.timeouts),
            ("abandoned", counters.abandoned),
            ("restarts", counters.restarts),
            ("probes", counters.probes),
            ("rebinds", counters.rebinds),
            ("quiesces", counters.quiesces),
            ("mmds_reads", counters.mmds_reads),
            ("mmds_epochs", counters.mmds_epochs),
            ("mmds_failures", counters.mmds_failures),
            ("listener_serial", self.listener.serial()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn handle_probe(&mut self, id: ConnectionId, probe: Probe, now: Instant) {
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
        // A probe whose process was under way when the host asked for silence proves nothing any
        // more.
        if matches!(self.state, State::Running | State::Rebound(_)) {
            self.set_state(Input::Proven);
            self.timers.stop(Timer::Hush);
            self.tell_generation(now);
        }
    }

    /// A probe's process was started, or could not be.
    pub(crate) fn handle_probe_spawned(
        &mut self,
        id: ConnectionId,
        result: Result<i32, SpawnFailure>,
        now: Instant,
    ) {
        match result {
            Ok(pid) => self.children.insert(pid, Owner::Probe(id)),
            Err(failure) => {
                if let Some(pid) = failure.stillborn {
                    self.children.insert(pid, Owner::Stillborn);
                }
                let text = format!("cannot spawn the probe's process: {}", failure.text);
                self.fail_probe(id, Some(failure.errno), text, now);
            }
        }
    }

    /// A probe's process was reaped.
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
            self.fail_probe(id, None, text, now);
        }
    }

    fn fail_probe(&mut self, id: ConnectionId, errno: Option<i32>, text: String, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.probe = None;
        }
        let phase = Some(Depth::Exec.as_str().to_owned());
        self.send(
            id,
            &Message::Fail(Fail {
                code: FailCode::Probe,
                phase,
                errno,
                text,
            }),
            now,
        );
    }

    /// Whether the state lets this request be looked at. If not, the peer is told.
    pub(crate) fn admit(&mut self, id: ConnectionId, request: Request, now: Instant) -> bool {
        let Err(code) = self.state.admits(request) else {
            return true;
        };
        let fail = match (code, self.naming.failure()) {
            (FailCode::Rebind, Some(fail)) => fail.clone(),
            _ => Fail::new(code, format!("the guest is {}", self.state.name())),
        };
        self.send(id, &Message::Fail(fail), now);
        false
    }

    /// Whether `wanted` is the guest's name. If not, the peer is told.
    pub(crate) fn is_current(
        &mut self,
        id: ConnectionId,
        wanted: Generation,
        now: Instant,
    ) -> bool {
        if self.generation == Some(wanted) {
            return true;
        }
        let text = match self.generation {
            Some(current) => format!("the guest is of generation {current}, not {wanted}"),
            None => format!("the guest has no generation yet, so it is not of {wanted}"),
        };
        self.send_fail(id, FailCode::Stale, text, now);
        false
    }

    /// Ends a conversation whose connection was taken over by another one.
    pub(crate) fn supersede(&mut self, id: ConnectionId, text: &str, now: Instant) {
        self.counters.superseded += 1;
        let fail = Fail::new(FailCode::Superseded, text);
        self.send(id, &Message::Fail(fail), now);
        self.close_after_flush(id, Departure::Cut, now);
    }
}

/// Whole milliseconds from `earlier` to `now`.
fn millis(now: Instant, earlier: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(earlier).as_millis()).unwrap_or(u64::MAX)
}
