//! Performs the core's actions through `sys`, and hands the outcomes and every event to the core.
//!
//! ```text
//! event ─▶ drain_* ─▶ Agent::handle_*        Agent::poll_action ─▶ perform ─▶ sys
//!             │ stopped early                                        │ answer
//!             └▶ ready list, next turn            Agent::handle_* ◀──┘
//! ```
//!
//! mio is edge-triggered: readiness is reported once. So each source is either read until
//! `WouldBlock`; or put on the ready list, which the loop works off before it sleeps; or marked
//! unread, and put on that list when the core has room again. No byte waits for an edge that will
//! not come. A call that fails uses up an edge too: the core then has the source looked at again
//! after a pause ([`Action::CheckSources`]).
//!
//! Invariants:
//! - Flags of an event decide nothing: on any event of a connection, reading and writing are tried.
//! - A source is deregistered before it is closed.
//! - After a command was started, flushes wait until the loop has polled once more. It does not
//!   sleep before they are performed.
//! - The registration of a connection follows the interest that the core computes. It is updated
//!   after each flush and each read.
//! - Each error of a system call is mapped here, once, to an input of the core.

mod accept;
pub(crate) mod cgroups;
mod connections;
pub(crate) mod failpoint;
pub(crate) mod hooks;
mod input;
pub(crate) mod local;
mod mmds;
mod network;
mod output;
mod program;
pub(crate) mod record;
mod steps;
mod tokens;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Instant;

use log::{debug, error, warn};
use mio::{Interest, Registry};
use nix::sys::signal::Signal as SignalNumber;
use shared::limits::PAYLOAD_LEN_MAX;
use shared::message::{ExitStatus, ResourceUsage};

use crate::agent::{
    Action, Agent, CONNECTIONS_MAX, ConnectionId, End, Exit, Figures, LOCAL_CONNECTIONS_MAX,
    SESSIONS_MAX, SessionId, Signal,
};
use crate::sys::file::names;
use crate::sys::process::{self, Ending, FileLimit};
use crate::sys::signals::Signals;
use crate::sys::socket::{Address, Listener};
use crate::sys::spawn::Spawner;
use crate::sys::{clock, console};

pub(crate) use tokens::Source;

use cgroups::Cgroups;
use connections::Entry;
use failpoint::{Call, Failpoints};
use local::Local;
use mmds::Link;
use output::Stdio;
use record::Record;

/// Bytes read at once: what a pipe holds, and the payload of a frame.
const READ_LEN: usize = PAYLOAD_LEN_MAX;

/// Sources that may be on the ready list: memory for them is there from the start.
const SOURCES_MAX: usize = CONNECTIONS_MAX + LOCAL_CONNECTIONS_MAX + 3 * SESSIONS_MAX;

/// Reads of one source in one turn, so that a source that never runs dry leaves time to others.
const READS_PER_TURN_MAX: usize = 16;

/// What the shell has to know and the core has not.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Whether to skip the steps that change the machine.
    pub is_unprivileged: bool,
    /// The limit on open files, which children get back.
    pub file_limit: FileLimit,
    /// Whether the agent has raised its priority, which children must not inherit.
    pub is_preferred: bool,
    /// What the OOM killer thought of the agent before, which children get back.
    pub oom_score_adj: Option<i32>,
    /// The folder of the hooks' folders.
    pub hooks: PathBuf,
    /// The metadata service, if it is to be watched.
    pub mmds: Option<SocketAddrV4>,
}

/// One wake-up of the loop: the core, and the instant of the wake-up.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) agent: &'a mut Agent,
    pub(crate) now: Instant,
}

impl<'a> Turn<'a> {
    pub(crate) fn begin(agent: &'a mut Agent) -> Self {
        let now = clock::now();
        Self { agent, now }
    }
}

