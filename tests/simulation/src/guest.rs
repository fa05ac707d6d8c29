//! The agent as it ships. The event loop and the shell around it do what the real ones do, in the
//! same order, over the simulated [`Kernel`]. This is the only file that talks to the agent, with
//! `stdio.rs`.
//!
//! As with epoll, an edge is reported once. What is left unread without an edge or a note stays
//! unread, which [`check`](crate::check) notices.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use agent::agent::{
    Action, Agent, Confinement, ConnectionId, End, Ended, Exit, Figures, Headers, HookListing,
    Purpose, RESULTS_MAX, SessionId, Settings, Stream, WorkloadSettings,
};
use agent::agent::{Restart, WorkloadEnd};
use shared::id::Instance;
use shared::message::{Origin, ResourceUsage};

use crate::commands::Commands;
use crate::kernel::{Far, Kernel, Source};
use crate::random::Random;
use crate::tally::Mark;

/// Least budget of memory: what the program's is.
const MEMORY_LEN_MIN: usize = 1024 * 1024;

const READ_LEN: usize = 64 * 1024;

/// Most reads of one source per turn, and most accepts: few, so that sources reach it.
const PER_TURN_MAX: usize = 4;

/// The error when hooks cannot be listed.
pub const NO_DESCRIPTORS: &str = "too many open files";

/// The agent's ends of a command's pipes.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Numbers of the pipes: outputs by index, then input.
    pub pipes: [Option<usize>; 3],
    /// Outputs that were not read until they were empty.
    pub is_unread: [bool; 2],
    /// Whether all of them are one terminal.
    pub is_terminal: bool,
    /// Whether the input has failed. It stays open until the command has ended.
    pub is_input_cut: bool,
    /// A terminal that all programs have closed, which stays open until the session's end.
    pub is_held_open: bool,
}

#[derive(Debug)]
pub struct Guest {
    pub agent: Agent,
    settings: Settings,
    pub kernel: Kernel,
    /// Open connections: the wire's number, and whether it was not read until it was empty.
    pub connections: BTreeMap<ConnectionId, (usize, bool)>,
    pub stdio: BTreeMap<SessionId, Stdio>,
    /// Sources to read from without an edge.
    pub ready: VecDeque<Source>,
    /// The request to the metadata service that is not answered yet.
    pub question: Option<String>,
    /// Whether the agent watches the metadata.
    pub is_watching: bool,
    /// Whether it has so little memory that kept output may be dropped.
    pub is_small: bool,
    pub commands: Commands,
    pub end: Option<End>,
    pub now: Instant,
    /// When the loop turned last.
    pub turned_at: Instant,
    /// How often a rebind has registered the listener again.
    pub rebind_count: u64,
    has_spare: bool,
}

impl Guest {
    /// A guest that has just booted.
    #[must_use]
    pub fn new(mut random: Random, now: Instant) -> Self {
        let workload = WorkloadSettings {
            argv: vec![b"app".to_vec()],
            env: Vec::new(),
            cwd: None,
            user: None,
            restart: Restart::OnFailure,
            at_end: WorkloadEnd::Keep,
        };
        let is_watching = random.one_in(4);
        // A small guest: some streams have little more than their page.
        let is_small = random.one_in(3);
        let memory_len = match is_small {
            true => MEMORY_LEN_MIN + random.below(MEMORY_LEN_MIN),
            false => 64 * 1024 * 1024,
        };
        let settings = Settings {
            is_init: random.one_in(2),
            memory_len,
            results_max: random.pick(&[0, 1, 3, RESULTS_MAX]).expect("some"),
            confinement: Confinement {
                has_cgroups: random.one_in(2),
                has_limits: true,
                ..Confinement::default()
            },
            has_restore_hooks: random.one_in(4),
            watches_mmds: is_watching,
            workload: random.one_in(3).then_some(workload),
            ..Settings::new(instance_of(0))
        };
        let mut guest = Self {
            agent: Agent::new(settings.clone(), now),
            settings,
            kernel: Kernel::new(random),
            connections: BTreeMap::new(),
            stdio: BTreeMap::new(),
            ready: VecDeque::new(),
            question: None,
            is_watching,
            is_small,
            commands: Commands::default(),
            end: None,
            now,
            turned_at: now,
            rebind_count: 0,
            has_spare: true,
        };
        guest.drain_actions();
        guest
    }

