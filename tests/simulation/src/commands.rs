//! What is known of each command from outside: whether it ran, what it wrote and read, how it
//! ended; and which names were asked for. What clients are told is held against this.

use std::collections::{BTreeMap, BTreeSet};

use agent::agent::state::State;
use agent::agent::{Agent, Purpose, SessionId, SpawnFailure, SpawnStage};
use shared::id::Generation;
use shared::message::{ExitStatus, InheritedSessions, Rebind};

use crate::kernel::Kernel;

/// The error number of what is not there.
const ENOENT: i32 = 2;

/// One session's command.
#[derive(Debug, Default)]
pub struct Record {
    /// The number of the EXEC that asked for it, if one did.
    pub exec: Option<u8>,
    /// Bytes of each output that the agent has read.
    pub read: [u64; 2],
    /// Bytes that the agent has written to its input.
    pub written: u64,
    /// How its process ended.
    pub status: Option<ExitStatus>,
    /// Whether it was told to end.
    pub is_signalled: bool,
    /// Whether it has a terminal.
    pub is_terminal: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Commands {
    /// By session.
    pub records: BTreeMap<SessionId, Record>,
    /// Sessions by the number of the EXEC that ran.
    pub by_exec: BTreeMap<u8, SessionId>,
    /// Numbers of sessions that a client that keeps to no rules has asked to own, or whose end it
    /// has acknowledged, so that others may have lost bytes of them.
    pub tainted: BTreeSet<u64>,
    /// Whether a REBIND has asked for running commands to end, which those that had ended but for
    /// their output are told without a signal.
    pub has_kill: bool,
    /// Names that a REBIND has asked for.
    names_asked: BTreeSet<Generation>,
    /// Names that the guest was seen to act on, each once, in order.
    names_seen: Vec<Generation>,
}

impl Commands {
    /// A process runs. An EXEC runs once, and the workload as often as it is restarted.
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
    }

    /// A process was reaped.
    pub fn note_exit(&mut self, id: SessionId, status: ExitStatus) {
        let record = self.records.get_mut(&id).expect("it was started");
        assert!(record.status.is_none(), "{id} ended twice");
        record.status = Some(status);
    }

    /// The workload's program could not be executed again, which is an end like any other: 127
    /// where it is not there, and 126 else, as in a shell.
    pub fn note_never_ran(&mut self, id: SessionId, failure: &SpawnFailure) {
        if let Some(record) = self.records.get_mut(&id) {
            let is_missing = failure.stage == SpawnStage::Exec && failure.errno == ENOENT;
            let code = if is_missing { 127 } else { 126 };
            record.status = Some(ExitStatus::Code(code));
        }
    }

    /// A process group is told something by the agent.
    pub fn note_signal(&mut self, kernel: &Kernel, group: i32) {
        if let Some(Purpose::Session(id)) = kernel.processes.get(&group).and_then(|it| it.purpose)
            && let Some(record) = self.records.get_mut(&id)
        {
            record.is_signalled = true;
        }
    }

    /// Whether a client that keeps to no rules may have owned it, or acknowledged its end.
    #[must_use]
    pub fn is_tainted(&self, id: SessionId) -> bool {
        self.tainted.contains(&id.number())
    }

    /// The same for all inputs: what is sent to a session may meet the next one.
    pub const INPUT_KEY: u64 = 0;

    /// A REBIND is about to be sent.
    pub fn note_rebind(&mut self, rebind: &Rebind) {
        self.has_kill |= rebind.sessions == InheritedSessions::Kill;
        self.names_asked.insert(rebind.generation);
    }

    /// The guest has one name after another. Each is one that a host has asked for, and none comes
    /// back that another one has replaced.
    pub fn note_name(&mut self, agent: &Agent) {
        let is_asked = |name: &Generation| self.names_asked.contains(name);
        assert!(
            agent.generation().as_ref().is_none_or(is_asked),
            "nobody has asked for the name {:?}",
            agent.generation()
        );
        match agent.state() {
            State::Rebinding(name) | State::Rebound(name) | State::Failed(name) => {
                if self.names_seen.last() != Some(&name) {
                    let is_back = self.names_seen.contains(&name);
                    assert!(!is_back, "{name} comes back, which was replaced");
                    self.names_seen.push(name);
                }
            }
            State::Running | State::Quiescing | State::Quiesced | State::Ending => {}
        }
    }

    /// What the output of a session follows from.
    #[must_use]
    pub fn key(id: SessionId) -> u64 {
        id.number()
    }
}
