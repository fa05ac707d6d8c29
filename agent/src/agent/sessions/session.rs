//! One session, from its start to its end. The result is kept for a while. No I/O, no clock.
//!
//! ```text
//!           spawned            reaped             both outputs closed, or the grace is over
//! Starting ─────────▶ Running ────────▶ Reaped ──────────────────────────────────▶ Ended
//!  ▲  │ │                               ▲  │
//!  │  │ └ the workload's program could ─┘  │ the workload is started again
//!  │  │   not be spawned                   │
//!  └──┼────────────────────────────────────┘
//!     └ any other could not be spawned ─▶ removed
//! ```
//!
//! Its output goes into one [`Ring`] for each stream. Every attached connection reads them at its
//! own pace (see `transport/attachments.rs`). The session's policy says whether a full ring stops
//! the command.
//!
//! Invariants:
//! - Offsets only grow, by exactly the bytes read, whichever connections are attached.
//! - There is at most one owner, and it is one of the attached connections.
//! - A session ends once, and no output comes after its end.

use std::time::{Duration, Instant};

use log::debug;
use shared::id::{ExecId, Generation};
use shared::limits::COMMAND_TEXT_LEN_MAX;
use shared::message::{
    ExitStatus, Exited, Fault, OutputPolicy, ResourceUsage, SessionInfo, SessionState, Started,
    Stream, TtySize,
};

use super::buffers::BufferPool;
use super::input::Input;
use super::ring::{RING_LEN_MAX, Ring};
use crate::agent::ids::{ConnectionId, SessionId};

/// The part of a ring that is free when reading continues after it stopped for lack of room: an
/// owner that acknowledges a little at a time must not cost a read for each little.
pub(crate) const RESUME_SHARE: usize = 4;

/// What clients acknowledge without being asked: at the latest half of the longest ring. A full
/// ring that is shorter waits for an acknowledgement that does not come by itself.
const ACK_LEN_MAX: usize = RING_LEN_MAX / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exit {
    pub status: ExitStatus,
    pub usage: ResourceUsage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// The process was requested, or will be after the pause before a restart.
    Starting,
    Running,
    /// The process was waited for; its output may still be open.
    Reaped(Exit),
    /// All output was read. The result is kept.
    Ended(Exited),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Spawned,
    /// The process was waited for, or could not be spawned and gets this result.
    Exit(Exit),
    Restart,
    /// All output was read.
    Complete(Exited),
}

/// `None`: the event is impossible in this state.
fn transition(state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Starting, Event::Spawned) => Some(State::Running),
        (State::Starting | State::Running, Event::Exit(exit)) => Some(State::Reaped(exit)),
        (State::Reaped(_), Event::Restart) => Some(State::Starting),
        (State::Reaped(_), Event::Complete(exited)) => Some(State::Ended(exited)),
        (State::Starting, Event::Restart | Event::Complete(_))
        | (State::Running, Event::Spawned | Event::Restart | Event::Complete(_))
        | (State::Reaped(_), Event::Spawned | Event::Exit(_))
        | (
            State::Ended(_),
            Event::Spawned | Event::Exit(_) | Event::Restart | Event::Complete(_),
        ) => None,
    }
}

/// What the request or the image asked for. Never changes.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Spec {
    /// The request's id. `None`: it is the workload.
    pub(crate) exec: Option<ExecId>,
    /// Its arguments, for people.
    pub(crate) command: String,
    /// The guest's generation when the session began.
    pub(crate) generation: Option<Generation>,
    /// Size of its terminal, if it gets one.
    pub(crate) tty: Option<TtySize>,
    /// Whether the client will send standard input.
    pub(crate) has_input: bool,
    /// What happens when a ring is full.
    pub(crate) output: OutputPolicy,
    /// Whether it runs on without any client.
    pub(crate) is_detached: bool,
    /// How long it runs on after its owner closed its connection.
    pub(crate) keep: Duration,
    /// How long it may run.
    pub(crate) timeout: Option<Duration>,
}

