//! A schedule: what happens to one guest, step by step, from a seed.
//!
//! Each step is one action of a client, a child or the kernel, and then one turn of the event loop,
//! after which every invariant is checked. At the end all faults stop, and the guest has to
//! recover: a host rebinds and probes it, every client comes to an end, and nothing is left.
//!
//! Bytes can take the place of the seed, for a fuzzer to choose.

use std::time::{Duration, Instant};

use agent::agent::state::State;
use agent::agent::{ConnectionId, Ended, Exit, Purpose, SessionId, Signal, Stream};
use shared::exchange::Request;
use shared::message::{
    AttachMode, Cause, Depth, ExitStatus, InheritedSessions, Message, ResourceUsage, SessionRef,
};

use crate::client::{ExchangeDriver, SessionDriver};
use crate::guest::Guest;
use crate::kernel::Far;
use crate::pattern::INPUT;
use crate::random::Random;
use crate::raw::RawClient;
use crate::requests;
use crate::tally::{Mark, Tally};

/// Most clients at once.
const CLIENTS_MAX: usize = 6;

/// The EXEC numbers of session clients start here; each has its own.
const EXEC_FIRST: u8 = 100;

/// Turns, and the time between them: longer in all than a guest without clients may refuse work.
const SILENCE: (u32, Duration) = (8, Duration::from_secs(16));

/// Turns in which a guest must recover.
const TURNS_MAX: usize = 4_000;

#[derive(Debug)]
enum Client {
    Session(Box<SessionDriver>),
    Exchange(Box<ExchangeDriver>),
    Raw(Box<RawClient>),
}

/// A guest and its clients.
#[derive(Debug)]
pub struct World {
    guest: Guest,
    clients: Vec<Client>,
    exec_count: u8,
    /// What happened, if it is recorded.
    trace: Option<Vec<String>>,
}

/// How many steps the schedule of a seed has: half of them up to 24, and one in two hundred some
/// hundreds.
#[must_use]
pub fn length(seed: u64) -> u32 {
    let mut random = Random::new(seed, u32::MAX);
    let (least, most) = match random.below(200) {
        0 => (200, 800),
        1..=19 => (60, 200),
        20..=99 => (24, 60),
        _ => (8, 24),
    };
    let length = least + random.below(most - least);
    u32::try_from(length).expect("some hundreds")
}

/// Plays these steps of a schedule. Panics when an invariant does not hold.
pub fn play(
    seed: u64,
    steps: impl IntoIterator<Item = u32>,
    trace: Option<&mut Vec<String>>,
) -> Tally {
    let mut world = World::new(Random::new(seed, u32::MAX - 2), trace.is_some());
    let mut recorded = trace;
    for step in steps {
        world.guest.kernel.random = Random::new(seed, step);
        world.step(step);
        world.turn_after(Duration::ZERO);
        if let (Some(recorded), Some(trace)) = (recorded.as_deref_mut(), &mut world.trace) {
            recorded.append(trace);
        }
        if world.guest.end.is_some() {
            world.guest.kernel.tally.count(Mark::Ended);
            return world.guest.kernel.tally;
        }
    }
    if let Some(recorded) = recorded {
        recorded.push("all faults stop".to_owned());
    }
    world.guest.kernel.random = Random::new(seed, u32::MAX - 1);
    world.converge();
    world.guest.kernel.tally
}

/// Plays what bytes decide. A step takes at least one of them, so they limit its length. Panics
/// when an invariant does not hold.
pub fn play_bytes(bytes: &[u8]) {
    let mut world = World::new(Random::scripted(bytes), false);
    let mut number = 0;
    while world.guest.kernel.random.is_scripted() {
        world.step(number);
        world.turn_after(Duration::ZERO);
        if world.guest.end.is_some() {
            return;
        }
        number += 1;
    }
    world.converge();
}

impl World {
    fn new(random: Random, is_recorded: bool) -> Self {
        let mut world = Self {
            guest: Guest::new(random, epoch()),
            clients: Vec::new(),
            exec_count: 0,
            trace: is_recorded.then(Vec::new),
        };
        // Every schedule has a client from its first step on.
        world.come();
        world
    }

