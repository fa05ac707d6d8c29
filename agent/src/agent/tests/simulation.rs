//! The whole core in a hostile world, from a seed.
//!
//! Goal: whatever order the kernel, the children and the peers find, the invariants hold after
//! every step, and when the storm is over a host that follows the handshake gets its guest back.
//! Method: a seeded generator plays them all at random: requests cut into pieces, peers that read
//! little or nothing, ends by the peer, by reset and by error, output and exits in any order,
//! orphans, failing steps and spawns, a console that stays busy, time that jumps by hours.
//!
//! A failing run prints its seed; `SEED=n cargo test -p agent simulation` plays it again.

use super::*;
use shared::message::{FailCode, Ping, Reopen};

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

/// What the run has seen, to hold the next step against.
#[derive(Default)]
struct Observed {
    /// Actions that were looked at.
    action_count: usize,
    /// EXEC frames sent per connection, and completions that came back.
    execs_sent: BTreeMap<ConnectionId, usize>,
    completions: BTreeMap<ConnectionId, usize>,
    /// Next offset per connection and stream.
    offsets: BTreeMap<(ConnectionId, Stream), u64>,
    /// Sessions whose pipes are open, per stream.
    open_outputs: BTreeSet<(SessionId, Stream)>,
    spawned: usize,
}