/// The answer to EXEC or ATTACH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Started {
        /// Whether this request started the session.
        fresh: bool,
    },
    Attached,
}

#[derive(Clone, Debug, Hash)]
struct Output {
    ring: Ring,
    /// Whether the pipe has not reported its end.
    is_open: bool,
    /// Whether reading stopped for lack of room and has to be resumed.
    is_stalled: bool,
    /// Bytes that were in the pipe when the process was waited for, and have not been read.
    owed: usize,
    /// Whether all of those were read, and then the pipe was empty or had other bytes.
    is_drained: bool,
}

impl Output {
    /// Nothing is read any more, so nothing is to be resumed.
    fn close(&mut self) {
        self.is_open = false;
        self.is_stalled = false;
    }
}

/// A command with its output and input.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Session {
    id: SessionId,
    spec: Spec,
    state: State,
    /// Process id, and id of its process group; zero while there is none.
    pid: i32,
    outputs: [Output; 2],
    pub(crate) input: Input,
    /// The connection whose acknowledgements free the rings.
    pub(crate) owner: Option<ConnectionId>,
    /// All attached connections, the owner included, in the order in which they attached.
    attached: Vec<ConnectionId>,
    writers_alive: bool,
    /// Whether only what the process itself has left in its pipes is still read.
    is_grace_over: bool,
    /// Whether it was told to end.
    pub(crate) is_terminating: bool,
    /// Whether it was told to end by its time limit.
    pub(crate) is_timed_out: bool,
    /// What was cut or lost of it, at first.
    pub(crate) fault: Option<Fault>,
    pub(crate) restarts: u32,
    started_at: Instant,
}

impl Session {
    pub(crate) fn new(id: SessionId, spec: Spec, now: Instant) -> Self {
        let output = |is_open| Output {
            ring: Ring::default(),
            is_open,
            is_stalled: false,
            owed: 0,
            is_drained: false,
        };
        let has_stderr = spec.tty.is_none();
        Self {
            id,
            input: Input::new(spec.has_input, spec.tty.is_some()),
            spec,
            state: State::Starting,
            pid: 0,
            // A terminal has no standard error.
            outputs: [output(true), output(has_stderr)],
            owner: None,
            attached: Vec::new(),
            writers_alive: false,
            is_grace_over: false,
            is_terminating: false,
            is_timed_out: false,
            fault: None,
            restarts: 0,
            started_at: now,
        }
    }

    /// Takes the memory that it needs at least. `false`: there is none, and it must not start.
    pub(crate) fn open(&mut self, buffers: &mut BufferPool) -> bool {
        let mut outputs = self.outputs.iter_mut().filter(|it| it.is_open);
        outputs.all(|output| output.ring.open(buffers)) && self.input.open(buffers)
    }

    /// Gives back what it does not need any more: its output is kept, and no more comes.
    pub(crate) fn close(&mut self, buffers: &mut BufferPool) {
        let rings = self.outputs.iter_mut().map(|it| &mut it.ring);
        rings.for_each(|ring| ring.close(buffers));
        self.input.close(buffers);
    }

    /// Drops all bytes and gives all memory back.
    pub(crate) fn clear(&mut self, buffers: &mut BufferPool) {
        self.clear_output(buffers);
        self.input.clear(buffers);
    }

    /// Bytes out of the budget.
    pub(crate) fn held_len(&self) -> usize {
        let outputs: usize = self.outputs.iter().map(|it| it.ring.held_len()).sum();
        outputs + self.input.held_len()
    }

    pub(crate) fn handle_spawned(&mut self, pid: i32) {
        if self.handle(Event::Spawned) {
            self.pid = pid;
        }
    }

    pub(crate) fn handle_exit(&mut self, exit: Exit) {
        if self.handle(Event::Exit(exit)) {
            // The number may become another process's.
            self.pid = 0;
        }
    }

    /// Its program could not be spawned, and gets this result.
    pub(crate) fn handle_never_ran(&mut self, exit: Exit) {
        self.handle(Event::Exit(exit));
        self.outputs.iter_mut().for_each(Output::close);
    }

