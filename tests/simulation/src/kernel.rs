//! A minimal kernel under the agent: connections, pipes, processes, and which sources have an event
//! to report. It does not know the agent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use agent::agent::{ConnectionId, Purpose, SessionId};
use shared::message::ExitStatus;

use crate::random::Random;
use crate::tally::{Mark, Tally};

/// What the event loop gets events of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Listener,
    /// The listener for programs in the guest.
    LocalListener,
    /// Children that have ended.
    Signals,
    Connection(ConnectionId),
    /// The reading end of a command's output, by the index of its stream.
    Output(SessionId, usize),
    /// The writing end of a command's input.
    Input(SessionId),
}

/// The state of a connection's far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    Open,
    /// Closed. What was sent before can still be read.
    Closed,
    /// Reset by the transport. What was on its way is lost.
    Reset,
    /// Failed in another way.
    Broken,
}

/// A connection, in both directions.
#[derive(Debug)]
pub struct Wire {
    /// Sent by the client, not yet read by the agent.
    pub to_guest: Vec<u8>,
    /// Sent by the agent, not yet read by the client.
    pub to_host: Vec<u8>,
    /// Bytes that fit in each direction.
    pub capacity: usize,
    /// Whether its client is a program in the guest, which a transport reset does not reach.
    pub is_local: bool,
    /// Whether its peer may not connect.
    pub is_foreign: bool,
    pub far: Far,
    pub is_closed: bool,
    /// The agent's id for it, once it was accepted.
    pub id: Option<ConnectionId>,
    /// How often a rebind had registered the listener when it was accepted.
    pub accepted_under: u64,
    /// Registered for readable and writable.
    pub registered: Option<(bool, bool)>,
}

/// A pipe between the agent and a command. Its bytes follow from their offsets.
#[derive(Debug)]
pub struct Pipe {
    /// Its session and stream.
    pub source: Source,
    /// Bytes in it.
    pub len: usize,
    /// Bytes that fit.
    pub capacity: usize,
    /// Processes that hold the command's end.
    pub holders: u32,
    /// Whether the agent holds its end.
    pub is_open: bool,
    /// Whether the agent is registered for room in an input.
    pub is_awaited: bool,
}

#[derive(Debug)]
pub struct Process {
    /// What the agent started it for; `None` for a child of a command.
    pub purpose: Option<Purpose>,
    pub group: i32,
    /// The pipes that it holds: outputs by index, then input.
    pub pipes: [Option<usize>; 3],
    /// How it ended; it is a zombie until it is reaped.
    pub status: Option<ExitStatus>,
    /// Whether SIGTERM ends it.
    pub obeys: bool,
}

/// What fails at the moment.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// No free descriptor: EMFILE.
    pub descriptors: bool,
    /// No free memory: ENOMEM.
    pub memory: bool,
    /// The listener cannot be registered.
    pub register: bool,
    /// The console has not sent everything.
    pub console: bool,
    /// Steps of a rebind that fail, by index.
    pub steps: [bool; 5],
    /// Programs cannot be executed.
    pub exec: bool,
    /// Ends of children are not told.
    pub signals: bool,
    /// Calls on the streams of commands may fail.
    pub streams: bool,
}

#[derive(Debug)]
pub struct Kernel {
    /// Every connection, by number.
    pub wires: Vec<Wire>,
    /// Connections that were not accepted.
    pub queue: VecDeque<usize>,
    /// The same of programs in the guest.
    pub local_queue: VecDeque<usize>,
    /// Every pipe, by number.
    pub pipes: Vec<Pipe>,
    /// Every process, with zombies.
    pub processes: BTreeMap<i32, Process>,
    /// Sources with an event to report.
    pub events: BTreeSet<Source>,
    /// Whether a connection has come without an event since the queue was last looked at.
    pub is_edge_lost: bool,
    /// Whether the listener is registered.
    pub is_listening: bool,
    pub faults: Faults,
    /// The random numbers of this step.
    pub random: Random,
    pub tally: Tally,
    /// Whether all faults have stopped.
    pub is_calm: bool,
    /// The process that was reaped last, until the agent knows.
    pub reaped: Option<i32>,
    used_pids: BTreeSet<i32>,
    next_pid: i32,
}

/// Process ids repeat after this many.
const PID_COUNT: i32 = 12;

/// Most bytes that fit into a connection, in each direction.
const CAPACITY_MAX: usize = 128 * 1024;

/// SIGKILL cannot be ignored.
const KILL: u8 = 9;

