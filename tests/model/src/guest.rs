//! A guest: [`Agent`] as it ships, with a shell and a kernel around it that do what the real ones
//! do, in the order of the real event loop. What the properties need is noted from the bytes and
//! actions that pass, not asked of the agent.

use std::time::{Duration, Instant};

use agent::agent::state::State;
use agent::agent::{
    Action, Agent, ConnectionId, Ended, Exit, Headers, Purpose, SessionId, Settings, StepAction,
    StepOutcome, Stream,
};
use shared::id::{Generation, Instance};
use shared::message::{
    Cause, ExitStatus, Hello, Identity, InheritedSessions, Message, Rebind, ResourceUsage, Role,
};

use crate::mutation::Mutation;
use crate::property::Property;
use crate::trace::Trace;
use crate::wire::{Ending, Stage, Wire, Wires, messages, short};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Listener,
    /// An event of a connection, by its number.
    Wire(u64),
    /// A child has ended.
    Child(i32),
    /// A deadline of the agent is over.
    Timer,
    /// The defect acts by itself.
    Defect,
}

/// What one turn needs of the world.
#[derive(Debug)]
pub struct Turn<'a> {
    pub wires: &'a mut Wires,
    pub now: Instant,
    pub trace: &'a mut Trace,
    pub mutation: Option<Mutation>,
    /// The first property that was broken.
    pub broken: &'a mut Option<Property>,
}

#[derive(Clone, Debug, Hash)]
pub struct Guest {
    number: usize,
    pub agent: Agent,
    /// Numbers of connections, in the order of arrival.
    queue: Vec<u64>,
    has_edge: bool,
    /// Children that have ended and are not reaped.
    exited: Vec<i32>,
    next_pid: i32,
    /// Generations that hosts have asked for, in the order of their first request.
    asked: Vec<Generation>,
    /// Generations that a rebind was performed for.
    acted: Vec<Generation>,
    /// The generation that the listener was last registered for.
    rearmed: Option<Generation>,
    /// The same, once the accept queue was empty after that.
    drained: Option<Generation>,
    /// Generations with an answered probe on a connection that was accepted after that.
    proven: Vec<Generation>,
    /// Ids of the commands that were started.
    executed: Vec<Vec<u8>>,
    /// Sessions of commands that have not ended, and their processes.
    running: Vec<(SessionId, i32)>,
    /// How often an agent or a result was lost.
    losses: u8,
    /// What a defect still has to do.
    held: Option<(ConnectionId, Vec<u8>)>,
    rearms_left: u8,
}

impl Guest {
    pub fn new(number: usize, turn: &mut Turn<'_>) -> Self {
        let mut guest = Self {
            number,
            agent: Self::agent(1, turn.now),
            queue: Vec::new(),
            has_edge: false,
            exited: Vec::new(),
            next_pid: 100,
            asked: Vec::new(),
            acted: Vec::new(),
            rearmed: None,
            drained: None,
            proven: Vec::new(),
            executed: Vec::new(),
            running: Vec::new(),
            losses: 0,
            held: None,
            rearms_left: 0,
        };
        guest.drain_actions(turn);
        guest
    }

    fn agent(instance: u8, now: Instant) -> Agent {
        let settings = Settings {
            // A result is forgotten as soon as no client is attached to it.
            results_max: 0,
            ..Settings::new(Instance::from_bytes([instance; 16]))
        };
        Agent::new(settings, now)
    }

    /// The agent is killed, and another one is started, which does not know the commands of the
    /// first.
    pub fn restart(&mut self, turn: &mut Turn<'_>) {
        turn.trace.fault(self.number, "the agent is started anew");
        self.losses += 1;
        for id in turn.wires.of_guest(self.number) {
            if let Some(wire) = turn.wires.get_mut(id)
                && matches!(wire.stage, Stage::Queued | Stage::Accepted(_))
            {
                wire.stage = Stage::Gone;
                wire.has_event = false;
                wire.is_closed_to_host = true;
            }
        }
        *self = Self {
            agent: Self::agent(1 + self.losses, turn.now),
            queue: Vec::new(),
            has_edge: false,
            exited: Vec::new(),
            acted: Vec::new(),
            rearmed: None,
            drained: None,
            running: Vec::new(),
            held: None,
            rearms_left: 0,
            ..self.clone()
        };
        self.drain_actions(turn);
    }

