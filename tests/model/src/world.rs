//! Hosts, guests and the transport between them: which steps are possible, and what each does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::agent::state::State;
use shared::id::Generation;
use shared::message::{Cause, FailCode};

use crate::guest::{Event, Guest, Turn};
use crate::host::{Failure, Host, Phase};
use crate::mutation::Mutation;
use crate::property::Property;
use crate::trace::Trace;
use crate::wire::{Ending, Stage, Wire, Wires, short};

/// Most generations of a run. Those of hosts are counted from 1.
const GENERATIONS_MAX: u8 = 100;

/// The ways in which a run continues after a snapshot.
const SNAPSHOTS: [(bool, Life); 4] = [
    (true, Life::Source),
    (false, Life::Source),
    (true, Life::Clone),
    (false, Life::Clone),
];

/// What may go wrong in one run, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Cuts, resets, lost edges, and hosts that die or restart, all together.
    pub faults: u8,
    /// Connections that take any time to arrive, overtaken by others.
    pub detours: u8,
    /// Deadlines that come although something else could still happen.
    pub delays: u8,
    /// Snapshots by another program.
    pub snapshots: u8,
    /// Agents that are started anew, and commands that end and whose results are forgotten.
    pub losses: u8,
}

impl Budget {
    /// The bound, for the table.
    pub fn describe(&self) -> String {
        let parts = [
            (self.faults, "faults"),
            (self.detours, "detours"),
            (self.delays, "delays"),
            (self.snapshots, "stolen snapshots"),
            (self.losses, "losses"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<_> = parts
            .map(|(count, what)| format!("{what} {count}"))
            .collect();
        if parts.is_empty() {
            "any order".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

/// What the hosts of a scenario do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Rebind a guest that has booted.
    Boot,
    /// Take a snapshot of it.
    Snapshot,
}

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A guest's loop runs a turn.
    Guest(usize, Event),
    /// A host reads what has come.
    Read(usize),
    /// A host connects and writes.
    Connect(usize, Way),
    /// A connection arrives at the guest.
    Arrive(u64),
    /// A host takes the snapshot that it has prepared. The flag: whether the guest sees a reset.
    Snapshot(usize, bool, Life),
    /// Time passes to the next deadline.
    Pass,
    /// A connection is cut at both ends.
    Cut(u64),
    /// The guest's end is reset, and the host does not notice.
    CutGuest(u64),
    /// The host's end is closed, and the guest does not notice.
    CutHost(u64),
    /// All connections of a guest are reset.
    Reset(usize),
    /// A host dies for good.
    Die(usize),
    /// A host dies, and another one takes its place.
    Restart(usize),
    /// Another program takes a snapshot.
    Steal(bool, Life),
    /// The agent of a guest is killed, and another one is started.
    RestartAgent(usize),
    /// A command of a guest ends, and its result is forgotten.
    Forget(usize),
}

/// Which machine a run follows after a snapshot. Source and clone share nothing, so each run
/// follows one of them, and all runs together follow both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Source,
    Clone,
}

/// How a connection arrives at the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// At once.
    Plain,
    /// At once, and its edge is lost.
    EdgeLost,
    /// Later.
    Detour,
}

#[derive(Clone, Debug, Hash)]
pub struct World {
    now: Instant,
    start: Instant,
    pub guests: Vec<Arc<Guest>>,
    pub hosts: Vec<Arc<Host>>,
    wires: Wires,
    wires_made: u64,
    generations: Vec<Generation>,
    budget: Budget,
    mutation: Option<Mutation>,
    /// The first property that was broken.
    pub broken: Option<Property>,
    pub trace: Trace,
}

impl World {
    /// A guest that has just booted, and a host for each role.
    pub fn new(
        roles: &[Role],
        budget: Budget,
        mutation: Option<Mutation>,
        start: Instant,
        trace: Trace,
    ) -> Self {
        let mut world = Self {
            now: start,
            start,
            guests: Vec::new(),
            hosts: Vec::new(),
            wires: Wires::default(),
            wires_made: 0,
            generations: Vec::new(),
            budget,
            mutation,
            broken: None,
            trace,
        };
        let guest = Guest::new(0, &mut world.turn());
        world.guests.push(Arc::new(guest));
        for role in roles {
            let generation = world.mint();
            let host = match role {
                Role::Boot => Host::rebinding(0, Cause::Boot, generation, start),
                Role::Snapshot => Host::snapshotting(0, generation, start),
            };
            // An agent that was started anew has no generation, and would refuse by that alone.
            world.hosts.push(Arc::new(match budget.losses {
                0 => host,
                _ => host.without_generation(),
            }));
        }
        world
    }

