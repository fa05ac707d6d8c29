//! EXEC, and a session's process from its start to its end. No I/O, no clock.
//!
//! ```text
//! EXEC(id) ─┬ id is known ──────────────────▶ attached to the session that the first EXEC started:
//!           │                                 STARTED, the rest of the output, EXITED
//!           ├ id is new, offsets are 0 ─────▶ spawned ─▶ STARTED, output…, EXITED
//!           ├ id is new, others are not ────▶ FAIL(no_session): it has run and is forgotten
//!           └ the first EXEC may have run ──▶ FAIL(unknown): it went to another instance of the
//!             without a trace                 agent or in another life, or is forgotten
//! ```
//!
//! Invariants:
//! - A request for another generation than the guest's starts nothing.
//! - A request is run at most once, however often it is sent, also after a restart of the agent.

use std::time::{Duration, Instant};

use log::debug;
use shared::message::{AttachMode, ByteString, Exec, Exited, Fail, FailCode, Message, Stream};

use super::buffers::START_HEADROOM_LEN;
use super::children::Owner;
use super::session::{Answer, Exit, Session, Spec, command_text};
use crate::agent::action::{Action, EndSignal, Purpose, SpawnFailure, SpawnStage};
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::program::Command;
use crate::agent::state::Request;
use crate::agent::timers::Timer;
use crate::agent::{Agent, DetachReason, SESSIONS_MAX};

/// How long other processes may hold a reaped command's output open, in all, before EXITED is sent.
pub(crate) const GRACE_TIMEOUT: Duration = Duration::from_millis(250);

/// ENOENT and ENOTDIR: shells report a missing command differently from one that cannot be run.
const ERRNO_NOT_FOUND: [i32; 2] = [2, 20];

/// EAGAIN, ENOMEM, ENFILE, EMFILE and ENOSPC: the guest lacks what it may have again later.
const ERRNO_SHORTAGE: [i32; 5] = [11, 12, 23, 24, 28];

impl Agent {
    pub(crate) fn handle_exec(&mut self, id: ConnectionId, exec: &Exec, now: Instant) {
        if !self.admit(id, Request::Exec, now) {
            return;
        }
        if let Some(wanted) = exec.generation
            && !self.is_current(id, wanted, now)
        {
            return;
        }
        if !self.is_free(id, now) {
            return;
        }
        let from = [exec.stdout_from, exec.stderr_from];
        match self.sessions.find_exec(exec.id) {
            Some(session) => {
                self.counters.attaches += 1;
                let answer = Answer::Started { fresh: false };
                self.attach(id, session, mode_of(exec), from.map(Some), answer, now);
            }
            None if from != [0, 0] => {
                let text = "the command of this request has run and is forgotten";
                self.send_fail(id, FailCode::NoSession, text, now);
            }
            None => match self.why_in_doubt(exec) {
                Some(text) => self.send_fail(id, FailCode::Unknown, text, now),
                None => self.start_session(id, exec, now),
            },
        }
    }

