//! Conversations with the whole core, without a system under it.
//!
//! [`World`] stands in for the event loop, the shell, the kernel and the peers: it performs every
//! action at once and records it. A test says what the host sends and what happens to children, and
//! checks the frames that come back.

mod attachments;
mod checkpoints;
mod exec;
mod faults;
mod handshake;
mod hooks;
mod input;
mod lifetimes;
mod limits;
mod memory;
mod mmds;
mod quiesce;
mod sessions;
mod shutdown;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shared::frame::Decoder;
use shared::id::{ExecId, Generation, Instance, Nonce, Token};
use shared::limits::STREAM_DATA_LEN_MAX;
use shared::message::{
    Ack, Attach, AttachMode, ByteString, Cause, Depth, Exec, ExitStatus, Exited, FailCode, Hello,
    Identity, InheritedSessions, Message, OutputPolicy, Policy, Probe, Quiesce, Rebind,
    ResourceUsage, Role, SessionRef, StepName,
};

use super::*;

/// 2026-01-01.
const WALL_CLOCK_NS: u64 = 1_767_225_600 * 1_000_000_000;

const G: Generation = Generation::from_bytes([1; 16]);
const H: Generation = Generation::from_bytes([2; 16]);
const TOKEN: Token = Token::from_bytes([3; 16]);
const NONCE: Nonce = Nonce::from_bytes([4; 16]);

#[derive(Default)]
struct Peer {
    decoder: Decoder,
    /// Bytes that the socket takes before it is full; `None` means unlimited.
    room: Option<usize>,
    received: Vec<Message>,
    is_closed: bool,
}

#[derive(Default)]
struct InputEnd {
    /// Bytes that it takes before it is full; `None` means unlimited.
    room: Option<usize>,
    received: Vec<u8>,
    is_closed: bool,
}

/// Everything around the core.
struct World {
    agent: Agent,
    now: Instant,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Every action, in order.
    actions: Vec<Action>,
    /// Processes that run, by id.
    processes: BTreeMap<i32, Purpose>,
    /// Bytes that a command leaves in its pipes when it is waited for.
    left: BTreeMap<SessionId, [usize; 2]>,
    next_pid: i32,
    /// The command's end of each session's standard input.
    inputs: BTreeMap<SessionId, InputEnd>,
    spawn_failure: Option<SpawnFailure>,
    failing_steps: BTreeSet<&'static str>,
    is_console_drained: bool,
    /// What listing the hooks finds.
    hooks: HookListing,
}

impl World {
    fn new() -> Self {
        Self::with_init(false)
    }

    fn with_init(is_init: bool) -> Self {
        Self::with(is_init, None)
    }

    fn with(is_init: bool, workload: Option<WorkloadSettings>) -> Self {
        Self::of(Settings {
            is_init,
            workload,
            ..settings()
        })
    }

    fn of(settings: Settings) -> Self {
        let now = Instant::now();
        let mut world = Self {
            agent: Agent::new(settings, now),
            now,
            peers: BTreeMap::new(),
            actions: Vec::new(),
            processes: BTreeMap::new(),
            left: BTreeMap::new(),
            next_pid: 100,
            inputs: BTreeMap::new(),
            spawn_failure: None,
            failing_steps: BTreeSet::new(),
            is_console_drained: true,
            hooks: HookListing::default(),
        };
        world.drain_actions();
        world
    }

    /// A peer connects and sends nothing.
    fn accept(&mut self) -> ConnectionId {
        let id = self
            .agent
            .handle_accepted(true, self.now)
            .expect("accepted");
        self.peers.insert(id, Peer::default());
        self.drain_actions();
        id
    }

    /// A host connects and sends HELLO. The answer is taken off.
    fn connect(&mut self) -> ConnectionId {
        self.greet().0
    }