    fn turn(&mut self) -> Turn<'_> {
        Turn {
            wires: &mut self.wires,
            now: self.now,
            trace: &mut self.trace,
            mutation: self.mutation,
            broken: &mut self.broken,
        }
    }

    /// A new generation, unless a defect repeats one.
    fn mint(&mut self) -> Generation {
        let count = u8::try_from(self.generations.len()).unwrap_or(GENERATIONS_MAX);
        let seconds = self.now.duration_since(self.start).as_secs();
        let number = match self.mutation {
            Some(Mutation::EpochInSeconds) => u8::try_from(seconds + 1).unwrap_or(GENERATIONS_MAX),
            _ => count + 1,
        };
        let generation = Generation::from_bytes([number; 16]);
        if self.generations.contains(&generation) {
            self.trace.fault(
                0,
                &format!("a second guest is to be rebound to {}", short(generation)),
            );
            self.broken.get_or_insert(Property::OneGuestPerGeneration);
        }
        self.generations.push(generation);
        generation
    }

    /// What happens without time and faults. While such a step is possible, only a delay lets time
    /// pass.
    pub fn progress(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (number, guest) in self.guests.iter().enumerate() {
            let events = guest.events(&self.wires, self.now, self.mutation);
            steps.extend(events.into_iter().map(|event| Step::Guest(number, event)));
        }
        for (number, host) in self.hosts.iter().enumerate() {
            if host.wants_connection() {
                steps.push(Step::Connect(number, Way::Plain));
            } else if host.phase == Phase::Snapshot {
                for (reset, life) in SNAPSHOTS {
                    steps.push(Step::Snapshot(number, reset, life));
                }
            } else if host.reads() && self.has_news(host) {
                steps.push(Step::Read(number));
            }
        }
        let travelling = self.wires.iter();
        let travelling = travelling.filter(|(_, wire)| wire.stage == Stage::Travelling);
        steps.extend(travelling.map(|(id, _)| Step::Arrive(*id)));
        steps
    }

    /// Whether a host would read something.
    fn has_news(&self, host: &Host) -> bool {
        let wire = host.wire.and_then(|wire| self.wires.get(wire));
        wire.is_none_or(|wire| !wire.to_host.is_empty() || wire.is_closed_to_host)
    }