    pub fn has_command(&self) -> bool {
        !self.running.is_empty()
    }

    /// A command ends. Its result is forgotten once no client is attached.
    pub fn end_command(&mut self, turn: &mut Turn<'_>) {
        let (session, pid) = self.running.remove(0);
        turn.trace.note(self.number, "the command has ended");
        self.losses += 1;
        for &stream in Stream::ALL {
            self.agent.handle_output_closed(session, stream, turn.now);
        }
        self.exited.push(pid);
    }

    /// Whether an agent or a result was lost, so that a guest may not know what has run.
    pub fn has_losses(&self) -> bool {
        self.losses > 0
    }

    /// A connection enters the accept queue.
    pub fn arrive(&mut self, wire: u64, is_edge_lost: bool) {
        self.queue.push(wire);
        self.has_edge |= !is_edge_lost;
    }

    pub fn is_proven(&self, generation: Generation) -> bool {
        self.proven.contains(&generation)
    }

    /// The last new generation that a host has asked for.
    pub fn last_asked(&self) -> Option<Generation> {
        self.asked.last().copied()
    }

    /// When the agent wakes by itself. No end of a child is lost here, and a command does not end,
    /// so looks at sources would find nothing for ever.
    pub fn timeout(&self, mutation: Option<Mutation>) -> Option<Instant> {
        let at = self.agent.poll_timeout_but_checks();
        at.filter(|_| mutation != Some(Mutation::NoLimits))
    }

    pub fn events(&self, wires: &Wires, now: Instant, mutation: Option<Mutation>) -> Vec<Event> {
        let mut events = Vec::new();
        if self.has_edge {
            events.push(Event::Listener);
        }
        let mine = wires.iter().filter(|(_, wire)| wire.guest == self.number);
        events.extend(
            mine.filter(|(_, wire)| wire.has_event)
                .map(|(id, _)| Event::Wire(*id)),
        );
        events.extend(self.exited.iter().map(|pid| Event::Child(*pid)));
        if self.timeout(mutation).is_some_and(|at| at <= now) {
            events.push(Event::Timer);
        }
        if self.held.is_some() || self.rearms_left > 0 {
            events.push(Event::Defect);
        }
        events
    }

    /// One turn of the event loop.
    pub fn wake(&mut self, event: Event, turn: &mut Turn<'_>) {
        match event {
            Event::Listener => {
                self.has_edge = false;
                self.drain_accept(turn);
            }
            Event::Wire(wire) => self.handle_wire(wire, turn),
            Event::Child(pid) => {
                self.exited.retain(|other| *other != pid);
                let exit = Exit {
                    status: ExitStatus::Code(0),
                    usage: ResourceUsage::default(),
                };
                self.agent.handle_child_exit(pid, exit, turn.now);
            }
            Event::Timer => {}
            Event::Defect => self.play_defect(turn),
        }
        self.drain_actions(turn);
        if turn.mutation != Some(Mutation::AcceptOnePerEdge)
            && turn.mutation != Some(Mutation::NoRearm)
            && event != Event::Defect
        {
            self.drain_accept(turn);
        }
        if !matches!(
            turn.mutation,
            Some(Mutation::NoLimits | Mutation::TimersUnheard)
        ) {
            self.agent.handle_timeout(turn.now);
        }
        self.drain_actions(turn);
        self.check(turn);
    }

    fn drain_actions(&mut self, turn: &mut Turn<'_>) {
        while let Some(action) = self.agent.poll_action() {
            self.perform(action, turn);
        }
    }

