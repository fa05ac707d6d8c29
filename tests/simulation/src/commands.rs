//! What each command did, seen from outside: whether it ran, what it wrote and read, how it ended;
//! and which generations were asked for. What clients report is compared with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use agent::agent::state::State;
use agent::agent::{Agent, Purpose, SessionId, SpawnFailure, SpawnStage};
use shared::id::Generation;
use shared::message::{ExitStatus, FaultPart, InheritedSessions, Origin, Rebind};

use crate::kernel::Kernel;

const ENOENT: i32 = 2;
const ENOMEM: i32 = 12;

#[derive(Debug, Default)]
pub struct Record {
    /// The number of the EXEC that started it; `None` for the workload.
    pub exec: Option<u8>,
    /// Bytes of each output that the agent has read.
    pub read: [u64; 2],
    /// Bytes that the agent has written to its input.
    pub written: u64,
    /// How its process ended.
    pub status: Option<ExitStatus>,
    /// What has failed of its streams at first, and after how many bytes.
    pub fault: Option<(FaultPart, u64)>,
    /// When the agent was told how much its process has left in its pipes, and the lengths of its
    /// outputs with that.
    pub left: Option<(Instant, [u64; 2])>,
    /// Whether the agent has signalled it.
    pub is_signalled: bool,
    pub is_terminal: bool,
}

#[derive(Debug, Default)]
pub struct Commands {
    pub records: BTreeMap<SessionId, Record>,
    /// The records of earlier agents, in order.
    past: Vec<BTreeMap<SessionId, Record>>,
    /// The session of each EXEC that has run, under any agent.
    pub by_exec: BTreeMap<u8, SessionId>,
    /// Where the first copy of each EXEC of a client without rules was sent.
    pub origins: BTreeMap<u8, Origin>,
    /// Numbers of sessions that a client without rules has asked to own, or whose end it has
    /// acknowledged. Other clients may have lost bytes of them.
    pub tainted: BTreeSet<u64>,
    /// Whether a REBIND has asked to end running commands. Those that have ended, except for their
    /// output, are told without a signal.
    pub has_kill: bool,
    /// Generations that a REBIND has asked for.
    asked: BTreeSet<Generation>,
    /// Generations that the guest had, each once, in order.
    seen: Vec<Generation>,
}

impl Commands {
    /// Another agent has taken the place of the one before it. It numbers its sessions from 1.
    pub fn begin_life(&mut self) {
        self.past.push(std::mem::take(&mut self.records));
        self.seen.clear();
    }

    /// Number of agents before this one.
    #[must_use]
    pub fn life(&self) -> usize {
        self.past.len()
    }

    /// The record of a session of that agent.
    #[must_use]
    pub fn record(&self, life: usize, id: SessionId) -> Option<&Record> {
        self.past.get(life).unwrap_or(&self.records).get(&id)
    }

    /// A process was started. An EXEC runs once, and the workload as often as it is restarted.
    pub fn note_start(&mut self, id: SessionId, exec: Option<u8>, is_terminal: bool) {
        if let Some(number) = exec {
            let previous = self.by_exec.insert(number, id);
            assert!(previous.is_none(), "EXEC {number} ran twice");
        }
        let record = self.records.entry(id).or_default();
        assert!(record.exec.is_none(), "{id} has a second process");
        record.exec = exec;
        record.is_terminal = is_terminal;
        record.status = None;
        record.fault = None;
        record.left = None;
    }

    /// A process was reaped.
    pub fn note_exit(&mut self, id: SessionId, status: ExitStatus) {
        let record = self.records.get_mut(&id).expect("it was started");
        assert!(record.status.is_none(), "{id} ended twice");
        record.status = Some(status);
    }

    /// The workload's program could not be executed again. That is an end like any other: 127 if it
    /// was not found, 125 for a shortage, else 126.
    pub fn note_never_ran(&mut self, id: SessionId, failure: &SpawnFailure) {
        if let Some(record) = self.records.get_mut(&id) {
            let code = match (failure.stage, failure.errno) {
                (SpawnStage::Clone, _) | (_, ENOMEM) => 125,
                (SpawnStage::Exec, ENOENT) => 127,
                _ => 126,
            };
            record.status = Some(ExitStatus::Code(code));
            record.fault = None;
        }
    }

    /// A stream has failed after so many bytes.
    pub fn note_fault(&mut self, id: SessionId, part: FaultPart) {
        let record = self.records.get_mut(&id).expect("it was started");
        let offset = match part {
            FaultPart::Stdin => record.written,
            FaultPart::Stdout | FaultPart::Process => record.read[0],
            FaultPart::Stderr => record.read[1],
        };
        record.fault.get_or_insert((part, offset));
    }

    /// The agent signals a process group.
    pub fn note_signal(&mut self, kernel: &Kernel, group: i32) {
        if let Some(Purpose::Session(id)) = kernel.processes.get(&group).and_then(|it| it.purpose)
            && let Some(record) = self.records.get_mut(&id)
        {
            record.is_signalled = true;
        }
    }

    /// Whether a client without rules may have owned it or acknowledged its end.
    #[must_use]
    pub fn is_tainted(&self, id: SessionId) -> bool {
        self.tainted.contains(&id.number())
    }

    /// The same for all inputs, since what is sent to one session may reach the next one.
    pub const INPUT_KEY: u64 = 0;

    /// A REBIND is about to be sent.
    pub fn note_rebind(&mut self, rebind: &Rebind) {
        self.has_kill |= rebind.sessions == InheritedSessions::Kill;
        self.asked.insert(rebind.generation);
    }

    /// Notes the guest's generation. Each one was asked for by a host, and a replaced one does not
    /// come back.
    pub fn note_generation(&mut self, agent: &Agent) {
        let is_asked = |it: &Generation| self.asked.contains(it);
        assert!(
            agent.generation().as_ref().is_none_or(is_asked),
            "no host has asked for {:?}",
            agent.generation()
        );
        match agent.state() {
            State::Rebinding(generation)
            | State::Rebound(generation)
            | State::Failed(generation) => {
                if self.seen.last() != Some(&generation) {
                    let is_back = self.seen.contains(&generation);
                    assert!(!is_back, "{generation} comes back, which was replaced");
                    self.seen.push(generation);
                }
            }
            State::Running | State::Quiescing | State::Quiesced | State::Ending => {}
        }
    }

    /// What the output of a session of that agent depends on.
    #[must_use]
    pub fn key(life: usize, id: SessionId) -> u64 {
        life as u64 * 10_000 + id.number()
    }
}