/// Every descriptor of the agent.
#[derive(Debug)]
pub(crate) struct Shell {
    options: Options,
    failpoints: Failpoints,
    registry: Registry,
    listener: Listener,
    /// The socket and the file for programs of the guest, if they could be made.
    local: Option<Local>,
    /// The open question to the metadata service.
    mmds: Option<Link>,
    /// Closed to free a descriptor for one accept when there is no other.
    spare: Option<File>,
    signals: Signals,
    /// Whether reading signals failed, or an event brought none, so that no edge will tell that
    /// there are some.
    are_signals_unread: bool,
    /// Whether waiting for children failed the last time.
    is_wait_failing: bool,
    connections: BTreeMap<ConnectionId, Entry>,
    stdio: BTreeMap<SessionId, Stdio>,
    spawner: Spawner,
    /// The sessions' cgroups, if it can make any.
    cgroups: Option<Cgroups>,
    /// The running commands for a successor, if they have no cgroups.
    record: Option<Record>,
    /// Buffer of every read that does not go into a ring.
    scratch: Box<[u8]>,
    /// Sources with more to read, whose edge has been used up.
    ready: VecDeque<Source>,
    /// Connections whose flush waits until the loop has polled once more.
    unflushed: Vec<ConnectionId>,
    /// Whether a command was started since the loop polled.
    has_spawned: bool,
    end: Option<End>,
}

impl Shell {
    pub(crate) fn new(
        options: Options,
        failpoints: Failpoints,
        registry: Registry,
        mut signals: Signals,
        address: &Address,
        local: Option<Local>,
    ) -> io::Result<Self> {
        registry.register(&mut signals, Source::Signals.token(), Interest::READABLE)?;
        let listener = Listener::bind(address, accept::BACKLOG)?;
        let mut spawner = Spawner::new(options.file_limit, options.is_preferred)?;
        if let Some(score) = options.oom_score_adj {
            spawner.set_oom_score_adj(score)?;
        }
        Ok(Self {
            options,
            failpoints,
            listener,
            local: local.and_then(|local| local.register(&registry)),
            mmds: None,
            registry,
            spare: File::open("/dev/null").ok(),
            signals,
            are_signals_unread: false,
            is_wait_failing: false,
            connections: BTreeMap::new(),
            stdio: BTreeMap::new(),
            spawner,
            cgroups: None,
            record: None,
            scratch: vec![0; READ_LEN].into_boxed_slice(),
            ready: VecDeque::with_capacity(SOURCES_MAX),
            unflushed: Vec::with_capacity(CONNECTIONS_MAX),
            has_spawned: false,
            end: None,
        })
    }

    /// Makes sure that a successor can end the sessions from now on.
    pub(crate) fn set_keepers(&mut self, cgroups: Option<Cgroups>, record: Option<Record>) {
        self.cgroups = cgroups;
        self.record = record;
    }