    fn perform(&mut self, action: Action, turn: &mut Turn<'_>) {
        match action {
            Action::Flush(id) => self.flush(id, turn),
            Action::Close(id) => self.close(id, turn),
            Action::DrainAccept => self.drain_accept(turn),
            Action::RearmListener => {
                self.register();
                self.agent.handle_rearmed(Ok(()), turn.now);
            }
            Action::Step { run, action } => {
                let outcome = self.perform_step(action, turn);
                self.agent
                    .handle_step(run, outcome, Duration::ZERO, turn.now);
            }
            Action::Spawn { purpose, command } => {
                let pid = self.next_pid;
                self.next_pid += 1;
                match purpose {
                    Purpose::Probe(_) => self.exited.push(pid),
                    Purpose::Session(id) => {
                        self.running.push((id, pid));
                        self.check_exec(&command.argv, turn);
                    }
                }
                self.agent.handle_spawned(purpose, Ok(pid), turn.now);
            }
            Action::LookAtConsole => self.agent.handle_console(true, turn.now),
            Action::CollectFigures(_)
            | Action::ResumeOutput(_)
            | Action::CountOutput(_)
            | Action::CloseOutput(_)
            | Action::FlushInput(_)
            | Action::CloseInput(_)
            | Action::ResizeTty { .. }
            | Action::SignalGroup { .. }
            | Action::KillSession(_)
            | Action::SignalEveryone(_)
            | Action::ListHooks(_)
            | Action::WriteGeneration(_)
            | Action::CheckSources
            | Action::AskMmds(_)
            | Action::CloseMmds
            | Action::End(_) => {}
        }
    }

    fn perform_step(&mut self, action: StepAction, turn: &mut Turn<'_>) -> StepOutcome {
        match action {
            StepAction::CloseConnections(ids) => {
                if let State::Rebinding(generation) = self.agent.state() {
                    if self.acted.contains(&generation) {
                        turn.broken.get_or_insert(Property::OneOutcomePerGeneration);
                    }
                    self.acted.push(generation);
                }
                for id in ids {
                    self.close(id, turn);
                }
                StepOutcome::Done
            }
            StepAction::RearmListener => {
                if turn.mutation != Some(Mutation::NoRearm) {
                    self.register();
                    if let State::Rebinding(generation) = self.agent.state() {
                        self.rearmed = Some(generation);
                    }
                }
                if turn.mutation == Some(Mutation::SecondRearm) {
                    self.rearms_left = 1;
                }
                StepOutcome::Done
            }
            StepAction::SetClock { .. } => StepOutcome::ClockMoved { step_ns: 0 },
            StepAction::Reseed { .. } | StepAction::SetIdentity(_) => StepOutcome::Done,
        }
    }

    /// Registers the listener again, which reports connections that are there already.
    fn register(&mut self) {
        self.has_edge = !self.queue.is_empty();
    }

    fn drain_accept(&mut self, turn: &mut Turn<'_>) {
        let most = match turn.mutation {
            Some(Mutation::AcceptOnePerEdge) => 1,
            _ => usize::MAX,
        };
        for _ in 0..most.min(self.queue.len()) {
            let number = self.queue.remove(0);
            let id = self.agent.handle_accepted(true, turn.now);
            let Some(wire) = turn.wires.get_mut(number) else {
                continue;
            };
            match id {
                Some(id) => {
                    wire.stage = Stage::Accepted(id);
                    wire.accepted_for = self.rearmed;
                    // Its first bytes are read in the next turn, without an edge.
                    wire.has_event = wire.ending != Ending::Dead || !wire.to_guest.is_empty();
                }
                None => wire.stage = Stage::Gone,
            }
        }
        if self.queue.is_empty() {
            self.has_edge = false;
            self.drained = self.rearmed;
        }
    }

    fn wire_of(id: ConnectionId, number: usize, wires: &mut Wires) -> Option<&mut Wire> {
        let is_it = |wire: &Wire| wire.guest == number && wire.stage == Stage::Accepted(id);
        let found = wires.iter().find(|(_, wire)| is_it(wire));
        let id = found.map(|(id, _)| *id)?;
        wires.get_mut(id)
    }