    /// A host connects, and the guest answers its HELLO.
    fn greet(&mut self) -> (ConnectionId, Hello) {
        let id = self.accept();
        self.send(id, &Message::Hello(Hello::host("test")));
        match &self.receive(id)[..] {
            [Message::Hello(hello)] => (id, hello.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn accept_local(&mut self) -> Option<ConnectionId> {
        let id = self.agent.handle_local_accepted(self.now)?;
        self.peers.insert(id, Peer::default());
        self.drain_actions();
        Some(id)
    }

    /// A program in the guest connects and sends HELLO. The answer is taken off.
    fn connect_local(&mut self) -> ConnectionId {
        let id = self.accept_local().expect("accepted");
        self.send(id, &Message::Hello(Hello::of(Role::Local, "test")));
        assert!(matches!(self.receive(id)[..], [Message::Hello(_)]));
        id
    }

    fn send(&mut self, id: ConnectionId, message: &Message) {
        self.send_bytes(id, &message.encode());
    }

    fn send_bytes(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.agent.handle_bytes(id, bytes, self.now);
        self.drain_actions();
    }

    /// What has arrived at a peer since the last call.
    fn receive(&mut self, id: ConnectionId) -> Vec<Message> {
        std::mem::take(&mut self.peers.get_mut(&id).expect("a peer").received)
    }

    /// Sends one request and returns what comes back at once.
    fn ask(&mut self, id: ConnectionId, message: &Message) -> Vec<Message> {
        self.send(id, message);
        self.receive(id)
    }

    fn is_closed(&self, id: ConnectionId) -> bool {
        self.peers[&id].is_closed
    }

    fn end(&mut self, id: ConnectionId, ended: Ended) {
        self.agent.handle_closed(id, ended, self.now);
        self.drain_actions();
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.agent.handle_timeout(self.now);
            self.drain_actions();
        }
        self.now = until;
    }

    /// The process of the last command that was started.
    fn pid(&self) -> i32 {
        *self.processes.keys().last().expect("a process")
    }

    fn session_of(&self, pid: i32) -> SessionId {
        match self.processes[&pid] {
            Purpose::Session(id) => id,
            Purpose::Probe(_) => panic!("process {pid} is a probe's"),
        }
    }

    fn write(&mut self, pid: i32, stream: Stream, bytes: &[u8]) {
        let id = self.session_of(pid);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.agent.output_room(id, stream);
            assert!(room > 0, "no room for output");
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.output(id, stream, now);
            rest = later;
        }
    }

    /// Reads a session's output, as the shell does.
    fn output(&mut self, id: SessionId, stream: Stream, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in self.agent.output_spare(id, stream) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice[..now.len()].copy_from_slice(now);
            rest = later;
        }
        let spare_len = bytes.len() - rest.len();
        self.agent
            .handle_output_read(id, stream, spare_len, rest, self.now);
        self.drain_actions();
    }

    fn pending(&self, id: ConnectionId) -> Vec<u8> {
        let mut headers = Headers::default();
        self.agent.pending(id, &mut headers).as_slice().concat()
    }

    fn close_outputs(&mut self, pid: i32) {
        let id = self.session_of(pid);
        for &stream in Stream::ALL {
            self.agent.handle_output_closed(id, stream, self.now);
            self.drain_actions();
        }
    }

    fn reap(&mut self, pid: i32, status: ExitStatus) {
        self.processes.remove(&pid);
        let exit = Exit {
            status,
            usage: ResourceUsage::default(),
        };
        self.agent.handle_child_exit(pid, exit, self.now);
        self.drain_actions();
    }

    /// Writes until there is no more room.
    fn fill(&mut self, pid: i32, stream: Stream) -> usize {
        let id = self.session_of(pid);
        let mut written = 0;
        loop {
            let len = self.agent.output_room(id, stream).min(STREAM_DATA_LEN_MAX);
            if len == 0 {
                return written;
            }
            self.write(pid, stream, &vec![b'x'; len]);
            written += len;
        }
    }

    /// The command reads what its standard input holds.
    fn flush_input(&mut self, id: SessionId) {
        let end = self.inputs.entry(id).or_default();
        loop {
            let pending = self.agent.input_pending(id);
            let len = pending.len().min(end.room.unwrap_or(usize::MAX));
            if len == 0 || end.is_closed {
                return;
            }
            end.received.extend_from_slice(&pending[..len]);
            if let Some(room) = &mut end.room {
                *room -= len;
            }
            self.agent.handle_input_written(id, len, self.now);
        }
    }

    /// The usual end of a command.
    fn finish(&mut self, pid: i32, code: u8) {
        self.close_outputs(pid);
        self.reap(pid, ExitStatus::Code(code));
    }