impl Kernel {
    #[must_use]
    pub fn new(random: Random) -> Self {
        Self {
            wires: Vec::new(),
            queue: VecDeque::new(),
            local_queue: VecDeque::new(),
            pipes: Vec::new(),
            processes: BTreeMap::new(),
            events: BTreeSet::new(),
            is_edge_lost: false,
            is_listening: false,
            faults: Faults::default(),
            random,
            tally: Tally::default(),
            is_calm: false,
            reaped: None,
            used_pids: BTreeSet::new(),
            next_pid: 0,
        }
    }

    /// All faults stop, and connections get room.
    pub fn calm(&mut self) {
        self.faults = Faults::default();
        self.is_calm = true;
        for wire in &mut self.wires {
            wire.capacity = CAPACITY_MAX;
            if let (Some(id), Some(_)) = (wire.id, wire.registered) {
                self.events.insert(Source::Connection(id));
            }
        }
    }

    /// A client connects. The guest gets an event, unless the edge is lost in a pause.
    pub fn connect(&mut self, is_local: bool, is_edge_lost: bool) -> usize {
        let wire = self.wires.len();
        // Some are so small that every frame comes in pieces, others hold more than a frame.
        let capacity = match self.is_calm {
            true => CAPACITY_MAX,
            false => CAPACITY_MAX >> self.random.below(13),
        };
        self.wires.push(Wire {
            to_guest: Vec::new(),
            to_host: Vec::new(),
            capacity,
            is_local,
            is_foreign: false,
            far: Far::Open,
            is_closed: false,
            id: None,
            accepted_under: 0,
            registered: None,
        });
        if is_local {
            self.local_queue.push_back(wire);
            self.events.insert(Source::LocalListener);
        } else {
            self.queue.push_back(wire);
            if is_edge_lost {
                self.is_edge_lost = true;
                self.tally.count(Mark::EdgeLost);
            } else if self.is_listening {
                self.events.insert(Source::Listener);
            }
        }
        wire
    }

    /// The client sends as much as fits, or all of it if this is a connection's first flight.
    pub fn send(&mut self, wire: usize, bytes: &[u8], is_flight: bool) -> usize {
        let wire = &mut self.wires[wire];
        if wire.is_closed || wire.far != Far::Open {
            return 0;
        }
        let room = wire.capacity.saturating_sub(wire.to_guest.len());
        let len = if is_flight {
            bytes.len()
        } else {
            bytes.len().min(room)
        };
        wire.to_guest.extend_from_slice(&bytes[..len]);
        if let (Some(id), Some((true, _)), true) = (wire.id, wire.registered, len > 0) {
            self.events.insert(Source::Connection(id));
        }
        len
    }

    /// The client reads at most `len` bytes. `None`: the connection is over.
    pub fn receive(&mut self, wire: usize, len: usize) -> Option<Vec<u8>> {
        let wire = &mut self.wires[wire];
        if wire.far != Far::Open || (wire.is_closed && wire.to_host.is_empty()) {
            return None;
        }
        let rest = wire.to_host.split_off(len.min(wire.to_host.len()));
        let bytes = std::mem::replace(&mut wire.to_host, rest);
        if let (Some(id), Some((_, true)), false) = (wire.id, wire.registered, bytes.is_empty()) {
            self.events.insert(Source::Connection(id));
        }
        Some(bytes)
    }

    /// The client closes its end, or the connection fails.
    pub fn end(&mut self, wire: usize, far: Far) {
        let wire = &mut self.wires[wire];
        if wire.far != Far::Open {
            return;
        }
        self.tally.count(match far {
            Far::Closed => Mark::PeerClosed,
            Far::Reset => Mark::Reset,
            Far::Broken | Far::Open => Mark::PeerError,
        });
        wire.far = far;
        wire.to_host.clear();
        if far != Far::Closed {
            wire.to_guest.clear();
        }
        // A hang-up is reported whatever is registered.
        if let (Some(id), Some(_)) = (wire.id, wire.registered) {
            self.events.insert(Source::Connection(id));
        }
    }

    /// The agent deregisters the connection and closes its end.
    pub fn close(&mut self, wire: usize) {
        let wire = &mut self.wires[wire];
        assert!(!wire.is_closed, "closed twice");
        wire.is_closed = true;
        wire.registered = None;
        if let Some(id) = wire.id {
            self.events.remove(&Source::Connection(id));
        }
    }

    /// Makes a pipe between the agent and a process.
    pub fn pipe(&mut self, source: Source, capacity: usize) -> usize {
        self.pipes.push(Pipe {
            source,
            len: 0,
            capacity,
            holders: 1,
            is_open: true,
            is_awaited: false,
        });
        self.pipes.len() - 1
    }