    /// It starts again, with the same streams.
    pub(crate) fn handle_restart(&mut self) {
        if self.handle(Event::Restart) {
            self.outputs.iter_mut().for_each(|it| it.is_open = true);
            self.is_terminating = false;
            self.writers_alive = false;
            self.fault = None;
            self.is_grace_over = false;
        }
    }

    pub(crate) fn handle_complete(&mut self, exited: Exited) {
        self.handle(Event::Complete(exited));
    }

    /// The only place that changes the state.
    fn handle(&mut self, event: Event) -> bool {
        let Some(next) = transition(self.state, event) else {
            debug_assert!(false, "{}: {event:?} in {:?}", self.id, self.state);
            return false;
        };
        debug!("{}: {} -> {}", self.id, self.state.name(), next.name());
        self.state = next;
        true
    }

    /// How many bytes of a stream may be handed in. Zero stops reading this stream, and no other.
    pub(crate) fn poll_room(&mut self, stream: Stream, buffers: &mut BufferPool) -> usize {
        self.outputs[stream.index()].ring.make_room(buffers);
        let most = self.wanted_len(stream);
        let room = self.room(stream).min(most);
        self.outputs[stream.index()].is_stalled = room == 0;
        room
    }

    /// Most bytes of a stream that are still to be read from its pipe. After the grace that is what
    /// the process has left there, and one more, which tells the end from other writers.
    fn wanted_len(&self, stream: Stream) -> usize {
        let output = &self.outputs[stream.index()];
        match (self.is_grace_over, output.is_drained) {
            (false, _) => usize::MAX,
            (true, false) => output.owed.saturating_add(1),
            (true, true) => 0,
        }
    }

    /// Whether stopped reading may continue. Says so once.
    pub(crate) fn poll_resume(&mut self) -> bool {
        let mut is_due = false;
        for &stream in Stream::ALL {
            let has_room = self.is_worth_resuming(stream);
            let output = &mut self.outputs[stream.index()];
            is_due |= output.is_stalled && has_room;
            output.is_stalled &= !has_room;
        }
        is_due
    }

    fn is_worth_resuming(&self, stream: Stream) -> bool {
        let room_min = self.ring(stream).capacity() / RESUME_SHARE;
        self.room(stream) >= room_min.max(1) && self.wanted_len(stream) > 0
    }

    /// Whether reading stopped at a ring that could grow, now that there is memory. Says so once.
    pub(crate) fn poll_relief(&mut self) -> bool {
        let mut is_due = false;
        for &stream in Stream::ALL {
            let is_wanted = self.wanted_len(stream) > 0;
            let output = &mut self.outputs[stream.index()];
            let is_short = output.is_stalled && output.ring.capacity() < RING_LEN_MAX;
            is_due |= is_short && is_wanted;
            output.is_stalled &= !(is_short && is_wanted);
        }
        is_due
    }

    /// Whether a full ring waits for an acknowledgement that its owner may have to be asked for.
    pub(crate) fn is_short_at(&self, stream: Stream) -> bool {
        let ring = self.ring(stream);
        self.is_stalled_at(stream) && ring.room() == 0 && ring.len() <= ACK_LEN_MAX
    }

    fn room(&self, stream: Stream) -> usize {
        if self.drops_oldest() {
            return RING_LEN_MAX;
        }
        self.ring(stream).room()
    }

    /// Whether new output replaces the oldest. It does so for a command that was told to end and
    /// has no owner: waiting for a reader must not keep it from ending.
    pub(crate) fn drops_oldest(&self) -> bool {
        let is_left_alone = self.is_terminating && self.owner.is_none();
        is_left_alone || self.spec.output == OutputPolicy::DropOldest
    }

    pub(crate) fn handle_output(&mut self, stream: Stream, bytes: &[u8], buffers: &mut BufferPool) {
        self.note_read(stream, bytes.len());
        let drops_oldest = self.drops_oldest();
        let ring = &mut self.outputs[stream.index()].ring;
        if drops_oldest {
            return ring.append_over_oldest(bytes, buffers);
        }
        let taken = ring.append(bytes, buffers);
        debug_assert_eq!(taken, bytes.len(), "more output than there was room for");
    }