struct Simulation {
    world: World,
    random: Random,
    observed: Observed,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        // Multiplied, so that neighbouring seeds start far apart; never zero.
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self {
            world: World::new(),
            random,
            observed: Observed::default(),
        }
    }

    fn open_peers(&self) -> Vec<ConnectionId> {
        let peers = self.world.peers.iter().filter(|(_, peer)| !peer.is_closed);
        peers.map(|(id, _)| *id).collect()
    }

    fn generation(&mut self) -> Generation {
        let known = self.world.agent.generation();
        let fresh =
            Generation::from_bytes([u8::try_from(self.random.below(6)).expect("small"); 16]);
        known.filter(|_| self.random.one_in(2)).unwrap_or(fresh)
    }

    fn request(&mut self) -> Message {
        let generation = self.generation();
        let number = u8::try_from(self.random.below(12)).expect("small");
        let policy = self.random.pick(Policy::ALL).expect("some");
        let token = Token::from_bytes([u8::try_from(self.random.below(2)).expect("small"); 16]);
        match self.random.below(14) {
            0..=1 => Message::Hello(Hello::host("simulated")),
            2 => rebind(generation, self.random.pick(Cause::ALL).expect("some")),
            3 => probe(generation, self.random.pick(Depth::ALL).expect("some")),
            4 => Message::Quiesce(Quiesce {
                token,
                policy,
                limit_ms: 500,
            }),
            5 => Message::Reopen(Reopen { token }),
            6 => Message::InfoRequest,
            7 => Message::Ping(Ping { nonce: 1 }),
            _ => exec(number),
        }
    }

    /// One thing happens.
    fn step(&mut self) {
        let open = self.open_peers();
        let peer = self.random.pick(&open);
        match (self.random.below(20), peer) {
            (0..=2, _) if open.len() < 20 => {
                let id = self.world.accept();
                let hello = Message::Hello(Hello::host("simulated"));
                if !self.random.one_in(10) {
                    self.world.send(id, &hello);
                }
            }
            (3..=8, Some(id)) => self.send(id),
            (9, Some(id)) => {
                let ended = [Ended::ByPeer, Ended::ByReset, Ended::ByError];
                let ended = self.random.pick(&ended).expect("some");
                self.world.end(id, ended);
            }
            (10, Some(id)) => {
                let room = self.random.below(2000);
                self.world.peers.get_mut(&id).expect("open").room = Some(room);
            }
            (11, Some(id)) => self.world.unblock(id),
            (12..=14, _) => self.child(),
            (15, _) => self.world.reap(1, ExitStatus::Code(0)),
            (16, _) => {
                let step = self
                    .random
                    .pick(&["listener", "clock", "entropy"])
                    .expect("some");
                if !self.world.failing_steps.remove(step) && self.random.one_in(2) {
                    self.world.failing_steps.insert(step);
                }
                self.world.is_console_drained = self.random.one_in(2);
            }
            (17, _) => {
                let text = "out of luck".to_owned();
                let errno = 11;
                let failure = SpawnFailure {
                    stage: SpawnStage::Clone,
                    errno,
                    text,
                    stillborn: None,
                };
                self.world.spawn_failure = self.random.one_in(3).then_some(failure);
            }
            // A restored machine can find hours gone.
            (18, _) => {
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

    /// A request, whole or in two pieces, now and then with rubbish behind it.
    fn send(&mut self, id: ConnectionId) {
        let message = self.request();
        if matches!(message, Message::Exec(_)) {
            *self.observed.execs_sent.entry(id).or_default() += 1;
        }
        let mut bytes = message.encode();
        if self.random.one_in(60) {
            bytes.extend_from_slice(&self.random.next().to_le_bytes());
        }
        let split = self.random.below(bytes.len());
        self.world.send_bytes(id, &bytes[..split]);
        self.world.send_bytes(id, &bytes[split..]);
    }

    /// A child writes, closes its output, or ends.
    fn child(&mut self) {
        let outputs: Vec<_> = self.observed.open_outputs.iter().copied().collect();
        let pids: Vec<_> = self.world.processes.keys().copied().collect();
        let output = self.random.pick(&outputs);
        // What waits in the pipe comes before its end; with no room there may be some.
        let room = output.map_or(0, |(id, _)| self.world.agent.output_room(id));
        match (self.random.below(3), output, self.random.pick(&pids)) {
            (0, Some((id, stream)), _) if room > 0 => {
                let bytes = vec![b'x'; self.random.below(room.min(20_000)) + 1];
                self.world.agent.handle_output(id, stream, &bytes);
                self.world.settle();
            }
            (1, Some((id, stream)), _) if room > 0 => {
                self.observed.open_outputs.remove(&(id, stream));
                self.world
                    .agent
                    .handle_output_closed(id, stream, self.world.now);
                self.world.settle();
            }
            (2, _, Some(pid)) => {
                let code = u8::try_from(self.random.below(2)).expect("small");
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
                } => {
                    self.observed.spawned += 1;
                    self.observed
                        .open_outputs
                        .extend(Stream::ALL.iter().map(|stream| (*id, *stream)));
                }
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
    }

    fn observe_message(&mut self, id: ConnectionId, message: &Message) {
        match message {
            Message::Started(started) => {
                self.observed
                    .offsets
                    .insert((id, Stream::Stdout), started.stdout_from);
                self.observed
                    .offsets
                    .insert((id, Stream::Stderr), started.stderr_from);
            }
            Message::Stdout(chunk) => self.observe_chunk(id, Stream::Stdout, chunk),
            Message::Stderr(chunk) => self.observe_chunk(id, Stream::Stderr, chunk),
            Message::Exited(exited) => {
                assert_eq!(
                    self.observed.offsets[&(id, Stream::Stdout)],
                    exited.stdout_end
                );
                assert_eq!(
                    self.observed.offsets[&(id, Stream::Stderr)],
                    exited.stderr_end
                );
                let completions = self.observed.completions.entry(id).or_default();
                *completions += 1;
                let sent = self.observed.execs_sent.get(&id).copied().unwrap_or(0);
                assert!(
                    *completions <= sent,
                    "more completions than requests on {id}"
                );
            }
            Message::Fail(fail) => assert_ne!(fail.code, FailCode::Internal, "{}", fail.text),
            _ => {}
        }
    }

    fn observe_chunk(&mut self, id: ConnectionId, stream: Stream, chunk: &shared::message::Chunk) {
        let next = self
            .observed
            .offsets
            .get_mut(&(id, stream))
            .expect("STARTED came first");
        assert_eq!(*next, chunk.offset, "{stream:?} of {id} has a gap");
        *next += chunk.bytes.len() as u64;
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
        if let State::Rebound(generation) = agent.state() {
            assert_eq!(agent.generation(), Some(generation));
        }
        assert_eq!(
            agent.quiescing.is_some(),
            matches!(agent.state(), State::Quiescing | State::Quiesced)
        );
        let is_idle = agent.connections.is_empty() && agent.sessions.running_count() == 0;
        if is_idle && agent.state() == State::Running {
            assert_eq!(
                agent.poll_timeout(),
                None,
                "an idle agent wakes up: {:?}",
                agent.timers
            );
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
        // And everything that was left behind ends by itself.
        world.end(first, Ended::ByPeer);
        world.end(fresh, Ended::ByPeer);
        for pid in world.processes.keys().copied().collect::<Vec<_>>() {
            world.reap(pid, ExitStatus::Code(0));
        }
        world.pass(Duration::from_secs(3600));
        assert!(
            world.agent.sessions.running_count() == 0,
            "{:?}",
            world.agent.sessions
        );
        assert!(world.agent.connections.is_empty());
        assert_eq!(world.agent.poll_timeout(), None);
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
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
    let mut spawned = 0;
    for seed in seeds {
        let mut simulation = Simulation::new(seed);
        let run = std::panic::AssertUnwindSafe(|| simulation.run());
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("replay with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        spawned += simulation.observed.spawned;
    }
    let is_replay = std::env::var_os("SEED").is_some();
    assert!(
        is_replay || spawned > 0,
        "the storm never got to run a command"
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
