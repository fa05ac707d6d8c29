//! EXEC as a conversation, and what happens to its session afterwards. No I/O, no clock.
//!
//! ```text
//! EXEC(id) ─┬ id is known and runs ──▶ the output moves to this connection
//!           ├ id is known, has ended ▶ its end is reported again
//!           └ id is new ─────────────▶ spawned ─▶ STARTED, output…, EXITED
//! ```
//!
//! What a lost connection means depends on who lost it. A client that closed does not wait for its
//! command, which is told to end. A connection cut by a snapshot, a rebind or a transport reset
//! says nothing about the client: the command keeps running, its output waits in the pipe, and only
//! after [`ABANDON_TIMEOUT`] is it told to end.
//!
//! Invariants:
//! - A request that names another generation than the guest's starts nothing.
//! - A request is run at most once, however often it is sent.

use std::time::{Duration, Instant};

use log::debug;
use shared::message::{Exec, Exited, Fail, FailCode, Message, Started, Stream, Window};

use super::action::{Action, EndSignal, Purpose, SpawnFailure, SpawnStage};
use super::children::Owner;
use super::command::Command;
use super::ids::{ConnectionId, SessionId};
use super::results::Known;
use super::session::{Exit, Session, Sink};
use super::state::{Request, State};
use super::timers::Timer;
use super::{Agent, Departure, SESSIONS_MAX};

/// How long a reaped command's output may stay open in other hands before its end is reported.
pub(super) const GRACE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a command that was told to end may take.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a command runs on after its connection was cut without its client's wish.
pub(super) const ABANDON_TIMEOUT: Duration = Duration::from_secs(60);

/// Errors that mean that a command is not there, as shells tell them apart from one that cannot be
/// run.
const ERRNO_NOT_FOUND: [i32; 2] = [2, 20];

impl Agent {
    pub(super) fn handle_exec(&mut self, id: ConnectionId, exec: &Exec, now: Instant) {
        if !self.admit(id, Request::Exec, now) {
            return;
        }
        if let Some(wanted) = exec.generation
            && !self.is_current(id, wanted, now)
        {
            return;
        }
        if self
            .connections
            .get(&id)
            .is_none_or(|connection| connection.session.is_some())
        {
            let text = "a command of this connection is running; use another connection";
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        match self.results.get(exec.id) {
            Some(Known::Running(session)) => self.attach(id, session, now),
            Some(Known::Ended(exited)) => self.repeat_end(id, exited, now),
            None => self.start_session(id, exec, now),
        }
    }

    fn start_session(&mut self, id: ConnectionId, exec: &Exec, now: Instant) {
        if self.sessions.len() >= SESSIONS_MAX {
            let text = format!("{SESSIONS_MAX} commands are running already");
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        if let Some(limit) = exec.limit_exceeded() {
            return self.send_fail(id, FailCode::Limit, limit.to_string(), now);
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let session = self.serials.next_session();
        connection.session = Some(session);
        self.sessions
            .insert(session, Session::new(session, exec.id, id));
        self.results.insert(exec.id, session);
        self.counters.execs += 1;
        let command = Box::new(Command::of(exec));
        self.actions.push_back(Action::Spawn {
            purpose: Purpose::Session(session),
            command,
        });
    }

    /// A program was started, or could not be. Answers [`Action::Spawn`].
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
        self.children.insert(pid, Owner::Session(id));
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.handle_spawned(pid);
        debug!("{id}: process {pid}");
        let started = session.started(true);
        match session.sink {
            Sink::Connection(connection) => {
                self.send(connection, &Message::Started(started), now);
            }
            Sink::Held => {}
            // Its client left while it was being started.
            Sink::Discarded => self.terminate_session(id, now),
        }
    }

    fn handle_spawn_failed(&mut self, id: SessionId, failure: &SpawnFailure, now: Instant) {
        if let Some(pid) = failure.stillborn {
            self.children.insert(pid, Owner::Stillborn);
        }
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        // Nothing ran, so the request may be made again.
        self.results.remove(session.exec());
        self.stop_session_timers(id);
        if let Sink::Connection(connection) = session.sink {
            if let Some(connection) = self.connections.get_mut(&connection) {
                connection.session = None;
            }
            self.send(connection, &Message::Fail(spawn_fail(failure)), now);
        }
        self.advance_quiescing(now);
        self.advance_ending(now);
    }

    /// How many bytes of output may be handed in now. Zero stops the reading until
    /// [`Action::ResumeOutput`].
    pub fn output_room(&mut self, id: SessionId) -> usize {
        let Some(session) = self.sessions.get_mut(&id) else {
            return 0;
        };
        let room = match session.sink {
            Sink::Connection(connection) => self
                .connections
                .get(&connection)
                .map_or(0, |it| it.outbox.stream_room()),
            Sink::Held => 0,
            Sink::Discarded => shared::limits::STREAM_DATA_LEN_MAX,
        };
        session.is_stalled = room == 0;
        room
    }

    /// A command wrote something; at most [`Self::output_room`] bytes of it.
    pub fn handle_output(&mut self, id: SessionId, stream: Stream, bytes: &[u8]) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let offset = session.handle_output(stream, bytes.len());
        if let Sink::Connection(connection) = session.sink
            && let Some(it) = self.connections.get_mut(&connection)
        {
            it.outbox.push_chunk(stream.frame_kind(), offset, bytes);
            self.queue_flush(connection);
        }
    }

    /// Bytes that the session's standard input should take next.
    pub fn input_pending(&self, _id: SessionId) -> &[u8] {
        &[]
    }

    /// The session's standard input took `len` of the pending bytes.
    pub fn handle_input_written(&mut self, _id: SessionId, _len: usize, _now: Instant) {}

    /// Nobody reads the session's standard input any more.
    pub fn handle_input_closed(&mut self, _id: SessionId, _now: Instant) {}

    /// A command's output has ended.
    pub fn handle_output_closed(&mut self, id: SessionId, stream: Stream, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.handle_output_closed(stream);
            self.finish_if_complete(id, now);
        }
    }

