//! The whole core in a hostile world, from a seed.
//!
//! Goal: whatever order the kernel, the children and the peers find, the invariants hold after
//! every step, and when the storm is over a host that follows the handshake gets its guest back.
//! Method: a seeded generator plays them all at random: requests cut into pieces, peers that read
//! little or nothing, ends by the peer, by reset and by error; output, input and exits in any
//! order, clients that attach in every way and acknowledge what they like; orphans, failing steps
//! and spawns, a workload, a console that stays busy, time that jumps by hours.
//!
//! A failing run prints its seed; `SEED=n cargo test -p agent simulation` plays it again.

use super::*;
use shared::message::{
    AwaitCheckpoint, CheckpointRequest, Chunk, ExitAck, GenerationRequest, HookStage, Hooks, Ping,
    Reopen, SessionsRequest, Signal as SignalRequest, StdinEof, TtySize,
};

/// Runs per `cargo test`.
const RUNS: u64 = 200;

/// Random steps per run.
const STEPS: usize = 300;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }
}

/// What a connection was told of its session.
struct View {
    session: SessionId,
    mode: AttachMode,
    /// Next offset of each stream.
    offsets: [u64; 2],
}

/// What the run has seen, to hold the next step against.
#[derive(Default)]
struct Observed {
    /// Actions that were looked at.
    action_count: usize,
    /// EXEC and ATTACH frames sent per connection, and ends that came back.
    requests_sent: BTreeMap<ConnectionId, usize>,
    completions: BTreeMap<ConnectionId, usize>,
    views: BTreeMap<ConnectionId, View>,
    /// Connections that asked for a snapshot or a name, which takes their session from them.
    askers: BTreeSet<ConnectionId>,
    /// Sessions whose pipes are open, per stream.
    open_outputs: BTreeSet<(SessionId, Stream)>,
    /// Requests whose command was spawned.
    spawned: BTreeSet<ExecId>,
    spawned_count: usize,
    gap_count: usize,
    /// Bytes of each standard input that were looked at.
    inputs: BTreeMap<SessionId, usize>,
}

struct Simulation {
    world: World,
    random: Random,
    observed: Observed,
}