    /// How the machine is to end, once the core has asked for it.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether a source has more to read or a connection is to be flushed: the loop must not sleep.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.unflushed.is_empty()
    }

    pub(crate) fn handle_event(&mut self, source: Source, turn: &mut Turn<'_>) {
        match source {
            Source::Signals => self.drain_signals(true, turn),
            Source::Listener => self.drain_accept(turn),
            Source::LocalListener => {
                if !self.drain_local(turn) {
                    turn.agent.handle_source_failed(turn.now);
                }
            }
            Source::Mmds => self.drain_mmds(turn),
            Source::Connection(id) => {
                self.flush(id, turn);
                self.drain_connection(id, turn);
            }
            Source::Output(id, stream) => self.drain_output(id, stream, turn),
            Source::Input(id) => self.drain_input(id, turn),
        }
        self.drain_actions(turn);
    }

    /// Continues where reading stopped early, each source once, and performs the flushes that
    /// waited.
    pub(crate) fn run_ready(&mut self, turn: &mut Turn<'_>) {
        if self.are_signals_unread {
            self.drain_signals(false, turn);
            self.drain_actions(turn);
        }
        for _ in 0..self.ready.len() {
            if let Some(source) = self.ready.pop_front() {
                self.handle_event(source, turn);
            }
        }
        if self.has_spawned {
            self.has_spawned = false;
        } else {
            self.flush_rest(turn);
            self.drain_actions(turn);
        }
    }

    fn flush_rest(&mut self, turn: &mut Turn<'_>) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        for id in unflushed.drain(..) {
            self.flush(id, turn);
        }
        // A flush adds none, and its memory is there from the start.
        self.unflushed = unflushed;
    }

    /// Performs the core's actions until there is none left.
    pub(crate) fn drain_actions(&mut self, turn: &mut Turn<'_>) {
        while let Some(action) = turn.agent.poll_action() {
            self.perform(action, turn);
        }
    }

    /// Not inlined: most calls of [`Self::drain_actions`] find no action, and need not set up the
    /// frame of all that can be performed.
    #[inline(never)]
    fn perform(&mut self, action: Action, turn: &mut Turn<'_>) {
        match action {
            // A short command has often ended by now, so the answer to its start can go out
            // together with its end.
            Action::Flush(id) if self.has_spawned => self.unflushed.push(id),
            Action::Flush(id) => self.flush(id, turn),
            Action::Close(id) => self.close_connection(id),
            Action::DrainAccept => {
                self.drain_accept(turn);
                self.drain_local(turn);
            }
            Action::CheckSources => {
                self.drain_signals(false, turn);
                self.reap_children(turn);
                self.drain_accept(turn);
                self.drain_local(turn);
            }
            Action::RearmListener => {
                let result = self.rearm_listener().map_err(|err| err.to_string());
                turn.agent.handle_rearmed(result, turn.now);
            }
            Action::Step { run, action } => {
                let started_at = clock::now();
                let outcome = self.perform_step(action);
                let took = clock::now().saturating_duration_since(started_at);
                turn.agent.handle_step(run, outcome, took, turn.now);
            }
            Action::Spawn { purpose, command } => {
                // Starting a program takes longer than an answer should wait.
                self.flush_rest(turn);
                self.spawn(purpose, &command, turn);
            }
            Action::ResumeOutput(id) => self.resume_output(id),
            Action::CountOutput(id) => {
                let lens = self.count_output(id);
                turn.agent.handle_output_counted(id, lens);
            }
            Action::CloseOutput(id) => self.close_outputs(id, turn),
            Action::SignalGroup { group, number } => signal_group(group, number),
            Action::KillSession(id) => self.kill_session(id),
            Action::FlushInput(id) => self.flush_input(id, turn),
            Action::CloseInput(id) => self.close_input(id),
            Action::ResizeTty { session, size } => self.resize_terminal(session, size),
            Action::SignalEveryone(signal) => {
                if let Err(err) = process::kill_all(signal.number().into()) {
                    debug!("cannot signal every process: {err}");
                }
            }
            Action::LookAtConsole => turn.agent.handle_console(console::is_drained(), turn.now),
            Action::CollectFigures(id) => turn.agent.handle_figures(id, figures(), turn.now),
            Action::ListHooks(stage) => {
                let listing = hooks::list(&self.options.hooks, stage);
                turn.agent.handle_hooks_listed(listing, turn.now);
            }
            Action::WriteGeneration(generation) => {
                if let Some(local) = &self.local {
                    local.write_generation(generation);
                }
            }
            Action::AskMmds(request) => self.ask_mmds(request, turn),
            Action::CloseMmds => self.close_mmds(),
            Action::End(end) => {
                self.end_keepers();
                self.end = Some(end);
            }
        }
    }

    /// Reads all signals. If that fails, or an event brings none, signals may be left, and their
    /// edge is used up: they are read again in every turn until that succeeds, and after a pause.
    /// Ended children are looked for at once.
    fn drain_signals(&mut self, has_event: bool, turn: &mut Turn<'_>) {
        let mut has_read = false;
        let result = loop {
            let failpoint = self.failpoints.check(Call::Signals);
            match failpoint.and_then(|()| self.signals.read()) {
                Ok(Some(signal)) => self.handle_signal(signal, turn),
                Ok(None) => break Ok(()),
                Err(err) => match err.kind() {
                    io::ErrorKind::WouldBlock => break Ok(()),
                    io::ErrorKind::Interrupted => continue,
                    _ => break Err(err),
                },
            }
            has_read = true;
            self.drain_actions(turn);
        };
        let was_unread = self.are_signals_unread;
        self.are_signals_unread = result.is_err() || (has_event && !has_read);
        if !self.are_signals_unread {
            return;
        }
        if let Err(err) = result
            && !was_unread
        {
            error!("cannot read signals: {err}");
        }
        turn.agent.handle_source_failed(turn.now);
        self.reap_children(turn);
    }

    fn handle_signal(&mut self, signal: SignalNumber, turn: &mut Turn<'_>) {
        match signal {
            SignalNumber::SIGCHLD => self.reap_children(turn),
            SignalNumber::SIGINT => turn.agent.handle_signal(Signal::Interrupt, turn.now),
            _ => turn.agent.handle_signal(Signal::End, turn.now),
        }
    }

    /// One `SIGCHLD` may stand for several children.
    fn reap_children(&mut self, turn: &mut Turn<'_>) {
        let was_failing = std::mem::take(&mut self.is_wait_failing);
        loop {
            let failpoint = self.failpoints.check(Call::Wait);
            match failpoint.and_then(|()| process::reap()) {
                Ok(Some(reaped)) => {
                    turn.agent
                        .handle_child_exit(reaped.pid, exit_of(&reaped), turn.now);
                    self.drain_actions(turn);
                    self.note_reaped(reaped.pid);
                }
                Ok(None) => return turn.agent.handle_reaped_all(true, turn.now),
                Err(err) => match err.raw_os_error() {
                    Some(libc::ECHILD) => return turn.agent.handle_reaped_all(false, turn.now),
                    Some(libc::EINTR) => {}
                    _ => {
                        if !was_failing {
                            error!("cannot wait for children: {err}");
                        }
                        self.is_wait_failing = true;
                        return turn.agent.handle_source_failed(turn.now);
                    }
                },
            }
        }
    }

    fn unpush_ready(&mut self, source: Source) {
        self.ready.retain(|&other| other != source);
    }

    fn push_ready(&mut self, source: Source) {
        if !self.ready.contains(&source) {
            self.ready.push_back(source);
        }
    }
}