    fn drain_actions(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.actions.push(action.clone());
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Flush(id) => self.flush(id),
            Action::Close(id) => self.close(id),
            Action::RearmListener => self.agent.handle_rearmed(Ok(()), now),
            Action::Step { run, action } => {
                let outcome = self.step(&action);
                self.agent
                    .handle_step(run, outcome, Duration::from_micros(7), now);
            }
            Action::Spawn { purpose, .. } => {
                let result = match self.spawn_failure.take() {
                    Some(failure) => Err(failure),
                    None => {
                        self.next_pid += 1;
                        self.processes.insert(self.next_pid, purpose);
                        Ok(self.next_pid)
                    }
                };
                self.agent.handle_spawned(purpose, result, now);
            }
            Action::LookAtConsole => {
                self.agent.handle_console(self.is_console_drained, now);
                if self.agent.state() == State::Quiesced {
                    assert!(self.is_console_drained && self.agent.host_count() <= 1);
                }
            }
            Action::CollectFigures(id) => {
                self.agent
                    .handle_figures(id, Figures { fds: 5, rss_kib: 6 }, now);
            }
            Action::ListHooks(_) => {
                let listing = Ok(self.hooks.clone());
                self.agent.handle_hooks_listed(listing, now);
            }
            Action::FlushInput(id) => self.flush_input(id),
            Action::CloseInput(id) => self.inputs.entry(id).or_default().is_closed = true,
            Action::CountOutput(id) => {
                let lens = self.left.remove(&id).unwrap_or_default();
                self.agent.handle_output_counted(id, lens);
            }
            Action::DrainAccept
            | Action::ResumeOutput(_)
            | Action::CloseOutput(_)
            | Action::ResizeTty { .. }
            | Action::SignalGroup { .. }
            | Action::KillSession(_)
            | Action::SignalEveryone(_)
            | Action::WriteGeneration(_)
            | Action::CheckSources
            | Action::AskMmds(_)
            | Action::CloseMmds
            | Action::End(_) => {}
        }
    }

    fn step(&mut self, action: &StepAction) -> StepOutcome {
        let name = match action {
            StepAction::CloseConnections(ids) => {
                ids.iter().for_each(|id| self.close(*id));
                StepName::Connections
            }
            StepAction::RearmListener => StepName::Listener,
            StepAction::SetClock { .. } => StepName::Clock,
            StepAction::Reseed { .. } => StepName::Entropy,
            StepAction::SetIdentity(_) => StepName::Identity,
        };
        if self.failing_steps.contains(name.as_str()) {
            let text = format!("cannot do {name}");
            return StepOutcome::Failed(StepFailure {
                errno: Some(5),
                text,
            });
        }
        match action {
            StepAction::SetClock { .. } => StepOutcome::ClockMoved { step_ns: 42 },
            StepAction::CloseConnections(_)
            | StepAction::RearmListener
            | StepAction::Reseed { .. }
            | StepAction::SetIdentity(_) => StepOutcome::Done,
        }
    }

    fn flush(&mut self, id: ConnectionId) {
        self.agent.handle_flush(id);
        loop {
            let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_closed) else {
                return;
            };
            let mut headers = Headers::default();
            let pending = self.agent.pending(id, &mut headers).as_slice().concat();
            let len = pending.len().min(peer.room.unwrap_or(usize::MAX));
            if len == 0 {
                return;
            }
            peer.decoder.push(&pending[..len]);
            if let Some(room) = &mut peer.room {
                *room -= len;
            }
            while let Some(frame) = peer.decoder.poll_frame().expect("frames from the agent") {
                peer.received
                    .push(Message::parse(frame, Role::Guest).expect("messages"));
            }
            self.agent.handle_written(id, len, self.now);
        }
    }

    /// The peer reads everything, now and from now on.
    fn unblock(&mut self, id: ConnectionId) {
        self.peers.get_mut(&id).expect("a peer").room = None;
        self.flush(id);
        self.drain_actions();
    }

    fn close(&mut self, id: ConnectionId) {
        self.peers.get_mut(&id).expect("a peer").is_closed = true;
    }

    /// A guest that was rebound to this generation.
    fn with_generation(generation: Generation) -> Self {
        let mut world = Self::new();
        world.rebind(generation, Cause::Boot);
        world
    }

    fn rebind(&mut self, generation: Generation, cause: Cause) {
        let id = self.connect();
        let answer = self.ask(id, &rebind(generation, cause));
        assert!(matches!(answer[..], [Message::Rebound(_)]), "{answer:?}");
        self.end(id, Ended::ByPeer);
    }
}