    /// Why the agent cannot tell whether a copy of this request, which it does not know, has run.
    fn why_in_doubt(&self, exec: &Exec) -> Option<&'static str> {
        let begun = self.serials.sessions_begun();
        let after = match exec.origin.as_deref() {
            None => 0,
            Some(origin) if origin.instance != self.settings.instance => {
                return Some("this is not the agent that the request was first sent to");
            }
            Some(origin)
                if origin.sessions_begun > begun
                    || origin
                        .generation
                        .is_some_and(|it| !self.rebinds.has_lived(it)) =>
            {
                return Some("the guest was restored since the request was first sent");
            }
            Some(origin) => origin.sessions_begun,
        };
        self.sessions
            .may_be_forgotten(exec.id, after)
            .then_some("too many commands have run since the request was first sent")
    }

    fn start_session(&mut self, id: ConnectionId, exec: &Exec, now: Instant) {
        if self.sessions.running_count() >= SESSIONS_MAX {
            let text = format!("{SESSIONS_MAX} commands are running already");
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        if let Some(limit) = exec.content_limit_exceeded() {
            return self.send_fail(id, FailCode::Limit, limit.to_string(), now);
        }
        if exec.has_limits() && !self.settings.confinement.has_limits {
            let text =
                "this guest cannot limit commands: it has no cgroups for memory and processes";
            return self.send_fail(id, FailCode::Unsupported, text, now);
        }
        let spec = Spec {
            exec: Some(exec.id),
            command: command_text(exec.argv.iter().map(ByteString::as_bytes)),
            generation: self.generation,
            tty: exec.tty,
            has_input: exec.stdin,
            output: exec.output,
            is_detached: exec.detached,
            keep: Duration::from_millis(exec.keep_ms.unwrap_or(0)),
            timeout: exec.timeout_ms.map(Duration::from_millis),
        };
        let session = self.serials.next_session();
        let mut fresh = Session::new(session, spec, now);
        if !self.has_memory_for(&mut fresh) {
            let text = "the agent has no memory for the output of another command";
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        self.counters.execs += 1;
        self.sessions.insert(fresh);
        self.spawn_session(session, Command::of(exec));
        let answer = Answer::Started { fresh: true };
        self.attach(id, session, mode_of(exec), [Some(0); 2], answer, now);
    }

    /// Gives a session the memory that it needs at least. Kept output goes for it.
    fn has_memory_for(&mut self, session: &mut Session) -> bool {
        for _ in 0..2 {
            self.save_memory();
            if self.buffers.admits(START_HEADROOM_LEN) && session.open(&mut self.buffers) {
                return true;
            }
            session.clear(&mut self.buffers);
            // Now memory is saved.
            self.buffers.refuse();
        }
        false
    }

    pub(crate) fn spawn_session(&mut self, id: SessionId, mut command: Command) {
        command.limits = command.limits.or(self.settings.confinement.limits);
        self.actions.push_back(Action::Spawn {
            purpose: Purpose::Session(id),
            command: Box::new(command),
        });
    }

    /// Answers [`Action::Spawn`].
    pub fn handle_spawned(
        &mut self,
        purpose: Purpose,
        result: Result<i32, SpawnFailure>,
        now: Instant,
    ) {
        match purpose {
            Purpose::Probe(id) => self.handle_probe_spawned(id, result, now),
            Purpose::Session(id) => match result {
                Ok(pid) => self.handle_session_spawned(id, pid, now),
                Err(failure) => self.handle_spawn_failed(id, &failure, now),
            },
        }
    }

    fn handle_session_spawned(&mut self, id: SessionId, pid: i32, now: Instant) {
        self.watch_child(pid, Owner::Session(id), now);
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.handle_spawned(pid);
        debug!("{id}: process {pid}");
        if let Some(timeout) = session.spec().timeout {
            self.timers.set_after(Timer::Timeout(id), timeout, now);
        }
        for attached in session.attached().to_vec() {
            self.give_answer(attached, now);
        }
        self.advance_input(id, now);
        if self.sessions.get(id).is_some_and(|it| it.is_terminating) {
            // It was told to end while it was being started.
            self.terminate_session(id, now);
        }
    }

    fn handle_spawn_failed(&mut self, id: SessionId, failure: &SpawnFailure, now: Instant) {
        if let Some(pid) = failure.stillborn {
            self.watch_child(pid, Owner::Stillborn, now);
        }
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let fail = spawn_fail(failure);
        if session.is_workload() {
            return self.handle_workload_never_ran(&fail, now);
        }
        let attached = session.attached().to_vec();
        // Nothing ran, so the request may be made again.
        self.sessions.remove(id, &mut self.buffers);
        self.stop_session_timers(id);
        for attached in attached {
            self.release_session(attached, DetachReason::Done, now);
            self.send(attached, &Message::Fail(fail.clone()), now);
        }
        self.handle_hook_never_ran(id, &fail, now);
        self.advance_quiescing(now);
        self.advance_ending(now);
    }

    /// How many bytes of an output may be handed in now. Zero stops reading it until
    /// [`Action::ResumeOutput`].
    pub fn output_room(&mut self, id: SessionId, stream: Stream) -> usize {
        self.save_memory();
        let Some(session) = self.sessions.get_mut(id) else {
            return 0;
        };
        let room = session.poll_room(stream, &mut self.buffers);
        if room == 0 && session.is_short_at(stream) {
            self.ask_for_ack(id);
        }
        room
    }

    /// Memory to read a command's output into, possibly none.
    /// [`handle_output_read`](Self::handle_output_read) must follow.
    pub fn output_spare(&mut self, id: SessionId, stream: Stream) -> [&mut [u8]; 2] {
        match self.sessions.get_mut(id) {
            Some(session) => session.output_spare(stream),
            None => [&mut [], &mut []],
        }
    }

    /// A command wrote at most [`Self::output_room`] bytes, or none. The first `spare_len` were
    /// read into [`Self::output_spare`]; `bytes` are those after them.
    pub fn handle_output_read(
        &mut self,
        id: SessionId,
        stream: Stream,
        spare_len: usize,
        bytes: &[u8],
        now: Instant,
    ) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.advance_output(stream, spare_len, &mut self.buffers);
        if !bytes.is_empty() {
            session.handle_output(stream, bytes, &mut self.buffers);
        }
        let is_fully_read = session.is_fully_read();
        if spare_len + bytes.len() > 0 {
            self.pump_session(id);
        }
        if is_fully_read {
            self.give_up_output(id, now);
        }
    }

    /// A command's output has nothing more now, and has not ended.
    pub fn handle_output_empty(&mut self, id: SessionId, stream: Stream, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.handle_output_empty(stream);
            if session.is_fully_read() {
                self.give_up_output(id, now);
            }
        }
    }

    /// Answers [`Action::CountOutput`]: so many bytes are in the pipes of a command that has just
    /// been waited for.
    pub fn handle_output_counted(&mut self, id: SessionId, lens: [usize; 2]) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.handle_output_counted(lens);
        }
    }

    pub fn handle_output_closed(&mut self, id: SessionId, stream: Stream, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.handle_output_closed(stream);
            // The other one may have been left open for the rest of this one.
            let is_fully_read = session.is_fully_read();
            if session.is_silent() {
                self.expect_child(now);
            }
            if is_fully_read {
                self.give_up_output(id, now);
            } else {
                self.finish_if_complete(id, now);
            }
        }
    }

    /// A session's rings may have room again.
    pub(crate) fn resume_output(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if session.poll_resume() {
            self.actions.push_back(Action::ResumeOutput(id));
        }
    }

    /// While memory is short, the output of ended sessions goes, and buffers that are not in use.
    pub(crate) fn save_memory(&mut self) {
        if self.buffers.is_short() {
            self.sessions.drop_ended_output(&mut self.buffers);
            for connection in self.connections.values_mut() {
                connection.save_memory(&mut self.buffers);
            }
        }
    }

    /// Memory came back: reading continues where a ring could not grow.
    pub(crate) fn resume_short_outputs(&mut self) {
        let sessions = self.sessions.all_mut();
        let short = sessions.filter_map(|it| it.poll_relief().then_some(it.id()));
        self.actions.extend(short.map(Action::ResumeOutput));
    }

    pub(crate) fn handle_session_exit(&mut self, id: SessionId, exit: Exit, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if session.is_terminating {
            // The leader is gone; other processes of its group may have ignored TERM. Later the
            // number may be another group's.
            self.signal_session(id, EndSignal::Kill.number());
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.handle_exit(exit);
            if session.completion().is_none() {
                self.actions.push_back(Action::CountOutput(id));
            }
        }
        self.handle_session_reaped(id, now);
    }

    /// A session's process is gone; its output may still be open.
    pub(crate) fn handle_session_reaped(&mut self, id: SessionId, now: Instant) {
        self.timers.stop(Timer::Kill(id));
        self.timers.set(Timer::Grace(id), now + GRACE_TIMEOUT);
        self.close_input(id, now);
        self.finish_if_complete(id, now);
    }

    /// Another process has held a reaped command's output open for too long. What the command has
    /// written itself is still read, however slow its reader is.
    pub(crate) fn end_grace(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.handle_grace_over();
        if session.is_fully_read() {
            self.give_up_output(id, now);
        }
    }

    /// Ends a reaped command without what is left of its output.
    pub(crate) fn give_up_output(&mut self, id: SessionId, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.handle_output_given_up();
            self.actions.push_back(Action::CloseOutput(id));
            self.finish_if_complete(id, now);
        }
    }

    fn finish_if_complete(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let Some(exited) = session.completion() else {
            return;
        };
        let is_workload = session.is_workload();
        let has_terminal = session.spec().tty.is_some();
        if session.is_terminating {
            // It may have been told so after its command's own end.
            self.kill_cgroup(id);
        }
        if has_terminal {
            // It was kept open until the end, see `Action::CloseOutput`.
            self.actions.push_back(Action::CloseOutput(id));
        }
        self.stop_session_timers(id);
        if is_workload {
            self.handle_workload_over(id, exited, now);
        } else {
            self.end_session(id, exited, now);
        }
    }

    /// Keeps a session's result and sends it to all attached connections.
    pub(crate) fn end_session(&mut self, id: SessionId, exited: Exited, now: Instant) {
        debug!("{id}: ended with status {}", exited.status.shell_code());
        self.sessions.complete(id, exited, &mut self.buffers);
        let attached = self.sessions.get(id).map(|it| it.attached().to_vec());
        for attached in attached.into_iter().flatten() {
            self.pump_connection(attached, now);
        }
        self.handle_hook_ended(id, exited, now);
        let results_max = self.settings.results_max;
        self.sessions.trim(results_max, &mut self.buffers);
        self.advance_quiescing(now);
        self.advance_ending(now);
    }
}

