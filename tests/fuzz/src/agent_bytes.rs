//! The agent's core: sequences of everything that can happen to it, and any bytes of one peer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::agent::state::State;
use agent::agent::{
    Action, Agent, Confinement, ConnectionId, Ended, Exit, Figures, Headers, HookListing, Purpose,
    Settings, StepAction, StepOutcome, Stream,
};
use shared::frame::Decoder;
use shared::id::{Generation, Instance, Nonce};
use shared::message::{
    Cause, Depth, ExitStatus, Hello, Identity, InheritedSessions, Message, Probe, Rebind,
    ResourceUsage, Role,
};

/// Most actions after one input. More mean that the core does not come to rest.
const ACTIONS_MAX: usize = 100_000;

/// Each byte decides something in the simulated world of `tests/simulation`: which client connects,
/// what it sends and how much of it arrives, what a child does, what fails, how much time passes.
/// Its checks after each step apply.
pub fn agent_inputs(data: &[u8]) {
    simulation::schedule::play_bytes(data);
}

/// The agent, and a shell whose actions all succeed.
struct Shell {
    agent: Agent,
    now: Instant,
    peers: BTreeMap<ConnectionId, Peer>,
    /// Running processes, by id.
    processes: BTreeMap<i32, Purpose>,
    pid: i32,
    is_over: bool,
}

/// The far end of a connection. It reads everything at once.
#[derive(Default)]
struct Peer {
    decoder: Decoder,
    received: Vec<Message>,
}

/// Any bytes of one peer. The first byte says whether it is a host or a program in the guest, and
/// how long the pieces are. The agent must answer with messages of a guest, its invariants must
/// hold, and another host must get the guest back.
pub fn agent_bytes(data: &[u8]) {
    let Some((&first, stream)) = data.split_first() else {
        return;
    };
    let mut shell = Shell::new();
    let is_local = first & 1 == 1;
    let Some(id) = shell.accept(is_local) else {
        return;
    };
    for piece in stream.chunks(1 + usize::from(first >> 1) * 8) {
        // As the shell does: no reads from a peer that does not read its own answers.
        if shell.agent.interest(id).is_some_and(|it| it.readable) {
            shell.agent.handle_bytes(id, piece, shell.now);
            shell.drain_actions();
        }
    }
    shell.end_processes();
    shell.pass(Duration::from_secs(1));
    shell.agent.handle_closed(id, Ended::ByPeer, shell.now);
    shell.drain_actions();
    if !shell.is_over && shell.agent.state() != State::Ending {
        shell.converge();
    }
}

impl Shell {
    fn new() -> Self {
        let now = Instant::now();
        let settings = Settings {
            is_init: true,
            results_max: 2,
            confinement: Confinement {
                has_cgroups: true,
                has_limits: true,
                ..Confinement::default()
            },
            has_restore_hooks: true,
            ..Settings::new(Instance::from_bytes([7; 16]))
        };
        let mut shell = Self {
            agent: Agent::new(settings, now),
            now,
            peers: BTreeMap::new(),
            processes: BTreeMap::new(),
            pid: 100,
            is_over: false,
        };
        shell.drain_actions();
        shell
    }

    fn accept(&mut self, is_local: bool) -> Option<ConnectionId> {
        let id = if is_local {
            self.agent.handle_local_accepted(self.now)
        } else {
            self.agent.handle_accepted(true, self.now)
        }?;
        self.peers.insert(id, Peer::default());
        self.drain_actions();
        Some(id)
    }

    fn drain_actions(&mut self) {
        for count in 0.. {
            assert!(count < ACTIONS_MAX, "it never comes to rest");
            let Some(action) = self.agent.poll_action() else {
                break;
            };
            self.perform(action);
        }
        if !self.is_over {
            self.agent.assert_invariants();
        }
    }