/// The byte at an offset of a stream, so that a byte at the wrong place is seen.
fn byte_at(session: u64, stream: usize, offset: u64) -> u8 {
    let mixed = (offset * 4 + stream as u64 + session * 97).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

fn bytes_at(session: u64, stream: usize, offset: u64, len: usize) -> Vec<u8> {
    let offsets = offset..offset + len as u64;
    offsets
        .map(|offset| byte_at(session, stream, offset))
        .collect()
}

/// Standard input, as a third stream.
const INPUT: usize = 2;

impl Simulation {
    fn new(seed: u64) -> Self {
        // Multiplied, so that neighbouring seeds start far apart; never zero.
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let workload = WorkloadSettings {
            argv: vec![b"app".to_vec()],
            env: Vec::new(),
            cwd: None,
            user: None,
            restart: Restart::OnFailure,
            at_end: WorkloadEnd::Keep,
        };
        let mut world = World::with(false, (seed % 2 == 1).then_some(workload));
        world.hooks.paths = vec![b"/1".to_vec(), b"/2".to_vec()];
        Self {
            world,
            random,
            observed: Observed::default(),
        }
    }

    fn open_peers(&self) -> Vec<ConnectionId> {
        let peers = self.world.peers.iter().filter(|(_, peer)| !peer.is_closed);
        peers.map(|(id, _)| *id).collect()
    }

    fn small(&mut self, limit: usize) -> u8 {
        u8::try_from(self.random.below(limit)).expect("small")
    }

    fn generation(&mut self) -> Generation {
        let known = self.world.agent.generation();
        let fresh = Generation::from_bytes([self.small(6); 16]);
        known.filter(|_| self.random.one_in(2)).unwrap_or(fresh)
    }

    fn session_ref(&mut self) -> SessionRef {
        match self.random.below(6) {
            0 => SessionRef::Workload,
            1..=3 => SessionRef::Exec(exec_id(self.small(40))),
            _ => SessionRef::Number(self.small(20).into()),
        }
    }

    /// Something that fits where the connection stands, more often than not.
    fn request(&mut self, id: ConnectionId) -> Message {
        let connection = self.world.agent.connections.get(&id);
        if connection.is_some_and(|it| it.is_local()) {
            return self.wait();
        }
        let has_session = self.observed.views.contains_key(&id);
        match (self.random.below(20), has_session) {
            (0..=2, _) => self.question(),
            (3..=10, true) => self.ack(id),
            (11..=18, true) => self.stdin(id),
            (3..=9, false) | (19, true) => {
                let generation = self.generation();
                self.attach(generation)
            }
            (_, _) => self.exec(),
        }
    }

    /// What a program in the guest asks.
    fn wait(&mut self) -> Message {
        if self.random.one_in(3) {
            let from = self.random.one_in(2).then(|| self.generation());
            return Message::GenerationRequest(GenerationRequest { from });
        }
        Message::CheckpointRequest(CheckpointRequest {
            tag: self.tag(),
            timeout_ms: self.random.one_in(2).then_some(600),
        })
    }

    fn tag(&mut self) -> Option<String> {
        let tag = self.random.pick(&["a", "b"]).expect("some");
        self.random.one_in(2).then(|| tag.to_owned())
    }

    fn question(&mut self) -> Message {
        let generation = self.generation();
        let policy = self.random.pick(Policy::ALL).expect("some");
        let token = Token::from_bytes([self.small(2); 16]);
        match self.random.below(28) {
            0 => Message::Hello(Hello::host("simulated")),
            1 => Message::StdinEof(StdinEof { offset: 0 }),
            2..=3 => rebind(generation, self.random.pick(Cause::ALL).expect("some")),
            4..=5 => probe(generation, self.random.pick(Depth::ALL).expect("some")),
            6..=7 => Message::Quiesce(Quiesce {
                token,
                policy,
                limit_ms: 500,
            }),
            8..=9 => Message::Reopen(Reopen { token }),
            10 => Message::InfoRequest,
            11 => Message::Ping(Ping { nonce: 1 }),
            12..=13 => Message::SessionsRequest(SessionsRequest {
                after: self.small(20).into(),
            }),
            14..=15 => Message::Resize(TtySize { rows: 1, cols: 1 }),
            16..=17 => Message::ExitAck(ExitAck {
                session: self.small(20).into(),
            }),
            18..=19 => Message::AwaitCheckpoint(AwaitCheckpoint { tag: self.tag() }),
            20..=21 => Message::Hooks(Hooks {
                token: Token::from_bytes([100 + self.small(100); 16]),
                stage: self.random.pick(HookStage::ALL).expect("some"),
                limit_ms: 300,
                go_on: self.random.one_in(2),
            }),
            _ => Message::Signal(SignalRequest {
                session: Some(self.session_ref()).filter(|_| self.random.one_in(2)),
                number: 1 + self.small(64),
            }),
        }
    }

    fn exec(&mut self) -> Message {
        let number = self.small(40);
        exec_with(number, |exec| {
            let random = &mut self.random;
            exec.stdin = random.one_in(2);
            exec.tty = random.one_in(4).then_some(TtySize { rows: 1, cols: 1 });
            exec.detached = random.one_in(5);
            exec.output = random.pick(OutputPolicy::ALL).expect("some");
            exec.timeout_ms = random.one_in(4).then_some(700);
            exec.keep_ms = random.one_in(2).then_some(900);
            exec.stdout_from = random.pick(&[0, 0, 0, 1000]).expect("some");
        })
    }

    fn attach(&mut self, generation: Generation) -> Message {
        let from = |random: &mut Random| random.one_in(2).then_some(random.next() % 100_000);
        Message::Attach(Attach {
            session: self.session_ref(),
            generation: Some(generation).filter(|_| self.random.one_in(8)),
            mode: self.random.pick(AttachMode::ALL).expect("some"),
            stdout_from: from(&mut self.random),
            stderr_from: from(&mut self.random),
        })
    }

    /// Mostly of what has come, now and then of more.
    fn ack(&mut self, id: ConnectionId) -> Message {
        let stream = self.random.pick(Stream::ALL).expect("some");
        let view = self.observed.views.get(&id);
        let known = view.map_or(0, |view| view.offsets[stream.index()]);
        let offset = match self.random.below(30) {
            0 => known + 1_000_000,
            1..=10 => known / 2,
            _ => known,
        };
        Message::Ack(Ack { stream, offset })
    }

    /// Mostly what comes next, some of it again, now and then with a hole or over the limit.
    fn stdin(&mut self, id: ConnectionId) -> Message {
        let view = self.observed.views.get(&id);
        let session = view.map(|view| view.session);
        let session = session.and_then(|session| self.world.agent.sessions.get(session));
        let Some(session) = session else {
            return Message::StdinEof(StdinEof { offset: 0 });
        };
        let (number, window) = (session.id().number(), session.input.window());
        let offset = match self.random.below(30) {
            0 => window.received + 1,
            1..=5 => window.received.saturating_sub(100),
            _ => window.received,
        };
        if self.random.one_in(15) {
            return Message::StdinEof(StdinEof { offset });
        }
        let room = usize::try_from(window.limit.saturating_sub(offset)).expect("small");
        let excess = usize::from(self.random.one_in(30)) * 1_000;
        let len = self.random.below(20_000).min(room) + excess;
        let bytes = bytes_at(number, INPUT, offset, len);
        Message::Stdin(Chunk { offset, bytes })
    }

    /// One thing happens.
    fn step(&mut self) {
        let open = self.open_peers();
        let peer = self.random.pick(&open);
        match (self.random.below(24), peer) {
            (2, _) if open.len() < 20 && self.random.one_in(3) => {
                self.world.connect_local();
            }
            (0..=2, _) if open.len() < 20 => {
                let id = self.world.accept();
                let hello = Message::Hello(Hello::host("simulated"));
                if !self.random.one_in(10) {
                    self.world.send(id, &hello);
                }
            }
            (3..=10, Some(id)) => self.send(id),
            (11, Some(id)) => {
                let ended = [Ended::ByPeer, Ended::ByReset, Ended::ByError];
                let ended = self.random.pick(&ended).expect("some");
                self.world.end(id, ended);
            }
            (12, Some(id)) => {
                let room = self.random.below(100_000);
                self.world.peers.get_mut(&id).expect("open").room = Some(room);
            }
            (13, Some(id)) => self.world.unblock(id),
            (14..=18, _) => self.child(),
            (19, _) => self.world.reap(1, ExitStatus::Code(0)),
            (20, _) => self.misfortune(),
            // A restored machine can find hours gone.
            (21, _) if self.random.one_in(4) => {
                self.world.now += Duration::from_secs(3600);
                self.world.agent.handle_timeout(self.world.now);
                self.world.settle();
            }
            (_, _) => {
                let ms = self.random.next() % 400;
                self.world.pass(Duration::from_millis(ms));
            }
        }
    }

    /// Something will fail, or does so no more.
    fn misfortune(&mut self) {
        let steps = ["listener", "clock", "entropy"];
        let step = self.random.pick(&steps).expect("some");
        if !self.world.failing_steps.remove(step) && self.random.one_in(2) {
            self.world.failing_steps.insert(step);
        }
        self.world.is_console_drained = self.random.one_in(2);
        let failure = SpawnFailure {
            stage: SpawnStage::Clone,
            errno: 11,
            text: "out of luck".to_owned(),
            stillborn: None,
        };
        self.world.spawn_failure = self.random.one_in(3).then_some(failure);
    }

    /// A frame, whole or in two pieces, now and then with rubbish behind it.
    fn send(&mut self, id: ConnectionId) {
        let message = self.request(id);
        if matches!(message, Message::Exec(_) | Message::Attach(_)) {
            *self.observed.requests_sent.entry(id).or_default() += 1;
        }
        if matches!(message, Message::Quiesce(_) | Message::Rebind(_)) {
            self.observed.askers.insert(id);
        }
        let mut bytes = message.encode();
        if self.random.one_in(60) {
            bytes.extend_from_slice(&self.random.next().to_le_bytes());
        }
        let split = self.random.below(bytes.len());
        self.world.send_bytes(id, &bytes[..split]);
        self.world.send_bytes(id, &bytes[split..]);
    }

    /// A child writes, reads, closes its output or its input, or ends.
    fn child(&mut self) {
        let outputs: Vec<_> = self.observed.open_outputs.iter().copied().collect();
        let pids: Vec<_> = self.world.processes.keys().copied().collect();
        let output = self.random.pick(&outputs);
        // What waits in the pipe comes before its end; with no room there may be some.
        let room = output.map_or(0, |(id, stream)| self.world.agent.output_room(id, stream));
        match (self.random.below(9), output, self.random.pick(&pids)) {
            (0..=3, Some((id, stream)), _) if room > 0 => {
                let most = if self.random.one_in(3) { 100_000 } else { 500 };
                let len = self.random.below(room.min(most)) + 1;
                let ring = self
                    .world
                    .agent
                    .sessions
                    .get(id)
                    .expect("open")
                    .ring(stream);
                let bytes = bytes_at(id.number(), stream.index(), ring.end(), len);
                self.world.output(id, stream, &bytes);
            }
            (4, Some((id, stream)), _) if room > 0 => {
                self.observed.open_outputs.remove(&(id, stream));
                let now = self.world.now;
                self.world.agent.handle_output_closed(id, stream, now);
                self.world.settle();
            }
            (5..=6, Some((id, _)), _) => {
                let room = self.random.below(100_000);
                self.world.inputs.entry(id).or_default().room = Some(room);
                self.world.flush_input(id);
                self.world.settle();
            }
            (7, Some((id, _)), _) if self.random.one_in(10) => {
                self.world.inputs.entry(id).or_default().is_closed = true;
                let now = self.world.now;
                self.world.agent.handle_input_closed(id, now);
                self.world.settle();
            }
            (8, _, Some(pid)) => {
                let code = self.small(2);
                self.world.reap(pid, ExitStatus::Code(code));
            }
            (_, _, _) => {}
        }
    }

    /// Looks at everything that was asked for and received since the last look.
    fn observe(&mut self) {
        let actions = self.world.actions[self.observed.action_count..].to_vec();
        self.observed.action_count += actions.len();
        for action in &actions {
            match action {
                Action::Spawn {
                    purpose: Purpose::Session(id),
                    ..
                } => self.observe_spawn(*id),
                Action::CloseOutput(id) => {
                    let id = *id;
                    self.observed
                        .open_outputs
                        .retain(|(session, _)| *session != id);
                }
                _ => {}
            }
        }
        let ids: Vec<_> = self.world.peers.keys().copied().collect();
        for id in ids {
            for message in self.world.receive(id) {
                self.observe_message(id, &message);
            }
        }
        for (id, end) in &self.world.inputs {
            let seen = self.observed.inputs.entry(*id).or_default();
            let fresh = (*seen..).zip(&end.received[*seen..]);
            for (offset, byte) in fresh {
                // The end of what a terminal is given is its own character.
                let expected = byte_at(id.number(), INPUT, offset as u64);
                assert!(*byte == expected || *byte == 4, "input of {id} at {offset}");
            }
            *seen = end.received.len();
        }
    }

    fn observe_spawn(&mut self, id: SessionId) {
        let purpose = Purpose::Session(id);
        if !self.world.processes.values().any(|it| *it == purpose) {
            return;
        }
        let session = self.world.agent.sessions.get(id).expect("it runs");
        self.observed.spawned_count += 1;
        if let Some(exec) = session.terms().exec {
            assert!(self.observed.spawned.insert(exec), "{exec} ran twice");
        }
        let has_stderr = session.terms().tty.is_none();
        let outputs = &mut self.observed.open_outputs;
        outputs.insert((id, Stream::Stdout));
        if has_stderr {
            outputs.insert((id, Stream::Stderr));
        }
    }

    fn observe_message(&mut self, id: ConnectionId, message: &Message) {
        match message {
            Message::Started(started) | Message::Attached(started) => {
                let session = SessionId::from_number(started.session);
                let attachment = self.world.agent.connections.get(&id);
                let attachment = attachment.and_then(|it| it.attachment);
                let mode = attachment.map_or(AttachMode::Observe, |it| it.mode);
                let offsets = [started.stdout_from, started.stderr_from];
                let view = View {
                    session,
                    mode,
                    offsets,
                };
                let previous = self.observed.views.insert(id, view);
                let is_asker = self.observed.askers.contains(&id);
                assert!(previous.is_none() || is_asker, "{id} serves two sessions");
            }
            Message::Stdout(chunk) => self.observe_chunk(id, Stream::Stdout, chunk),
            Message::Stderr(chunk) => self.observe_chunk(id, Stream::Stderr, chunk),
            Message::Gap(gap) => {
                self.observed.gap_count += 1;
                let view = self.observed.views.get_mut(&id).expect("a session");
                let next = &mut view.offsets[gap.stream.index()];
                assert_eq!(*next, gap.from, "{id}");
                *next = gap.to;
            }
            Message::Exited(exited) => {
                let view = self.observed.views.remove(&id).expect("a session");
                assert_eq!(view.session.number(), exited.session);
                let is_wait = self
                    .world
                    .agent
                    .connections
                    .get(&id)
                    .is_some_and(|it| matches!(it.served, Some((_, AttachMode::Wait))));
                let ends = [exited.stdout_end, exited.stderr_end];
                let is_at_end = view.offsets == ends;
                assert!(
                    is_at_end || is_wait || view.mode == AttachMode::Wait,
                    "{id}: early"
                );
                let completions = self.observed.completions.entry(id).or_default();
                *completions += 1;
                let sent = self.observed.requests_sent.get(&id).copied().unwrap_or(0);
                assert!(*completions <= sent, "more ends than requests on {id}");
            }
            Message::Fail(fail) => assert_ne!(fail.code, FailCode::Internal, "{}", fail.text),
            Message::Window(window) => {
                assert!(window.received <= window.limit);
                let view = self.observed.views.get(&id).expect("a session");
                assert_ne!(view.mode, AttachMode::Wait);
            }
            _ => {}
        }
    }

    fn observe_chunk(&mut self, id: ConnectionId, stream: Stream, chunk: &Chunk) {
        let view = self
            .observed
            .views
            .get_mut(&id)
            .expect("STARTED came first");
        let next = &mut view.offsets[stream.index()];
        assert_eq!(*next, chunk.offset, "{stream:?} of {id} has a hole");
        *next += chunk.bytes.len() as u64;
        let number = view.session.number();
        let expected = bytes_at(number, stream.index(), chunk.offset, chunk.bytes.len());
        assert!(
            chunk.bytes == expected,
            "{stream:?} of {id} at {}",
            chunk.offset
        );
    }

    /// What must hold after every step.
    fn check(&self) {
        let agent = &self.world.agent;
        assert!(agent.connections.len() <= CONNECTIONS_MAX + REFUSALS_MAX);
        for (id, connection) in &agent.connections {
            assert!(connection.outbox.pending().len() <= outbox::LEN_MAX);
            assert!(
                !self.world.peers[id].is_closed,
                "{id} is closed and not forgotten"
            );
            if let Some(attachment) = connection.attachment {
                let session = agent.sessions.get(attachment.session).expect("a session");
                assert!(session.attached().contains(id));
                let is_owner = attachment.mode == AttachMode::Own;
                assert_eq!(session.owner == Some(*id), is_owner);
            }
        }
        for id in agent.waits.everybody() {
            assert!(agent.connections.contains_key(&id), "{id} waits no more");
        }
        let locals = agent.connections.values().filter(|it| it.is_local());
        assert_eq!(agent.local_count, locals.count());
        let mut attached = agent
            .connections
            .values()
            .filter(|it| it.attachment.is_some());
        assert!(attached.next().is_some() || agent.spares.count() == 0);
        for session in agent.sessions.after(0) {
            self.check_session(session);
        }
        let running = agent.sessions.running().count();
        assert_eq!(agent.sessions.running_count(), running);
        if let State::Rebound(generation) = agent.state() {
            assert_eq!(agent.generation(), Some(generation));
        }
        assert_eq!(
            agent.quiescing.is_some(),
            matches!(agent.state(), State::Quiescing | State::Quiesced)
        );
        let is_idle = agent.connections.is_empty() && running == 0;
        if is_idle && agent.state() == State::Running {
            assert_eq!(
                agent.poll_timeout(),
                None,
                "an idle agent wakes up: {:?}",
                agent.timers
            );
        }
    }

    fn check_session(&self, session: &session::Session) {
        let agent = &self.world.agent;
        for id in session.attached() {
            let attachment = agent.connections[id].attachment.expect("attached");
            assert_eq!(attachment.session, session.id());
        }
        assert!(
            session
                .owner
                .is_none_or(|owner| session.attached().contains(&owner))
        );
        assert!(session.kept_len() <= 2 * RING_LEN_MAX);
        assert!(session.input.pending().len() <= INPUT_LEN_MAX);
        let window = session.input.window();
        assert!(window.received <= window.limit);
        // Only whoever is far behind its session's end is still attached to it.
        if session.exited().is_some() {
            for id in session.attached() {
                assert!(
                    agent.connections[id].has_pending(Some(session)),
                    "{id} waits for nothing"
                );
            }
        }
    }

    /// The storm is over: a host that follows the handshake gets its guest back, however it was
    /// left.
    fn converge(&mut self) {
        let world = &mut self.world;
        world.failing_steps.clear();
        world.spawn_failure = None;
        world.is_console_drained = true;
        let generation = Generation::from_bytes([77; 16]);
        let first = world.connect();
        let answer = world.ask(first, &rebind(generation, Cause::Restore));
        assert!(matches!(answer[..], [Message::Rebound(_)]), "{answer:?}");
        let fresh = world.connect();
        world.ask(fresh, &probe(generation, Depth::Exec));
        world.reap(world.pid(), ExitStatus::Code(0));
        assert!(matches!(world.receive(fresh)[..], [Message::Probed(_)]));
        assert_eq!(world.agent.state(), State::Running);
        // And everything that was left behind ends by itself, once it has been read.
        for id in world.peers.keys().copied().collect::<Vec<_>>() {
            if !world.is_closed(id) {
                world.end(id, Ended::ByPeer);
            }
        }
        let running: Vec<_> = world
            .agent
            .sessions
            .running()
            .map(session::Session::id)
            .collect();
        for session in running {
            let id = world.connect();
            let name = SessionRef::Number(session.number());
            world.send(id, &attach(name, AttachMode::Own, Some(u64::MAX)));
            world.end(id, Ended::ByPeer);
        }
        for _ in 0..3 {
            for pid in world.processes.keys().copied().collect::<Vec<_>>() {
                world.reap(pid, ExitStatus::Code(0));
            }
            world.pass(Duration::from_secs(3600));
        }
        assert_eq!(world.agent.sessions.running_count(), 0);
        assert!(world.agent.connections.is_empty());
        assert_eq!(world.agent.poll_timeout(), None);
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
            // As every turn of the loop does.
            self.world.pass(Duration::ZERO);
            self.observe();
            self.check();
        }
        self.converge();
    }
}

#[test]
fn simulation() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..RUNS).collect(),
    };
    let mut seen = [0; 3];
    for seed in seeds {
        let mut simulation = Simulation::new(seed);
        let run = std::panic::AssertUnwindSafe(|| simulation.run());
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        let observed = &simulation.observed;
        seen[0] += observed.spawned_count;
        seen[1] += observed.gap_count;
        seen[2] += observed.inputs.values().sum::<usize>();
    }
    let is_replay = std::env::var_os("SEED").is_some();
    assert!(
        is_replay || seen.iter().all(|count| *count > 0),
        "the storm never got to commands, gaps or input: {seen:?}"
    );
}

#[test]
fn the_same_seed_plays_the_same_run() {
    let actions = |seed| {
        let mut simulation = Simulation::new(seed);
        simulation.run();
        simulation.world.actions
    };
    assert_eq!(actions(5), actions(5));
}