fn mode_of(exec: &Exec) -> AttachMode {
    if exec.detached {
        AttachMode::Observe
    } else {
        AttachMode::Own
    }
}

/// Whether the guest lacks something that it may have again later, so that the request may be made
/// again.
pub(crate) fn is_shortage(failure: &SpawnFailure) -> bool {
    failure.stage == SpawnStage::Clone || ERRNO_SHORTAGE.contains(&failure.errno)
}

/// The failure as the host gets it.
fn spawn_fail(failure: &SpawnFailure) -> Fail {
    let (code, phase, what) = match failure.stage {
        SpawnStage::Clone => (FailCode::Limit, "clone", "cannot create the process"),
        SpawnStage::SetUp => (FailCode::Internal, "set_up", "cannot prepare the process"),
        SpawnStage::User => (FailCode::NotRunnable, "user", "cannot become the user"),
        SpawnStage::Chdir => (
            FailCode::NotRunnable,
            "chdir",
            "cannot enter the working directory",
        ),
        SpawnStage::Exec if ERRNO_NOT_FOUND.contains(&failure.errno) => {
            (FailCode::NotFound, "exec", "cannot find the program")
        }
        SpawnStage::Exec => (FailCode::NotRunnable, "exec", "cannot execute the program"),
    };
    let code = if is_shortage(failure) {
        FailCode::Limit
    } else {
        code
    };
    Fail {
        code,
        phase: Some(phase.to_owned()),
        errno: Some(failure.errno),
        text: format!("{what} {}", failure.text),
    }
}