    fn perform(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Flush(id) => self.flush(id),
            Action::Close(id) => {
                self.peers.remove(&id);
            }
            Action::RearmListener => self.agent.handle_rearmed(Ok(()), now),
            Action::Step { run, action } => {
                let outcome = self.step(&action);
                self.agent.handle_step(run, outcome, Duration::ZERO, now);
            }
            Action::Spawn { purpose, command } => {
                assert!(!command.argv.is_empty() && !command.candidates.is_empty());
                self.pid += 1;
                self.processes.insert(self.pid, purpose);
                self.agent.handle_spawned(purpose, Ok(self.pid), now);
            }
            Action::LookAtConsole => self.agent.handle_console(true, now),
            Action::CollectFigures(id) => self.agent.handle_figures(id, Figures::default(), now),
            Action::ListHooks(_) => {
                let listing = HookListing {
                    paths: vec![b"/hooks/1".to_vec(), b"/hooks/2".to_vec()],
                    has_restore: true,
                };
                self.agent.handle_hooks_listed(Ok(listing), now);
            }
            Action::FlushInput(id) => {
                while let len @ 1.. = self.agent.input_pending(id).len() {
                    self.agent.handle_input_written(id, len, now);
                }
            }
            Action::End(_) => self.is_over = true,
            Action::DrainAccept
            | Action::CheckSources
            | Action::ResumeOutput(_)
            | Action::CountOutput(_)
            | Action::CloseOutput(_)
            | Action::CloseInput(_)
            | Action::ResizeTty { .. }
            | Action::SignalGroup { .. }
            | Action::KillSession(_)
            | Action::SignalEveryone(_)
            | Action::WriteGeneration(_)
            | Action::AskMmds(_)
            | Action::CloseMmds => {}
        }
    }

    fn step(&mut self, action: &StepAction) -> StepOutcome {
        match action {
            StepAction::CloseConnections(ids) => {
                self.peers.retain(|id, _| !ids.contains(id));
                StepOutcome::Done
            }
            StepAction::SetClock { .. } => StepOutcome::ClockMoved { step_ns: 42 },
            StepAction::RearmListener | StepAction::Reseed { .. } | StepAction::SetIdentity(_) => {
                StepOutcome::Done
            }
        }
    }

    fn flush(&mut self, id: ConnectionId) {
        self.agent.handle_flush(id);
        while let Some(peer) = self.peers.get_mut(&id) {
            let mut headers = Headers::default();
            let pending = self.agent.pending(id, &mut headers).as_slice().concat();
            if pending.is_empty() {
                return;
            }
            peer.decoder.push(&pending);
            while let Some(frame) = peer.decoder.poll_frame().expect("frames") {
                let message = Message::parse(frame, Role::Guest).expect("messages of a guest");
                peer.received.push(message);
            }
            self.agent.handle_written(id, pending.len(), self.now);
        }
    }

    /// Every process closes its outputs and ends, also those that are started meanwhile.
    fn end_processes(&mut self) {
        while let Some((pid, purpose)) = self.processes.pop_first() {
            if let Purpose::Session(id) = purpose {
                for stream in Stream::ALL {
                    self.agent.handle_output_closed(id, *stream, self.now);
                    self.drain_actions();
                }
            }
            let exit = Exit {
                status: ExitStatus::Code(0),
                usage: ResourceUsage::default(),
            };
            self.agent.handle_child_exit(pid, exit, self.now);
            self.drain_actions();
        }
    }

    fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        for count in 0.. {
            assert!(count < ACTIONS_MAX, "time stands still");
            let Some(at) = self.agent.poll_timeout().filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(at);
            self.agent.handle_timeout(self.now);
            self.drain_actions();
        }
        self.now = until;
    }

    /// Sends a request on a new connection, and returns the last message that comes back.
    fn ask(&mut self, request: &Message) -> Option<Message> {
        let id = self.accept(false).expect("there is room for one");
        let mut bytes = Message::Hello(Hello::host("fuzzed")).encode();
        request.encode_into(&mut bytes);
        self.agent.handle_bytes(id, &bytes, self.now);
        self.drain_actions();
        self.end_processes();
        let last = self.peers.get_mut(&id).and_then(|peer| peer.received.pop());
        self.agent.handle_closed(id, Ended::ByPeer, self.now);
        self.drain_actions();
        last
    }

    /// A host that follows the handshake gets its guest back, and then nothing is left.
    fn converge(&mut self) {
        let generation = Generation::from_bytes([0x77; 16]);
        let answer = self.ask(&Message::Rebind(Rebind {
            generation,
            cause: Cause::Restore,
            parent: None,
            wall_clock_ns: 1_767_225_600 * 1_000_000_000,
            entropy: Some([9; 32]),
            identity: Identity::default(),
            sessions: InheritedSessions::Keep,
            attempt: 1,
        }));
        assert!(matches!(answer, Some(Message::Rebound(_))), "{answer:?}");
        let answer = self.ask(&Message::Probe(Probe {
            generation: Some(generation),
            nonce: Nonce::from_bytes([4; 16]),
            depth: Depth::Exec,
        }));
        assert!(matches!(answer, Some(Message::Probed(_))), "{answer:?}");
        assert_eq!(self.agent.generation(), Some(generation));
        self.end_processes();
        self.pass(Duration::from_secs(60));
        assert!(self.peers.is_empty(), "a connection is left");
        assert_eq!(self.agent.poll_timeout(), None, "it wakes for nothing");
    }
}