    /// Where the first copy of an EXEC goes, or went, if its client has no rules.
    pub fn origin_of(&mut self, number: u8) -> Origin {
        let now = Origin {
            instance: self.settings.instance,
            generation: None,
            sessions_begun: 0,
        };
        *self.commands.origins.entry(number).or_insert(now)
    }

    /// The agent is killed, and another one is started. The first one's descriptors are closed, and
    /// its commands run on as children of another process.
    pub fn restart(&mut self) {
        self.kernel.tally.count(Mark::AgentRestarted);
        let accepted = std::mem::take(&mut self.connections).into_values();
        let accepted = accepted.map(|(wire, _)| wire);
        let queued = std::mem::take(&mut self.kernel.queue);
        let local = std::mem::take(&mut self.kernel.local_queue);
        for wire in accepted.chain(queued).chain(local) {
            self.kernel.close(wire);
        }
        for stdio in std::mem::take(&mut self.stdio).into_values() {
            for pipe in stdio.pipes.into_iter().flatten() {
                self.kernel.close_pipe(pipe);
            }
        }
        self.kernel.disown();
        self.ready.clear();
        self.question = None;
        self.has_spare = true;
        self.commands.begin_life();
        self.settings.instance = instance_of(self.commands.life());
        self.agent = Agent::new(self.settings.clone(), self.now);
        self.drain_actions();
    }

    /// One turn of the event loop, if there is a reason to wake up. Some or all of the events are
    /// reported, in any order, also those of sources that an earlier event of the turn has closed.
    pub fn turn(&mut self) {
        let is_due = self.agent.poll_timeout().is_some_and(|at| at <= self.now);
        let has_events = !self.kernel.events.is_empty() || self.question.is_some();
        if !has_events && self.ready.is_empty() && !is_due {
            return;
        }
        self.serve_metadata();
        let mut batch: Vec<Source> = Vec::new();
        for source in std::mem::take(&mut self.kernel.events) {
            if self.kernel.random.one_in(6) {
                self.kernel.events.insert(source);
            } else {
                let at = self.kernel.random.below(batch.len() + 1);
                batch.insert(at, source);
            }
        }
        for source in batch {
            self.handle_event(source);
        }
        for _ in 0..self.ready.len() {
            if let Some(source) = self.ready.pop_front() {
                self.handle_event(source);
            }
        }
        self.drain_accept();
        self.agent.handle_timeout(self.now);
        self.drain_actions();
        self.turned_at = self.now;
    }

    fn handle_event(&mut self, source: Source) {
        if self.end.is_some() {
            return;
        }
        match source {
            Source::Signals => self.handle_signals(),
            Source::Listener => self.drain_accept(),
            Source::LocalListener => self.drain_local(),
            Source::Connection(id) => {
                if !self.connections.contains_key(&id) {
                    self.kernel.tally.count(Mark::StaleEvent);
                }
                self.flush(id);
                self.drain_connection(id);
            }
            Source::Output(id, index) => self.drain_output(id, Stream::ALL[index]),
            Source::Input(id) => self.drain_input(id),
        }
        self.drain_actions();
    }