    /// See [`Ring::spare`].
    pub(crate) fn output_spare(&mut self, stream: Stream) -> [&mut [u8]; 2] {
        self.outputs[stream.index()].ring.spare()
    }

    /// See [`Ring::advance`].
    pub(crate) fn advance_output(&mut self, stream: Stream, len: usize, buffers: &mut BufferPool) {
        self.note_read(stream, len);
        self.outputs[stream.index()].ring.advance(len, buffers);
    }

    pub(crate) fn handle_output_closed(&mut self, stream: Stream) {
        self.outputs[stream.index()].close();
    }

    /// The process was waited for, and these bytes were left in its pipes.
    pub(crate) fn handle_output_counted(&mut self, lens: [usize; 2]) {
        for (output, len) in self.outputs.iter_mut().zip(lens) {
            output.owed = len;
            output.is_drained = false;
        }
    }

    fn note_read(&mut self, stream: Stream, len: usize) {
        let output = &mut self.outputs[stream.index()];
        output.is_drained |= len > output.owed;
        output.owed = output.owed.saturating_sub(len);
    }

    /// A pipe has nothing more now, and has not ended.
    pub(crate) fn handle_output_empty(&mut self, stream: Stream) {
        let output = &mut self.outputs[stream.index()];
        output.owed = 0;
        output.is_drained = true;
    }

    /// What other processes write from now on is not waited for.
    pub(crate) fn handle_grace_over(&mut self) {
        self.is_grace_over = true;
        for output in &mut self.outputs {
            output.is_drained |= output.owed == 0 && !output.is_stalled;
        }
    }

    /// Whether the grace is over and nothing that the process has left is still to be read.
    pub(crate) fn is_fully_read(&self) -> bool {
        let is_read = |output: &Output| output.is_drained || !output.is_open;
        self.is_grace_over && self.outputs.iter().all(is_read)
    }

    /// Bytes that the process has left in its pipes.
    pub(crate) fn unread_len(&self) -> usize {
        let open = self.outputs.iter().filter(|output| output.is_open);
        open.map(|output| output.owed).sum()
    }

    /// Output that another process still holds open is not read any more.
    pub(crate) fn handle_output_given_up(&mut self) {
        self.writers_alive |= self.outputs.iter().any(|output| output.is_open);
        self.outputs.iter_mut().for_each(Output::close);
    }

    /// Whether its process runs and has closed all outputs.
    pub(crate) fn is_silent(&self) -> bool {
        let is_open = self.outputs.iter().any(|output| output.is_open);
        !is_open && self.state == State::Running
    }

    pub(crate) fn ring(&self, stream: Stream) -> &Ring {
        &self.outputs[stream.index()].ring
    }

    pub(crate) fn release(&mut self, stream: Stream, offset: u64, buffers: &mut BufferPool) {
        self.outputs[stream.index()].ring.release(offset, buffers);
    }

    pub(crate) fn clear_output(&mut self, buffers: &mut BufferPool) {
        let rings = self.outputs.iter_mut().map(|it| &mut it.ring);
        rings.for_each(|ring| ring.clear(buffers));
    }

    /// Bytes of output that are kept.
    pub(crate) fn kept_len(&self) -> usize {
        self.outputs.iter().map(|output| output.ring.len()).sum()
    }

    /// The result, once all output was read.
    pub(crate) fn completion(&self) -> Option<Exited> {
        let exit = match self.state {
            State::Starting | State::Running | State::Ended(_) => return None,
            State::Reaped(exit) => exit,
        };
        if self.outputs.iter().any(|output| output.is_open) {
            return None;
        }
        Some(Exited {
            session: self.id.number(),
            status: exit.status,
            stdout_end: self.ring(Stream::Stdout).end(),
            stderr_end: self.ring(Stream::Stderr).end(),
            writers_alive: self.writers_alive,
            timed_out: self.is_timed_out,
            fault: self.fault,
            usage: exit.usage,
        })
    }