    /// All possible steps: progress, time, and faults.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = self.progress();
        let can_pass = self.next_deadline().is_some();
        if can_pass && (steps.is_empty() || self.budget.delays > 0) {
            steps.push(Step::Pass);
        }
        let is_over = self
            .hosts
            .iter()
            .all(|host| matches!(host.phase, Phase::Done | Phase::Failed(_) | Phase::Dead));
        // Faults after the end of all hosts do not matter.
        if is_over {
            return steps;
        }
        self.push_detours(&mut steps);
        self.push_faults(&mut steps);
        if self.budget.snapshots > 0 {
            steps.extend(SNAPSHOTS.map(|(reset, life)| Step::Steal(reset, life)));
        }
        if self.budget.losses > 0 {
            for (number, guest) in self.guests.iter().enumerate() {
                steps.push(Step::RestartAgent(number));
                steps.extend(guest.has_command().then_some(Step::Forget(number)));
            }
        }
        steps
    }

    fn push_detours(&self, steps: &mut Vec<Step>) {
        for (number, host) in self.hosts.iter().enumerate() {
            if host.wants_connection() && self.budget.detours > 0 {
                steps.push(Step::Connect(number, Way::Detour));
            }
        }
    }

    fn push_faults(&self, steps: &mut Vec<Step>) {
        if self.budget.faults == 0 {
            return;
        }
        for (number, host) in self.hosts.iter().enumerate() {
            if host.wants_connection() {
                steps.push(Step::Connect(number, Way::EdgeLost));
            }
            match host.phase {
                Phase::Done | Phase::Failed(_) | Phase::Dead => {}
                Phase::Quiesce | Phase::Snapshot => {
                    steps.extend([Step::Die(number), Step::Restart(number)]);
                }
                Phase::Rebind | Phase::Probe | Phase::Exec => steps.push(Step::Restart(number)),
            }
        }
        for (id, wire) in self.wires.iter() {
            let is_live = wire.ending == Ending::Open && !wire.is_closed_to_host;
            if is_live && wire.stage != Stage::Travelling {
                steps.extend([Step::Cut(*id), Step::CutGuest(*id), Step::CutHost(*id)]);
            }
        }
        for number in 0..self.guests.len() {
            let has_live = |wire: &Wire| {
                wire.guest == number && wire.ending == Ending::Open && wire.stage != Stage::Gone
            };
            if self.wires.iter().filter(|(_, wire)| has_live(wire)).count() > 1 {
                steps.push(Step::Reset(number));
            }
        }
    }

    /// The earliest deadline that is not over.
    fn next_deadline(&self) -> Option<Instant> {
        let hosts = self.hosts.iter().filter_map(|host| host.timeout());
        let guests = self.guests.iter();
        let guests = guests.filter_map(|guest| guest.timeout(self.mutation));
        hosts.chain(guests).filter(|at| *at > self.now).min()
    }

    pub fn apply(&mut self, step: Step) {
        match step {
            Step::Guest(number, event) => self.wake(number, event),
            Step::Read(number) => self.read(number),
            Step::Connect(number, way) => self.connect(number, way),
            Step::Arrive(wire) => self.arrive(wire, false),
            Step::Snapshot(number, reset, life) => {
                self.trace
                    .host_note(number, || "takes the snapshot".to_owned());
                self.live_on(reset, life);
                if life == Life::Source {
                    Arc::make_mut(&mut self.hosts[number]).begin_rebind(self.now);
                }
            }
            Step::Pass => self.pass(),
            Step::Cut(id) => self.fault(id, "cut", true, true),
            Step::CutGuest(id) => self.fault(id, "reset for the guest alone", true, false),
            Step::CutHost(id) => self.fault(id, "lost for the host alone", false, true),
            Step::Reset(number) => {
                self.budget.faults -= 1;
                self.reset(number, true);
            }
            Step::Die(number) | Step::Restart(number) => self.end_host(number, step),
            Step::RestartAgent(number) | Step::Forget(number) => {
                self.budget.losses -= 1;
                let mut guests = std::mem::take(&mut self.guests);
                let guest = Arc::make_mut(&mut guests[number]);
                match step {
                    Step::Forget(_) => guest.end_command(&mut self.turn()),
                    _ => guest.restart(&mut self.turn()),
                }
                self.guests = guests;
            }
            Step::Steal(reset, life) => {
                self.budget.snapshots -= 1;
                self.trace.fault(0, "another program takes a snapshot");
                self.live_on(reset, life);
            }
        }
        self.tidy();
    }

    fn wake(&mut self, number: usize, event: Event) {
        if event == Event::Timer {
            self.trace.note(number, "a deadline has come");
        }
        if let Event::Wire(id) = event
            && let Some(wire) = self.wires.get(id)
            && wire.ending == Ending::Reset
        {
            self.trace.note(number, "sees a reset");
        }
        let mut guests = std::mem::take(&mut self.guests);
        if let Some(guest) = guests.get_mut(number) {
            Arc::make_mut(guest).wake(event, &mut self.turn());
        }
        self.guests = guests;
    }

    fn read(&mut self, number: usize) {
        let host = Arc::make_mut(&mut self.hosts[number]);
        let wire = host.wire.and_then(|wire| self.wires.get_mut(wire));
        let bytes = wire.map(|wire| std::mem::take(&mut wire.to_host));
        let before = host.phase;
        match bytes {
            Some(bytes) if !bytes.is_empty() => {
                host.handle_bytes(&bytes, self.now, self.mutation);
            }
            Some(_) | None if self.mutation == Some(Mutation::CloseIsVerdict) => host.give_up(),
            Some(_) | None => {
                host.wire = None;
                host.handle_closed(self.now);
            }
        }
        if self.mutation == Some(Mutation::ReadyBeforeProbe)
            && (before, host.phase) == (Phase::Rebind, Phase::Probe)
        {
            host.skip_probe(self.now);
        }
        self.write(number);
        self.note_phase(number, before);
    }

    /// A host writes to its open connection.
    fn write(&mut self, number: usize) {
        let host = Arc::make_mut(&mut self.hosts[number]);
        let bytes = std::mem::take(&mut host.unsent);
        let wire = host.wire.and_then(|wire| self.wires.get_mut(wire));
        let Some(wire) = wire.filter(|_| !bytes.is_empty()) else {
            return;
        };
        self.trace.host_to_guest(number, host.guest, &bytes);
        if wire.ending == Ending::Open && wire.stage != Stage::Gone {
            wire.to_guest.extend_from_slice(&bytes);
            wire.has_event |= matches!(wire.stage, Stage::Accepted(_));
        }
    }

    fn note_phase(&mut self, number: usize, before: Phase) {
        let host = &self.hosts[number];
        if host.phase == before {
            return;
        }
        self.trace.host_note(number, || host.describe());
        if host.phase == Phase::Exec && !self.guests[host.guest].is_proven(host.generation) {
            self.broken.get_or_insert(Property::ReadyAfterProbe);
        }
    }

    fn connect(&mut self, number: usize, way: Way) {
        let host = Arc::make_mut(&mut self.hosts[number]);
        let guest = host.guest;
        if let Some(old) = host.wire.take()
            && let Some(wire) = self.wires.get_mut(old)
        {
            wire.close_by_host();
        }
        let flight = host.flight(self.now, self.mutation);
        self.trace.host_to_guest(number, guest, &flight);
        self.wires_made += 1;
        let id = self.wires_made;
        host.wire = Some(id);
        self.wires.insert(id, Wire::new(guest, number, flight));
        match way {
            Way::Plain => self.arrive(id, false),
            Way::EdgeLost => {
                self.budget.faults -= 1;
                self.trace.fault(guest, "the edge is lost");
                self.arrive(id, true);
            }
            Way::Detour => {
                self.budget.detours -= 1;
                self.trace.fault(guest, "the connection takes its time");
            }
        }
    }

    fn arrive(&mut self, id: u64, is_edge_lost: bool) {
        if let Some(wire) = self.wires.get_mut(id) {
            wire.stage = Stage::Queued;
            wire.is_edge_lost = is_edge_lost;
            Arc::make_mut(&mut self.guests[wire.guest]).arrive(id, is_edge_lost);
        }
    }

    fn pass(&mut self) {
        if !self.progress().is_empty() {
            self.budget.delays -= 1;
        }
        let Some(at) = self.next_deadline() else {
            return;
        };
        self.now = at;
        for number in 0..self.hosts.len() {
            let before = self.hosts[number].phase;
            if self.hosts[number].timeout().is_none_or(|due| due > at) {
                continue;
            }
            self.trace
                .host_note(number, || "has waited long enough".to_owned());
            Arc::make_mut(&mut self.hosts[number]).handle_timeout(at);
            self.note_phase(number, before);
        }
    }

    fn fault(&mut self, id: u64, text: &str, for_guest: bool, for_host: bool) {
        self.budget.faults -= 1;
        let Some(wire) = self.wires.get_mut(id) else {
            return;
        };
        self.trace
            .fault(wire.guest, &format!("a connection is {text}"));
        if for_guest {
            wire.reset_for_guest();
        } else {
            wire.ending = Ending::Dead;
        }
        if for_host {
            wire.cut_for_host();
        } else {
            wire.to_host.clear();
        }
    }

    fn reset(&mut self, number: usize, is_host_told: bool) {
        self.trace.fault(number, "the transport is reset");
        for id in self.wires.of_guest(number) {
            if let Some(wire) = self.wires.get_mut(id) {
                wire.reset_for_guest();
                if is_host_told {
                    wire.cut_for_host();
                }
            }
        }
    }

    fn end_host(&mut self, number: usize, step: Step) {
        self.budget.faults -= 1;
        let guest = self.hosts[number].guest;
        self.trace.host_note(number, || "is killed".to_owned());
        Arc::make_mut(&mut self.hosts[number]).die();
        if matches!(step, Step::Restart(_)) {
            let generation = self.mint();
            self.add_host(guest, Cause::Resume, generation);
        }
    }

    fn add_host(&mut self, guest: usize, cause: Cause, generation: Generation) {
        let host = Host::rebinding(guest, cause, generation, self.now);
        self.hosts.push(Arc::new(host));
        let number = self.hosts.len() - 1;
        let generation = short(generation);
        self.trace.host_note(number, || {
            format!("starts to rebind G{guest} to {generation}")
        });
    }

    /// A snapshot was taken: the run follows the source, or the clone with a host of its own.
    fn live_on(&mut self, is_reset_seen: bool, life: Life) {
        let generation = self.mint();
        if is_reset_seen {
            // The reset is queued during the snapshot, so both see it.
            self.reset(0, false);
        }
        if life == Life::Source {
            return;
        }
        self.trace
            .fault(0, "this is the clone: the source is elsewhere");
        self.wires.be_of_clone(is_reset_seen);
        for host in &mut self.hosts {
            Arc::make_mut(host).die();
        }
        self.add_host(0, Cause::Restore, generation);
    }

    /// Closes the connections that hosts have dropped, and removes those that are over.
    fn tidy(&mut self) {
        for host in &mut self.hosts {
            if host.wire.is_none() || host.keeps_connection() {
                continue;
            }
            if let Some(id) = Arc::make_mut(host).wire.take()
                && let Some(wire) = self.wires.get_mut(id)
            {
                wire.close_by_host();
            }
        }
        self.wires.forget_over();
    }

    /// Whether only faults can happen.
    pub fn is_at_rest(&self) -> bool {
        self.progress().is_empty() && self.next_deadline().is_none()
    }

    /// Checks what must hold at rest.
    pub fn check_rest(&self) -> Option<Property> {
        for host in &self.hosts {
            let guest = &self.guests[host.guest];
            let asked = guest.last_asked();
            let is_replaced = asked.is_some_and(|last| last != host.generation);
            let is_fine = match host.phase {
                Phase::Done | Phase::Dead => true,
                Phase::Failed(Failure::Refused(code)) => match code {
                    FailCode::Superseded => is_replaced,
                    FailCode::Stale => is_replaced || guest.has_losses(),
                    FailCode::Unknown => guest.has_losses(),
                    _ => false,
                },
                Phase::Failed(Failure::Other)
                | Phase::Quiesce
                | Phase::Snapshot
                | Phase::Rebind
                | Phase::Probe
                | Phase::Exec => false,
            };
            if !is_fine {
                return Some(Property::ReadyOrNamedFailure);
            }
        }
        let refuses = |guest: &Arc<Guest>| match guest.agent.state() {
            State::Running | State::Rebound(_) => false,
            State::Quiescing
            | State::Quiesced
            | State::Rebinding(_)
            | State::Failed(_)
            | State::Ending => true,
        };
        self.guests
            .iter()
            .any(refuses)
            .then_some(Property::NotLeftRefusing)
    }

    /// How much of its own time the run has taken.
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }
}