    pub fn drain_actions(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.perform(action);
        }
        self.commands.note_generation(&self.agent);
    }

    fn perform(&mut self, action: Action) {
        self.kernel.tally.count(mark_of(&action));
        let now = self.now;
        match action {
            Action::Flush(id) => self.flush(id),
            Action::Close(id) => self.close(id),
            Action::DrainAccept => {
                self.drain_accept();
                self.drain_local();
            }
            Action::RearmListener => {
                let result = self.rearm().map_err(str::to_owned);
                self.agent.handle_rearmed(result, now);
            }
            Action::Step { run, action } => {
                let outcome = self.perform_step(&action);
                let took = Duration::from_micros(7);
                self.agent.handle_step(run, outcome, took, now);
            }
            Action::CheckSources => {
                self.handle_signals();
                self.drain_accept();
                self.drain_local();
            }
            Action::Spawn { purpose, command } => self.spawn(purpose, &command),
            Action::ResumeOutput(id) => self.resume_output(id),
            Action::CountOutput(id) => {
                let pipes = self.stdio.get(&id).map(|it| it.pipes);
                let len = |pipe: Option<usize>| pipe.map_or(0, |it| self.kernel.pipes[it].len);
                let lens = pipes.map_or([0; 2], |[stdout, stderr, _]| [len(stdout), len(stderr)]);
                if let Some(record) = self.commands.records.get_mut(&id) {
                    let ends = [0, 1].map(|index| record.read[index] + lens[index] as u64);
                    record.left = Some((self.now, ends));
                }
                self.agent.handle_output_counted(id, lens);
            }
            Action::CloseOutput(id) => {
                self.close_output(id, Stream::Stdout);
                self.close_output(id, Stream::Stderr);
                if let Some(stdio) = self.stdio.get_mut(&id) {
                    stdio.is_held_open = false;
                    self.forget_closed(id);
                }
            }
            Action::FlushInput(id) => self.flush_input(id),
            Action::CloseInput(id) => self.close_input(id),
            Action::SignalGroup { group, number } => {
                self.commands.note_signal(&self.kernel, group);
                self.kernel.signal_group(group, number);
            }
            Action::SignalEveryone(signal) => self.kernel.signal(signal.number(), |_| true),
            Action::LookAtConsole => {
                let is_drained = !self.kernel.faults.console;
                self.agent.handle_console(is_drained, now);
            }
            Action::CollectFigures(id) => {
                let figures = Figures { fds: 5, rss_kib: 6 };
                self.agent.handle_figures(id, figures, now);
            }
            Action::ListHooks(_) => {
                let listing = self.list_hooks();
                self.agent.handle_hooks_listed(listing, now);
            }
            // The kernel here has no cgroups.
            Action::KillSession(_) | Action::ResizeTty { .. } | Action::WriteGeneration(_) => {}
            Action::AskMmds(question) => self.question = Some(question),
            Action::CloseMmds => self.question = None,
            Action::End(end) => self.end = Some(end),
        }
    }

    fn list_hooks(&mut self) -> Result<HookListing, String> {
        if self.kernel.faults.descriptors {
            return Err(NO_DESCRIPTORS.to_owned());
        }
        let count = self.kernel.random.below(3);
        let paths = [&b"/hooks/1"[..], b"/hooks/2"];
        Ok(HookListing {
            paths: paths[..count].iter().map(|path| path.to_vec()).collect(),
            has_restore: self.kernel.random.one_in(2),
        })
    }

    /// Registers the listener again, which reports connections that are there already.
    fn rearm(&mut self) -> Result<(), &'static str> {
        self.kernel.is_listening = false;
        self.kernel.events.remove(&Source::Listener);
        if self.kernel.faults.register {
            self.kernel.tally.count(Mark::RegisterFailed);
            return Err("no memory");
        }
        self.kernel.is_listening = true;
        if !self.kernel.queue.is_empty() {
            self.kernel.events.insert(Source::Listener);
        }
        Ok(())
    }

    fn perform_step(&mut self, action: &agent::agent::StepAction) -> agent::agent::StepOutcome {
        use agent::agent::{StepAction, StepFailure, StepOutcome};
        let index = match action {
            StepAction::CloseConnections(ids) => {
                ids.iter().for_each(|id| self.close(*id));
                0
            }
            StepAction::RearmListener => 1,
            StepAction::SetClock { .. } => 2,
            StepAction::Reseed { .. } => 3,
            StepAction::SetIdentity(_) => 4,
        };
        let is_failed = self.kernel.faults.steps[index] || (index == 1 && self.rearm().is_err());
        if is_failed {
            self.kernel.tally.count(Mark::StepFailed);
            let (errno, text) = (Some(12), "no memory".to_owned());
            return StepOutcome::Failed(StepFailure { errno, text });
        }
        self.rebind_count += u64::from(index == 1);
        match action {
            StepAction::SetClock { .. } => StepOutcome::ClockMoved { step_ns: 42 },
            StepAction::CloseConnections(_)
            | StepAction::RearmListener
            | StepAction::Reseed { .. }
            | StepAction::SetIdentity(_) => StepOutcome::Done,
        }
    }

    /// Children have ended, unless that is not told: with an error or without.
    fn handle_signals(&mut self) {
        if !self.kernel.faults.signals {
            return self.reap();
        }
        self.kernel.tally.count(Mark::SignalLost);
        let mut processes = self.kernel.processes.values();
        let is_known = processes.any(|it| it.purpose.is_some() && it.status.is_some());
        if !is_known || self.kernel.random.one_in(2) {
            self.agent.handle_source_failed(self.now);
        }
    }

    /// One event may stand for many children.
    fn reap(&mut self) {
        while let Some((pid, process)) = self.kernel.reap() {
            if process.purpose.is_none() {
                self.kernel.tally.count(Mark::Orphan);
            }
            let status = process.status.expect("a zombie");
            if let Some(Purpose::Session(id)) = process.purpose {
                let is_open = self.stdio.get(&id).is_some_and(|it| it.pipes[0].is_some());
                self.kernel.tally.count(match is_open {
                    true => Mark::ExitBeforeEof,
                    false => Mark::EofBeforeExit,
                });
                self.commands.note_exit(id, status);
            }
            let usage = ResourceUsage::default();
            let exit = Exit { status, usage };
            self.kernel.reaped = Some(pid);
            self.agent.handle_child_exit(pid, exit, self.now);
            self.drain_actions();
            self.kernel.reaped = None;
        }
        let are_left = !self.kernel.processes.is_empty();
        self.agent.handle_reaped_all(are_left, self.now);
    }

    /// Accepts until the queue is empty, or it is the turn of others.
    pub fn drain_accept(&mut self) {
        self.kernel.is_edge_lost = false;
        for _ in 0..PER_TURN_MAX {
            if self.kernel.faults.descriptors {
                // Without a free descriptor the kernel fails before it looks at the queue.
                if !std::mem::take(&mut self.has_spare) {
                    self.has_spare = self.kernel.random.one_in(2);
                    self.kernel.tally.count(Mark::AcceptFailed);
                    return self.agent.handle_accept_failed(self.now);
                }
                self.has_spare = !self.kernel.random.one_in(3);
                let Some(wire) = self.kernel.queue.pop_front() else {
                    return;
                };
                self.kernel.tally.count(Mark::ShedForDescriptors);
                self.kernel.close(wire);
                self.agent.handle_accept_shed();
                continue;
            }
            if self.kernel.faults.memory && !self.kernel.queue.is_empty() {
                self.kernel.tally.count(Mark::AcceptFailed);
                return self.agent.handle_accept_failed(self.now);
            }
            let Some(wire) = self.kernel.queue.pop_front() else {
                return;
            };
            let is_permitted = !self.kernel.wires[wire].is_foreign;
            if !is_permitted {
                self.kernel.tally.count(Mark::Foreign);
            }
            if self.kernel.wires[wire].far != Far::Open {
                self.kernel.tally.count(Mark::DeadInQueue);
            }
            let id = self.agent.handle_accepted(is_permitted, self.now);
            self.insert_connection(wire, id);
        }
        self.push_ready(Source::Listener);
    }

    fn drain_local(&mut self) {
        while let Some(&wire) = self.kernel.local_queue.front() {
            if self.kernel.faults.descriptors || self.kernel.faults.memory {
                self.kernel.tally.count(Mark::AcceptFailed);
                return self.agent.handle_accept_failed(self.now);
            }
            self.kernel.local_queue.pop_front();
            let id = self.agent.handle_local_accepted(self.now);
            self.insert_connection(wire, id);
        }
    }

    fn insert_connection(&mut self, wire: usize, id: Option<ConnectionId>) {
        let Some(id) = id else {
            return self.kernel.close(wire);
        };
        self.kernel.wires[wire].id = Some(id);
        self.kernel.wires[wire].accepted_under = self.rebind_count;
        self.connections.insert(id, (wire, true));
        self.sync_interest(id);
    }

    fn close(&mut self, id: ConnectionId) {
        if let Some((wire, _)) = self.connections.remove(&id) {
            self.kernel.close(wire);
        }
    }

    /// Reads until nothing is left, the core takes no more, or it is the turn of others.
    fn drain_connection(&mut self, id: ConnectionId) {
        for _ in 0..PER_TURN_MAX {
            let is_readable = self.agent.interest(id).is_some_and(|it| it.readable);
            let Some((wire, is_unread)) = self.connections.get_mut(&id) else {
                return;
            };
            *is_unread = true;
            if !is_readable {
                return self.sync_interest(id);
            }
            let now = self.now;
            let wire = &mut self.kernel.wires[*wire];
            match wire.far {
                Far::Reset => self.agent.handle_closed(id, Ended::ByReset, now),
                Far::Broken => self.agent.handle_closed(id, Ended::ByError, now),
                Far::Closed if wire.to_guest.is_empty() => {
                    self.agent.handle_closed(id, Ended::ByPeer, now);
                }
                Far::Open if wire.to_guest.is_empty() => {
                    *is_unread = false;
                    return self.sync_interest(id);
                }
                Far::Open | Far::Closed => {
                    let len = wire.to_guest.len();
                    let len_max = self.agent.read_len(id, READ_LEN);
                    let part = self.kernel.random.part(len).min(len_max);
                    if part < len {
                        self.kernel.tally.count(Mark::PartialRead);
                    }
                    let bytes: Vec<u8> = wire.to_guest.drain(..part).collect();
                    self.agent.handle_bytes(id, &bytes, now);
                }
            }
            self.drain_actions();
        }
        self.push_ready(Source::Connection(id));
    }

    /// Writes until nothing is left, or the socket is full.
    fn flush(&mut self, id: ConnectionId) {
        self.agent.handle_flush(id);
        while let Some(&(number, _)) = self.connections.get(&id) {
            let mut headers = Headers::default();
            let pending = self.agent.pending(id, &mut headers);
            if pending.is_empty() {
                break;
            }
            let now = self.now;
            let wire = &mut self.kernel.wires[number];
            match wire.far {
                Far::Reset => return self.agent.handle_closed(id, Ended::ByReset, now),
                Far::Broken => return self.agent.handle_closed(id, Ended::ByError, now),
                Far::Closed => return self.agent.handle_closed(id, Ended::ByPeer, now),
                Far::Open => {}
            }
            let room = wire.capacity.saturating_sub(wire.to_host.len());
            let most = pending.len().min(room);
            if most == 0 {
                self.kernel.tally.count(Mark::FullSocket);
                break;
            }
            let len = self.kernel.random.part(most);
            if len < pending.len() {
                self.kernel.tally.count(Mark::PartialWrite);
            }
            let mut rest = len;
            for piece in pending.as_slice() {
                let now = rest.min(piece.len());
                wire.to_host.extend_from_slice(&piece[..now]);
                rest -= now;
            }
            self.agent.handle_written(id, len, now);
        }
        self.sync_interest(id);
    }

    /// Registers the connection for what the core wants. A new registration reports readiness that
    /// is there already.
    fn sync_interest(&mut self, id: ConnectionId) {
        let (Some(&(number, is_unread)), Some(wanted)) =
            (self.connections.get(&id), self.agent.interest(id))
        else {
            return;
        };
        let wire = &mut self.kernel.wires[number];
        let wanted_pair = (wanted.readable, wanted.writable);
        let after = (wanted_pair != (false, false)).then_some(wanted_pair);
        if wire.registered != after {
            wire.registered = after;
            let is_readable = wanted.readable && !wire.to_guest.is_empty();
            let is_writable = wanted.writable && wire.to_host.len() < wire.capacity;
            let source = Source::Connection(id);
            if after.is_some() && (is_readable || is_writable || wire.far != Far::Open) {
                self.kernel.events.insert(source);
            } else if after.is_none() {
                self.kernel.events.remove(&source);
            }
        }
        if is_unread && wanted.readable {
            self.push_ready(Source::Connection(id));
        }
    }

    /// Notes that a source has more to read.
    pub fn push_ready(&mut self, source: Source) {
        if !self.ready.contains(&source) {
            self.ready.push_back(source);
        }
    }
}