    /// The result, once the session has ended.
    pub(crate) fn exited(&self) -> Option<Exited> {
        match self.state {
            State::Starting | State::Running | State::Reaped(_) => None,
            State::Ended(exited) => Some(exited),
        }
    }

    pub(crate) fn insert_attached(&mut self, id: ConnectionId) {
        debug_assert!(!self.attached.contains(&id));
        self.attached.push(id);
    }

    /// Returns whether the connection was the owner.
    pub(crate) fn remove_attached(&mut self, id: ConnectionId) -> bool {
        self.attached.retain(|other| *other != id);
        let was_owner = self.owner == Some(id);
        if was_owner {
            self.owner = None;
        }
        was_owner
    }

    pub(crate) fn attached(&self) -> &[ConnectionId] {
        &self.attached
    }

    /// For a connection that gets output from these offsets on.
    pub(crate) fn started(&mut self, is_owner: bool, fresh: bool, from: [u64; 2]) -> Started {
        Started {
            session: self.id.number(),
            id: self.spec.exec,
            pid: self.pid_on_wire(),
            fresh,
            tty: self.spec.tty.is_some(),
            stdout_from: from[Stream::Stdout.index()],
            stderr_from: from[Stream::Stderr.index()],
            stdin: match is_owner {
                true => self.input.tell_window(),
                false => self.input.window(),
            },
        }
    }

    pub(crate) fn info(&self, has_cgroup: bool, now: Instant) -> SessionInfo {
        let age = now.saturating_duration_since(self.started_at);
        SessionInfo {
            session: self.id.number(),
            id: self.spec.exec,
            state: match self.state {
                State::Starting => SessionState::Starting,
                State::Running | State::Reaped(_) => SessionState::Running,
                State::Ended(_) => SessionState::Exited,
            },
            pid: self.pid_on_wire(),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            generation: self.spec.generation,
            command: self.spec.command.clone(),
            tty: self.spec.tty.is_some(),
            detached: self.spec.is_detached,
            attached: u32::try_from(self.attached.len()).unwrap_or(u32::MAX),
            restarts: self.restarts,
            cgroup: has_cgroup,
            stdout_end: self.ring(Stream::Stdout).end(),
            stderr_end: self.ring(Stream::Stderr).end(),
            exited: self.exited(),
        }
    }

    fn pid_on_wire(&self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn is_workload(&self) -> bool {
        self.spec.exec.is_none()
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether reading a stream stopped for lack of room.
    pub(crate) fn is_stalled_at(&self, stream: Stream) -> bool {
        self.outputs[stream.index()].is_stalled
    }

    /// Whether an output waits for room although there is some: then the shell was not told.
    pub(crate) fn is_stalled_in_vain(&self) -> bool {
        let mut stalled = Stream::ALL.iter().filter(|it| self.is_stalled_at(**it));
        stalled.any(|stream| self.is_worth_resuming(*stream))
    }

    /// The process group, until its leader was waited for. Later the number may be another group's.
    pub(crate) fn group(&self) -> Option<i32> {
        (self.pid > 0).then_some(self.pid)
    }
}

impl State {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reaped(_) => "reaped",
            Self::Ended(_) => "ended",
        }
    }
}

/// The arguments with spaces between them, for people, cut to [`COMMAND_TEXT_LEN_MAX`] bytes.
pub(crate) fn command_text<'a>(argv: impl Iterator<Item = &'a [u8]>) -> String {
    let mut bytes = Vec::new();
    for argument in argv {
        if !bytes.is_empty() {
            bytes.push(b' ');
        }
        bytes.extend(&argument[..argument.len().min(COMMAND_TEXT_LEN_MAX)]);
        if bytes.len() > COMMAND_TEXT_LEN_MAX {
            break;
        }
    }
    bytes.truncate(COMMAND_TEXT_LEN_MAX);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