    /// Every event writes first, and then reads until nothing is left.
    fn handle_wire(&mut self, number: u64, turn: &mut Turn<'_>) {
        let Some(wire) = turn.wires.get_mut(number) else {
            return;
        };
        wire.has_event = false;
        let (Stage::Accepted(id), ending) = (wire.stage, wire.ending) else {
            return;
        };
        if ending == Ending::Reset && turn.mutation == Some(Mutation::ErrorEventIgnored) {
            return;
        }
        self.flush(id, turn);
        // A connection that is closed after its last answer is not read any more.
        let is_read = self
            .agent
            .interest(id)
            .is_some_and(|wanted| wanted.readable);
        let bytes = match turn.wires.get_mut(number) {
            Some(wire) if is_read => std::mem::take(&mut wire.to_guest),
            Some(_) | None => return,
        };
        if !bytes.is_empty() {
            self.read(id, bytes, turn);
            self.drain_actions(turn);
        }
        let ended = match ending {
            Ending::Open | Ending::Dead => return,
            Ending::Closed => Ended::ByPeer,
            Ending::Reset => Ended::ByReset,
        };
        self.agent.handle_closed(id, ended, turn.now);
        self.drain_actions(turn);
        if ended == Ended::ByReset && turn.mutation == Some(Mutation::ResetIsVerdict) {
            self.rebind_itself(turn);
        }
    }

    fn read(&mut self, id: ConnectionId, bytes: Vec<u8>, turn: &mut Turn<'_>) {
        let mut is_new = false;
        for message in messages(&bytes, Role::Host) {
            if let Message::Rebind(rebind) = message
                && !self.asked.contains(&rebind.generation)
            {
                self.asked.push(rebind.generation);
                is_new = true;
            }
        }
        if is_new && turn.mutation == Some(Mutation::RecordedLate) {
            self.act_before_recording(id, turn);
            self.held = Some((id, bytes));
        } else {
            self.agent.handle_bytes(id, &bytes, turn.now);
        }
    }

    fn flush(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        self.agent.handle_flush(id);
        let mut headers = Headers::default();
        let pending = self.agent.pending(id, &mut headers);
        let pending = pending.as_slice().concat();
        let number = self.number;
        let Some(wire) = Self::wire_of(id, number, turn.wires) else {
            return;
        };
        if pending.is_empty() {
            return;
        }
        match wire.ending {
            Ending::Reset => return self.agent.handle_closed(id, Ended::ByReset, turn.now),
            Ending::Closed => return self.agent.handle_closed(id, Ended::ByPeer, turn.now),
            Ending::Open | Ending::Dead => {}
        }
        let (host, accepted_for) = (wire.host, wire.accepted_for);
        if let Some(host) = host
            && !wire.is_closed_to_host
        {
            wire.to_host.extend_from_slice(&pending);
            turn.trace.guest_to_host(number, host, &pending);
        }
        self.check_answers(&pending, accepted_for, turn);
        self.agent.handle_written(id, pending.len(), turn.now);
    }

    fn close(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        if let Some(wire) = Self::wire_of(id, self.number, turn.wires) {
            wire.stage = Stage::Gone;
            wire.has_event = false;
            wire.is_closed_to_host = true;
        }
    }

    /// Checks what the guest writes.
    fn check_answers(
        &mut self,
        bytes: &[u8],
        accepted_for: Option<Generation>,
        turn: &mut Turn<'_>,
    ) {
        for message in messages(bytes, Role::Guest) {
            match message {
                Message::Rebound(rebound) if self.drained != Some(rebound.generation) => {
                    turn.broken.get_or_insert(Property::ReboundAfterDrain);
                }
                Message::Probed(probed) => {
                    if let Some(generation) = probed.generation
                        && accepted_for == Some(generation)
                    {
                        self.proven.push(generation);
                    }
                }
                _ => {}
            }
        }
    }