/// The instance of the agent before which there were so many.
fn instance_of(life: usize) -> Instance {
    Instance::from_bytes([u8::try_from(life).expect("few"); 16])
}

/// The number of agents before this one.
#[must_use]
pub fn life_of(instance: Instance) -> usize {
    usize::from(instance.as_bytes()[0])
}

/// How an action is counted.
fn mark_of(action: &Action) -> Mark {
    match action {
        Action::Flush(_) => Mark::Flush,
        Action::Close(_) => Mark::Close,
        Action::DrainAccept => Mark::DrainAccept,
        Action::RearmListener => Mark::RearmListener,
        Action::Step { .. } => Mark::RebindStep,
        Action::Spawn { .. } => Mark::Spawn,
        Action::ResumeOutput(_) => Mark::ResumeOutput,
        Action::CountOutput(_) => Mark::CountOutput,
        Action::CloseOutput(_) => Mark::CloseOutput,
        Action::FlushInput(_) => Mark::FlushInput,
        Action::CloseInput(_) => Mark::CloseInput,
        Action::ResizeTty { .. } => Mark::ResizeTty,
        Action::SignalGroup { .. } => Mark::SignalGroup,
        Action::KillSession(_) => Mark::KillSession,
        Action::SignalEveryone(_) => Mark::SignalEveryone,
        Action::LookAtConsole => Mark::LookAtConsole,
        Action::CollectFigures(_) => Mark::CollectFigures,
        Action::ListHooks(_) => Mark::ListHooks,
        Action::WriteGeneration(_) => Mark::WriteGeneration,
        Action::CheckSources => Mark::CheckSources,
        Action::AskMmds(_) => Mark::AskMmds,
        Action::CloseMmds => Mark::CloseMmds,
        Action::End(_) => Mark::End,
    }
}