    /// A child was reaped, our own or an orphan.
    pub fn handle_child_exit(&mut self, pid: i32, exit: Exit, now: Instant) {
        match self.children.remove(pid) {
            Some(Owner::Session(id)) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.handle_exit(exit);
                    self.timers.set(Timer::Grace(id), now + GRACE_TIMEOUT);
                    self.finish_if_complete(id, now);
                }
            }
            Some(Owner::Probe(id)) => self.handle_probe_exit(id, exit, now),
            Some(Owner::Stillborn) => {}
            None => debug!("reaped orphan {pid}"),
        }
    }

    /// Another process still holds a reaped command's output open, and has had its time.
    pub(super) fn end_grace(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        // What keeps the output open is our own waiting for the client; see `resume_output`.
        if session.is_stalled {
            return;
        }
        session.handle_grace_over();
        self.actions.push_back(Action::CloseOutput(id));
        self.finish_if_complete(id, now);
    }

    fn finish_if_complete(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let Some(exited) = session.completion() else {
            return;
        };
        if session.is_told_to_end {
            // The leader is gone; others of its group may have ignored the first signal.
            self.signal_session(id, EndSignal::Kill);
        }
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        self.stop_session_timers(id);
        self.results.complete(session.exec(), exited);
        debug!("{id}: ended with status {}", exited.status.shell_code());
        if let Sink::Connection(connection) = session.sink {
            if let Some(connection) = self.connections.get_mut(&connection) {
                connection.session = None;
            }
            self.send(connection, &Message::Exited(exited), now);
        }
        self.advance_quiescing(now);
        self.advance_ending(now);
    }

    /// Moves a running command's output to this connection, from where it stands.
    ///
    /// Of two requests with one id the later connection wins, whichever is read first: a host that
    /// asks again keeps the connection of its earlier attempt open, and drops it once it is served.
    fn attach(&mut self, id: ConnectionId, session_id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&session_id) else {
            return;
        };
        if matches!(session.sink, Sink::Connection(current) if current > id) {
            return self.supersede(id, "a later connection has attached to this command", now);
        }
        let previous = std::mem::replace(&mut session.sink, Sink::Connection(id));
        let started = (!session.is_starting()).then(|| session.started(false));
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.session = Some(session_id);
        }
        self.timers.stop(Timer::Abandon(session_id));
        if let Sink::Connection(previous) = previous {
            if let Some(connection) = self.connections.get_mut(&previous) {
                connection.session = None;
            }
            self.supersede(previous, "another connection attached to this command", now);
        }
        if let Some(started) = started {
            self.send(id, &Message::Started(started), now);
        }
        self.resume_output(session_id, now);
    }

    fn repeat_end(&mut self, id: ConnectionId, exited: Exited, now: Instant) {
        let started = Started {
            session: exited.session,
            id: None,
            pid: 0,
            fresh: false,
            tty: false,
            stdin: Window {
                received: 0,
                limit: 0,
                is_closed: true,
            },
            stdout_from: exited.stdout_end,
            stderr_from: exited.stderr_end,
        };
        self.send(id, &Message::Started(started), now);
        self.send(id, &Message::Exited(exited), now);
    }

    /// There may be room for a session's output again.
    pub(super) fn resume_output(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut session.is_stalled) {
            if session.is_reaped() {
                // The grace did not count while the output waited for its client.
                self.timers.set(Timer::Grace(id), now + GRACE_TIMEOUT);
            }
            self.actions.push_back(Action::ResumeOutput(id));
        }
    }

    /// Takes a connection's session from it.
    pub(super) fn release_session(&mut self, id: ConnectionId, departure: Departure, now: Instant) {
        let session = self
            .connections
            .get_mut(&id)
            .and_then(|connection| connection.session.take());
        if let Some(session) = session {
            self.detach(session, departure, now);
        }
    }

    /// A session has lost its connection.
    pub(super) fn detach(&mut self, id: SessionId, departure: Departure, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.is_told_to_end {
            session.sink = Sink::Discarded;
            return self.resume_output(id, now);
        }
        match departure {
            Departure::Cut => {
                session.sink = Sink::Held;
                if !self.is_abandonment_paused() {
                    self.timers.set(Timer::Abandon(id), now + ABANDON_TIMEOUT);
                }
            }
            Departure::Left => self.terminate_session(id, now),
        }
    }

    /// Whether clients cannot come back now, so that the wait for them does not count.
    fn is_abandonment_paused(&self) -> bool {
        match self.state {
            State::Quiescing | State::Quiesced | State::Rebinding(_) | State::Failed(_) => true,
            State::Running | State::Rebound(_) | State::Ending => false,
        }
    }

    /// Stops the wait for clients that were cut off. A clone may find hours gone when it wakes.
    pub(super) fn pause_abandonment(&mut self) {
        for id in self.sessions.keys() {
            self.timers.stop(Timer::Abandon(*id));
        }
    }

    /// Starts the wait for clients that were cut off, anew.
    pub(super) fn resume_abandonment(&mut self, now: Instant) {
        for (id, session) in &self.sessions {
            if session.sink == Sink::Held {
                self.timers.set(Timer::Abandon(*id), now + ABANDON_TIMEOUT);
            }
        }
    }

    /// Tells a command to end; makes it end if it does not.
    pub(super) fn terminate_session(&mut self, id: SessionId, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            // Its output must not keep it from ending.
            session.sink = Sink::Discarded;
            session.is_told_to_end = true;
            self.timers.stop(Timer::Abandon(id));
            self.timers.set(Timer::Kill(id), now + KILL_TIMEOUT);
            self.signal_session(id, EndSignal::Terminate);
            self.resume_output(id, now);
        }
    }

    /// Ends every session without asking. Returns how many there were.
    pub(super) fn kill_sessions(&mut self, now: Instant) -> usize {
        let ids: Vec<_> = self.sessions.keys().copied().collect();
        for id in &ids {
            self.signal_session(*id, EndSignal::Kill);
            self.timers.stop(Timer::Abandon(*id));
            let Some(session) = self.sessions.get_mut(id) else {
                continue;
            };
            session.is_told_to_end = true;
            if session.sink == Sink::Held {
                session.sink = Sink::Discarded;
                self.resume_output(*id, now);
            }
        }
        ids.len()
    }

    pub(super) fn signal_session(&mut self, id: SessionId, signal: EndSignal) {
        if let Some(group) = self.sessions.get(&id).and_then(Session::group) {
            self.actions.push_back(Action::SignalGroup {
                group,
                number: signal.number(),
            });
        }
    }

    fn stop_session_timers(&mut self, id: SessionId) {
        for timer in [Timer::Grace(id), Timer::Abandon(id), Timer::Kill(id)] {
            self.timers.stop(timer);
        }
    }
}

/// What the host is told about a program that could not be started.
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
    Fail {
        code,
        phase: Some(phase.to_owned()),
        errno: Some(failure.errno),
        text: format!("{what} {}", failure.text),
    }
}