    fn check_exec(&mut self, argv: &[Vec<u8>], turn: &mut Turn<'_>) {
        let current = self.last_asked().map(|generation| generation.to_string());
        turn.trace.note(self.number, "runs the command");
        if argv.first().map(Vec::as_slice) != current.as_deref().map(str::as_bytes) {
            turn.broken.get_or_insert(Property::NoExecOfStaleGeneration);
        }
        let id = argv.get(1).cloned().unwrap_or_default();
        if self.executed.contains(&id) {
            turn.broken.get_or_insert(Property::NoExecTwice);
        }
        self.executed.push(id);
    }

    /// Checks what must hold after each turn.
    fn check(&self, turn: &mut Turn<'_>) {
        if let Some(own) = self.agent.generation()
            && self.last_asked() != Some(own)
        {
            turn.broken
                .get_or_insert(Property::GenerationsComeFromHosts);
        }
        let lost = |wire: &u64| turn.wires.get(*wire).is_some_and(|it| it.is_edge_lost);
        if !self.has_edge && !self.queue.iter().all(lost) {
            turn.broken.get_or_insert(Property::NoConnectionLeftWaiting);
        }
        let forgotten = |wire: &Wire| {
            wire.guest == self.number
                && matches!(wire.stage, Stage::Accepted(_))
                && wire.ending == Ending::Reset
                && !wire.has_event
        };
        if turn.wires.iter().any(|(_, wire)| forgotten(wire)) {
            turn.broken
                .get_or_insert(Property::DeadConnectionsAreClosed);
        }
    }

    /// Plays [`Mutation::SecondRearm`] and [`Mutation::RecordedLate`] in a later turn.
    fn play_defect(&mut self, turn: &mut Turn<'_>) {
        if let Some((id, bytes)) = self.held.take() {
            turn.trace.note(self.number, "records the generation");
            self.agent.handle_bytes(id, &bytes, turn.now);
        } else {
            turn.trace
                .note(self.number, "registers the listener a second time");
            self.rearms_left = 0;
            self.has_edge = false;
        }
    }

    /// [`Mutation::RecordedLate`]: performs the steps of a rebind before the agent learns of it.
    fn act_before_recording(&mut self, asker: ConnectionId, turn: &mut Turn<'_>) {
        turn.trace
            .note(self.number, "closes connections and registers the listener");
        let mine = turn.wires.iter();
        let mine = mine.map(|(_, wire)| wire);
        let mine = mine.filter(|wire| wire.guest == self.number);
        let others: Vec<_> = mine
            .filter_map(|wire| match wire.stage {
                Stage::Accepted(id) if id != asker => Some(id),
                Stage::Accepted(_) | Stage::Travelling | Stage::Queued | Stage::Gone => None,
            })
            .collect();
        for id in others {
            self.agent.handle_closed(id, Ended::ByPeer, turn.now);
        }
        self.register();
        self.drain_accept(turn);
    }

    /// [`Mutation::ResetIsVerdict`]: the guest takes the reset for a restore.
    fn rebind_itself(&mut self, turn: &mut Turn<'_>) {
        let generation = Generation::from_bytes([200; 16]);
        let Some(id) = self.agent.handle_accepted(true, turn.now) else {
            return;
        };
        turn.trace.note(
            self.number,
            &format!("rebinds itself to {}", short(generation)),
        );
        let rebind = Rebind {
            generation,
            cause: Cause::Resume,
            parent: None,
            wall_clock_ns: 1_767_225_600 * 1_000_000_000,
            entropy: None,
            identity: Identity::default(),
            sessions: InheritedSessions::Keep,
            attempt: 1,
        };
        let mut bytes = Message::Hello(Hello::host("itself")).encode();
        Message::Rebind(rebind).encode_into(&mut bytes);
        self.agent.handle_bytes(id, &bytes, turn.now);
        self.drain_actions(turn);
    }
}