    fn record(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    /// Performs one step.
    fn step(&mut self, number: u32) {
        let before = self.guest.agent.state();
        let what = match self.guest.kernel.random.below(40) {
            0..=3 => self.come(),
            4..=19 => self.talk(),
            20..=31 => self.child(),
            32..=34 => self.cut(),
            35 => self.misfortune(),
            36 => self.stray(),
            37 => self.jump(),
            _ => self.pass(),
        };
        let at = self.guest.now.saturating_duration_since(epoch());
        self.record(|| {
            format!(
                "{number:4} {:>10.3} s  {what}  [{}]",
                at.as_secs_f64(),
                before.name()
            )
        });
    }

    /// A new client.
    fn come(&mut self) -> String {
        if self.clients.len() >= CLIENTS_MAX {
            return self.talk();
        }
        let guest = &mut self.guest;
        let known = guest.agent.generation();
        let (client, what) = match guest.kernel.random.below(10) {
            0..=3 if self.exec_count < u8::MAX - EXEC_FIRST => {
                let number = EXEC_FIRST + self.exec_count;
                self.exec_count += 1;
                let driver = SessionDriver::new(number, guest);
                (Client::Session(Box::new(driver)), format!("EXEC {number}"))
            }
            4 => {
                let session = requests::session_ref(&mut guest.kernel.random);
                let modes = [AttachMode::Observe, AttachMode::Wait];
                let mode = guest.kernel.random.pick(&modes).expect("some");
                let driver = SessionDriver::attaching(session, mode, guest);
                (
                    Client::Session(Box::new(driver)),
                    format!("{mode} of {session}"),
                )
            }
            0..=6 => {
                let request = requests::exchange(&mut guest.kernel.random, known);
                let what = format!("{request:?}");
                let driver = ExchangeDriver::new(request, guest);
                (Client::Exchange(Box::new(driver)), what)
            }
            kind => {
                let is_local = kind == 9;
                let raw = RawClient::new(guest, is_local);
                (
                    Client::Raw(Box::new(raw)),
                    format!("anything, local: {is_local}"),
                )
            }
        };
        self.clients.push(client);
        let index = self.clients.len() - 1;
        self.drive(index, false);
        format!("a client comes for {what}")
    }

    /// A client does something.
    fn talk(&mut self) -> String {
        if self.clients.is_empty() {
            return self.pass();
        }
        let index = self.guest.kernel.random.below(self.clients.len());
        self.drive(index, false);
        format!("client {index} is driven")
    }

    fn drive(&mut self, index: usize, is_eager: bool) {
        let guest = &mut self.guest;
        let is_over = match &mut self.clients[index] {
            Client::Session(driver) => driver.drive(guest, is_eager),
            Client::Exchange(driver) => driver.drive(guest).is_some(),
            Client::Raw(raw) => raw.drive(guest),
        };
        if is_over {
            self.clients.swap_remove(index);
        }
    }

    /// A process writes, reads, closes a pipe, has a child, or ends.
    fn child(&mut self) -> String {
        let kernel = &mut self.guest.kernel;
        let alive = kernel.alive();
        let Some(pid) = kernel.random.pick(&alive) else {
            return self.talk();
        };
        let pipes = kernel.processes[&pid].pipes;
        let what = kernel.random.below(16);
        match what {
            0..=7 => {
                if let Some(pipe) = pipes[kernel.random.below(2)] {
                    kernel.move_bytes(pipe, true);
                }
            }
            8..=10 => {
                if let Some(pipe) = pipes[INPUT] {
                    kernel.move_bytes(pipe, false);
                }
            }
            11 => {
                let index = kernel.random.below(3);
                kernel.close_end(pid, index);
            }
            12 if alive.len() < 8 => kernel.fork(pid),
            _ => {
                let code = kernel.random.small(3);
                kernel.exit(pid, ExitStatus::Code(code));
            }
        }
        format!("process {pid} does {what}")
    }

    /// Connections end: one, or all that a reset reaches.
    fn cut(&mut self) -> String {
        let kernel = &mut self.guest.kernel;
        let is_alive = |it: &crate::kernel::Wire| it.far == Far::Open && !it.is_closed;
        let alive: Vec<usize> = (0..kernel.wires.len())
            .filter(|wire| is_alive(&kernel.wires[*wire]))
            .collect();
        if kernel.random.one_in(3) {
            for wire in alive {
                if !kernel.wires[wire].is_local {
                    kernel.end(wire, Far::Reset);
                }
            }
            return "a transport reset".to_owned();
        }
        let ends = [Far::Closed, Far::Reset, Far::Broken];
        let far = kernel.random.pick(&ends).expect("some");
        let Some(wire) = kernel.random.pick(&alive) else {
            return self.pass();
        };
        kernel.end(wire, far);
        format!("connection {wire} ends: {far:?}")
    }

    /// Something fails from now on, or works again.
    fn misfortune(&mut self) -> String {
        let kernel = &mut self.guest.kernel;
        let index = kernel.random.below(5);
        let what = kernel.random.below(9);
        if what == 8 {
            self.guest.restart();
            return "the agent is started anew".to_owned();
        }
        let faults = &mut kernel.faults;
        let fault = match what {
            0 => &mut faults.descriptors,
            1 => &mut faults.memory,
            2 => &mut faults.register,
            3 => &mut faults.console,
            4 => &mut faults.exec,
            5 => &mut faults.signals,
            6 => &mut faults.streams,
            _ => &mut faults.steps[index],
        };
        *fault = !*fault;
        format!("faults: {faults:?}")
    }

    /// Inputs that come late or out of order: for numbers that are no longer used, or never were.
    fn stray(&mut self) -> String {
        let guest = &mut self.guest;
        let now = guest.now;
        guest.kernel.tally.count(Mark::StrayInput);
        let agent = &mut guest.agent;
        let number = 1 + guest.kernel.random.number() % 4;
        let id = ConnectionId::from_number(number);
        let session = SessionId::from_number(number);
        let is_gone = !guest.connections.contains_key(&id);
        // The workload may be restarted under the same number.
        let is_command = |it: &crate::commands::Record| it.exec.is_some();
        let has_ended = !guest.stdio.contains_key(&session)
            && guest.commands.records.get(&session).is_none_or(is_command);
        let exit = Exit {
            status: ExitStatus::Code(0),
            usage: ResourceUsage::default(),
        };
        let what = guest.kernel.random.below(8);
        match what {
            0 if is_gone => agent.handle_bytes(id, b"rubbish", now),
            1 if is_gone => agent.handle_closed(id, Ended::ByReset, now),
            2 if is_gone => agent.handle_written(id, 0, now),
            3 => agent.handle_flush(ConnectionId::from_number(number + 1_000)),
            4 => agent.handle_child_exit(1, exit, now),
            5 if has_ended => agent.handle_output_closed(session, Stream::Stdout, now),
            6 if has_ended => agent.handle_input_closed(session, now),
            7 if guest.kernel.random.one_in(20) => agent.handle_signal(Signal::End, now),
            _ => agent.handle_timeout(now),
        }
        guest.drain_actions();
        format!("stray input {what} for {number}")
    }

    /// A restored machine may find that hours have passed.
    fn jump(&mut self) -> String {
        let seconds = self.guest.kernel.random.pick(&[1, 30, 3_600, 100_000]);
        let seconds = seconds.expect("some");
        self.guest.now += Duration::from_secs(seconds);
        self.guest.kernel.tally.count(Mark::ClockJump);
        format!("{seconds} s pass at once")
    }

    fn pass(&mut self) -> String {
        let ms = self.guest.kernel.random.number() % 400;
        self.guest.now += Duration::from_millis(ms);
        format!("{ms} ms pass")
    }

    /// All faults stop. A host that follows the handshake gets its guest back, every other client
    /// comes to an end, nothing is left, and no timer is set.
    fn converge(&mut self) {
        self.guest.kernel.calm();
        let guest = &mut self.guest;
        self.clients.retain_mut(|client| {
            match client {
                Client::Session(_) => return true,
                Client::Exchange(driver) => driver.leave(guest),
                Client::Raw(raw) => raw.leave(guest),
            }
            false
        });
        if self.guest.kernel.random.one_in(4) {
            self.be_silent();
        }
        let generation = requests::generation(77);
        let mut rebind =
            requests::rebind(&mut self.guest.kernel.random, generation, Cause::Restore);
        rebind.sessions = InheritedSessions::Keep;
        if !self.complete(Request::Rebind(rebind), |it| {
            matches!(it, Message::Rebound(_))
        }) {
            return;
        }
        let probe = Request::Probe {
            generation: Some(generation),
            depth: Depth::Exec,
        };
        if !self.complete(probe, |it| matches!(it, Message::Probed(_))) {
            return;
        }
        self.rest();
        if self.guest.end.is_none() {
            self.guest.kernel.tally.count(Mark::Converged);
        }
    }

    /// Without a client the guest must not refuse work for ever.
    fn be_silent(&mut self) {
        let (turns, duration) = SILENCE;
        for _ in 0..turns {
            if self.guest.end.is_some() {
                return;
            }
            self.turn_after(duration);
        }
        let state = self.guest.agent.state();
        let is_refusing = matches!(state, State::Quiescing | State::Quiesced);
        assert!(!is_refusing, "without a client it stays {}", state.name());
        self.guest.kernel.tally.count(Mark::LeftAlone);
    }

    /// A request that must succeed. False if the guest had been told to end, and did.
    fn complete(&mut self, request: Request, is_met: impl Fn(&Message) -> bool) -> bool {
        let mut driver = ExchangeDriver::new(request, &mut self.guest);
        for _ in 0..TURNS_MAX {
            if let Some(result) = driver.drive(&mut self.guest) {
                let is_ending = self.guest.agent.state() == State::Ending;
                let answer = result.as_ref().is_ok_and(&is_met);
                assert!(
                    answer || is_ending,
                    "the guest does not recover: {result:?}"
                );
                if answer {
                    return true;
                }
                return false;
            }
            // The process of a probe does nothing and ends.
            for pid in self.guest.kernel.alive() {
                let purpose = self.guest.kernel.processes[&pid].purpose;
                if matches!(purpose, Some(Purpose::Probe(_))) {
                    self.guest.kernel.exit(pid, ExitStatus::Code(0));
                }
            }
            self.turn_after(Duration::from_millis(5));
            if self.guest.end.is_some() {
                return false;
            }
        }
        panic!("the guest does not recover");
    }

    /// Lets time pass, and turns the loop.
    fn turn_after(&mut self, duration: Duration) {
        self.guest.now += duration;
        self.guest.turn();
        if self.guest.end.is_none() {
            self.guest.check();
        }
    }

    /// Every client and command comes to an end.
    fn rest(&mut self) {
        for turn in 0..TURNS_MAX {
            for pid in self.guest.kernel.alive() {
                self.guest.kernel.exit(pid, ExitStatus::Code(0));
            }
            for index in (0..self.clients.len()).rev() {
                self.drive(index, true);
            }
            // A detached command that waits for a reader gets one.
            let abandoned = self.guest.stdio.keys().next().copied();
            if let (true, Some(id)) = (turn % 50 == 49 && turn > 100, abandoned) {
                self.guest.commands.tainted.insert(id.number());
                let session = SessionRef::Number(id.number());
                let driver = SessionDriver::attaching(session, AttachMode::Own, &self.guest);
                self.clients.push(Client::Session(Box::new(driver)));
            }
            // A session without a client ends when its `keep` is over.
            let ms = if turn < 100 { 10 } else { 2_000 };
            self.turn_after(Duration::from_millis(ms));
            let is_over = self.clients.is_empty() && self.guest.unrest().is_none();
            if self.guest.end.is_some() || is_over {
                return;
            }
        }
        let what = self.guest.unrest();
        panic!(
            "it does not come to rest: {what:?}; clients: {:?}",
            self.clients
        );
    }
}

impl Guest {
    /// What is left: open, running, or about to wake.
    fn unrest(&self) -> Option<String> {
        let lefts = [
            (!self.connections.is_empty(), "connections"),
            (!self.stdio.is_empty(), "pipes"),
            (!self.kernel.processes.is_empty(), "processes"),
            (!self.kernel.events.is_empty(), "events"),
            (!self.ready.is_empty(), "sources to be read"),
            (
                self.agent.poll_timeout().is_some() && !self.is_watching,
                "timers",
            ),
            (!self.kernel.queue.is_empty(), "connections to be accepted"),
            (self.agent.state() != State::Running, "a state"),
        ];
        let lefts: Vec<_> = lefts
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, what)| *what)
            .collect();
        (!lefts.is_empty()).then(|| lefts.join(", "))
    }
}

/// The time at which every schedule begins.
fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