fn exit_of(reaped: &process::Reaped) -> Exit {
    let status = match reaped.ending {
        Ending::Code(code) => ExitStatus::Code(code),
        Ending::Signal { number, core } => ExitStatus::Signal {
            number: u8::try_from(number).unwrap_or(u8::MAX),
            core,
        },
    };
    let usage = ResourceUsage {
        user_us: reaped.user_us,
        system_us: reaped.system_us,
        rss_max_kib: reaped.rss_max_kib,
    };
    Exit { status, usage }
}

/// The error number, for the core.
fn errno_of(err: &io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EIO)
}

fn signal_group(group: i32, number: u8) {
    match process::kill_group(group, number.into()) {
        Ok(()) => {}
        // The last process of the group has ended meanwhile.
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => {}
        Err(err) => warn!("cannot signal process group {group}: {err}"),
    }
}

/// What this process uses. A figure that cannot be read is zero: INFO is for people.
fn figures() -> Figures {
    // One of the entries is the directory that is being read.
    let fds = names(Path::new("/proc/self/fd")).map_or(0, |names| names.len() - 1);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss_kib = rss.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse().ok());
    Figures {
        fds: u32::try_from(fds).unwrap_or(u32::MAX),
        rss_kib: rss_kib.unwrap_or(0),
    }
}