    /// A command writes to an output, or reads from its input.
    pub fn move_bytes(&mut self, pipe: usize, is_write: bool) {
        let pipe = &mut self.pipes[pipe];
        let room = if is_write {
            pipe.capacity - pipe.len
        } else {
            pipe.len
        };
        if room == 0 || (is_write && !pipe.is_open) {
            if is_write && pipe.is_open {
                self.tally.count(Mark::FullPipe);
            }
            return;
        }
        let len = self.random.part(room);
        if is_write {
            pipe.len += len;
            self.events.insert(pipe.source);
        } else {
            pipe.len -= len;
            if pipe.is_awaited && pipe.is_open {
                self.events.insert(pipe.source);
            }
        }
    }

    /// A process closes a pipe. When the last one does, that is an event.
    pub fn release(&mut self, pipe: usize) {
        let pipe = &mut self.pipes[pipe];
        pipe.holders -= 1;
        if pipe.holders == 0 && pipe.is_open {
            self.events.insert(pipe.source);
        }
    }

    pub fn close_pipe(&mut self, pipe: usize) {
        let pipe = &mut self.pipes[pipe];
        assert!(pipe.is_open, "closed twice");
        pipe.is_open = false;
        self.events.remove(&pipe.source);
    }

    /// Starts a process. Its id may be a used one.
    pub fn start(&mut self, process: Process) -> i32 {
        loop {
            self.next_pid = (self.next_pid + 1) % PID_COUNT;
            // With many processes the ids continue above.
            let crowd = i32::try_from(self.processes.len()).expect("few") / 6 * PID_COUNT;
            let pid = 100 + self.next_pid + crowd;
            // The id of a group is not used again while the group has members.
            let is_taken = |(other, it): (&i32, &Process)| *other == pid || it.group == pid;
            if self.processes.iter().any(is_taken) {
                continue;
            }
            if !self.used_pids.insert(pid) {
                self.tally.count(Mark::PidReused);
            }
            let group = if process.group == 0 {
                pid
            } else {
                process.group
            };
            self.processes.insert(pid, Process { group, ..process });
            return pid;
        }
    }

    /// A command starts a child that outlives it and holds its outputs.
    pub fn fork(&mut self, pid: i32) {
        let parent = &self.processes[&pid];
        let pipes = [parent.pipes[0], parent.pipes[1], None];
        let child = Process {
            purpose: None,
            group: parent.group,
            pipes,
            status: None,
            obeys: parent.obeys,
        };
        for pipe in pipes.into_iter().flatten() {
            self.pipes[pipe].holders += 1;
        }
        self.start(child);
    }

    /// A process closes one of its pipes.
    pub fn close_end(&mut self, pid: i32, index: usize) {
        let process = self.processes.get_mut(&pid).expect("a process");
        if let Some(pipe) = process.pipes[index].take() {
            self.release(pipe);
        }
    }

    /// A process ends, and is a zombie until it is reaped.
    pub fn exit(&mut self, pid: i32, status: ExitStatus) {
        for index in 0..3 {
            self.close_end(pid, index);
        }
        let process = self.processes.get_mut(&pid).expect("a process");
        process.status = Some(status);
        self.events.insert(Source::Signals);
    }

    /// The agent is gone. Its children are another process's, which reaps them.
    pub fn disown(&mut self) {
        self.processes.retain(|_, process| process.status.is_none());
        for process in self.processes.values_mut() {
            process.purpose = None;
        }
        self.events.clear();
        self.is_edge_lost = false;
        self.is_listening = false;
    }

    #[must_use]
    pub fn alive(&self) -> Vec<i32> {
        let alive = self.processes.iter().filter(|(_, it)| it.status.is_none());
        alive.map(|(pid, _)| *pid).collect()
    }

    /// Signals a process group.
    pub fn signal_group(&mut self, group: i32, number: u8) {
        // After the leader was reaped, the id may belong to another group.
        let leader = self.processes.get(&group);
        assert!(
            leader.is_some_and(|leader| leader.group == group) || self.reaped == Some(group),
            "signal {number} to group {group}, whose leader was reaped"
        );
        self.signal(number, |process| process.group == group);
    }

    /// Signals the processes that `is_meant` picks.
    pub fn signal(&mut self, number: u8, is_meant: impl Fn(&Process) -> bool) {
        for pid in self.alive() {
            let process = &self.processes[&pid];
            let is_deadly = number == KILL || (number == 15 && process.obeys);
            if is_deadly && is_meant(process) {
                let core = false;
                self.exit(pid, ExitStatus::Signal { number, core });
            }
        }
    }

    /// Reaps a zombie.
    pub fn reap(&mut self) -> Option<(i32, Process)> {
        let mut zombies = self.processes.iter().filter(|(_, it)| it.status.is_some());
        let pid = *zombies.next()?.0;
        let process = self.processes.remove(&pid)?;
        Some((pid, process))
    }
}