fn settings() -> Settings {
    Settings {
        version: "1.2.3".to_owned(),
        boot_id: "boot".to_owned(),
        kernel: "6.1".to_owned(),
        ..Settings::new(Instance::from_bytes([7; 16]))
    }
}

fn rebind(generation: Generation, cause: Cause) -> Message {
    Message::Rebind(Rebind {
        generation,
        cause,
        parent: None,
        wall_clock_ns: WALL_CLOCK_NS,
        entropy: Some([9; 32]),
        identity: Identity::default(),
        sessions: InheritedSessions::Keep,
        attempt: 1,
    })
}

fn probe(generation: Generation, depth: Depth) -> Message {
    Message::Probe(Probe {
        generation: Some(generation),
        nonce: NONCE,
        depth,
    })
}

fn quiesce(policy: Policy) -> Message {
    Message::Quiesce(Quiesce {
        token: TOKEN,
        policy,
        limit_ms: 10_000,
    })
}

fn exec_id(number: u8) -> ExecId {
    ExecId::from_bytes([number; 16])
}

fn exec(number: u8) -> Message {
    exec_with(number, |_| {})
}

fn exec_with(number: u8, change: impl FnOnce(&mut Exec)) -> Message {
    let argv = vec![ByteString::new("true").expect("no NUL")];
    let mut exec = Exec::new(exec_id(number), argv);
    change(&mut exec);
    Message::Exec(exec)
}

fn attach(session: SessionRef, mode: AttachMode, stdout_from: Option<u64>) -> Message {
    Message::Attach(Attach {
        session,
        generation: None,
        mode,
        stdout_from,
        stderr_from: None,
    })
}

fn ack(stream: Stream, offset: u64) -> Message {
    Message::Ack(Ack { stream, offset })
}

/// A command that was started by this request, on its own connection.
fn running_with(world: &mut World, request: &Message) -> (ConnectionId, i32) {
    let id = world.connect();
    let answer = world.ask(id, request);
    let is_fresh = |message: &Message| matches!(message, Message::Started(it) if it.fresh);
    assert!(answer.len() == 1 && is_fresh(&answer[0]), "{answer:?}");
    (id, world.pid())
}

/// A command that runs, on its own connection.
fn running(world: &mut World, number: u8) -> (ConnectionId, i32) {
    running_with(world, &exec(number))
}

/// The last EXITED.
#[track_caller]
fn exited(messages: &[Message]) -> Exited {
    match messages.last() {
        Some(Message::Exited(exited)) => *exited,
        other => panic!("expected EXITED, got {other:?}"),
    }
}

/// The process groups that were signalled, with the signals.
fn signals(world: &World) -> Vec<(i32, u8)> {
    let signal = |action: &Action| match action {
        Action::SignalGroup { group, number } => Some((*group, *number)),
        _ => None,
    };
    world.actions.iter().filter_map(signal).collect()
}

/// Standard output in these messages: its first offset and the bytes, which must be contiguous.
#[track_caller]
fn stdout_of(messages: &[Message]) -> (u64, Vec<u8>) {
    let mut offset = None;
    let mut bytes = Vec::new();
    for message in messages {
        if let Message::Stdout(chunk) = message {
            let first = *offset.get_or_insert(chunk.offset);
            assert_eq!(chunk.offset, first + bytes.len() as u64, "a hole");
            bytes.extend_from_slice(&chunk.bytes);
        }
    }
    (offset.unwrap_or(0), bytes)
}

/// The code of the only message, which must be a FAIL.
#[track_caller]
fn fail_code(messages: &[Message]) -> FailCode {
    match messages {
        [Message::Fail(fail)] => fail.code,
        other => panic!("expected one FAIL, got {other:?}"),
    }
}
