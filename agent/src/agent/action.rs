//! What the core asks of the shell.

use shared::id::Generation;
use shared::message::{HookStage, Identity, TtySize};

use super::ids::{ConnectionId, SessionId};
use super::program::Command;

/// One thing for the shell to do. Actions are performed in the order in which they are polled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write the pending bytes of the connection, as far as the socket takes them.
    Flush(ConnectionId),
    /// Deregister, then close.
    Close(ConnectionId),
    /// Accept until the queue is empty.
    DrainAccept,
    /// Take the listener out of the poll set and put it back, on the same descriptor. Answered by
    /// [`handle_rearmed`](super::Agent::handle_rearmed).
    RearmListener,
    /// Perform a step of the rebind with this number, and measure it. Answered by
    /// [`handle_step`](super::Agent::handle_step).
    Step {
        run: u64,
        action: StepAction,
    },
    /// Start a program. Answered by [`handle_spawned`](super::Agent::handle_spawned).
    Spawn {
        purpose: Purpose,
        command: Box<Command>,
    },
    /// The session's rings have room again: continue reading its outputs.
    ResumeOutput(SessionId),
    /// Count the bytes in the pipes of a command that has just been waited for. Answered by
    /// [`handle_output_counted`](super::Agent::handle_output_counted).
    CountOutput(SessionId),
    /// Close the session's remaining outputs: pipes that another process still holds open, and the
    /// terminal, which stays open until the session has ended.
    CloseOutput(SessionId),
    /// Write [`input_pending`](super::Agent::input_pending) to the session's standard input, now
    /// and whenever it takes more. Answered by
    /// [`handle_input_written`](super::Agent::handle_input_written), by
    /// [`handle_input_closed`](super::Agent::handle_input_closed) when the command has closed it,
    /// or by [`handle_input_failed`](super::Agent::handle_input_failed).
    FlushInput(SessionId),
    /// Close the session's standard input. Not asked for a terminal.
    CloseInput(SessionId),
    ResizeTty {
        session: SessionId,
        size: TtySize,
    },
    /// Send a signal to a process group, which may be empty.
    SignalGroup {
        group: i32,
        /// `signal(7)`.
        number: u8,
    },
    /// Kill every process that is left of a session, wherever it has gone to. Only asked if
    /// sessions have cgroups.
    KillSession(SessionId),
    /// Send a signal to every process of the machine. Only asked of process 1.
    SignalEveryone(EndSignal),
    /// Check whether the console has sent everything. Answered by
    /// [`handle_console`](super::Agent::handle_console).
    LookAtConsole,
    /// Collect what INFO reports. Answered by [`handle_figures`](super::Agent::handle_figures).
    CollectFigures(ConnectionId),
    /// List the hooks of a stage. Answered by
    /// [`handle_hooks_listed`](super::Agent::handle_hooks_listed).
    ListHooks(HookStage),
    /// Write the generation to the file where programs of the guest read it.
    WriteGeneration(Generation),
    /// Look at all sources that tell of something once, as if each had an event: signals, children
    /// that have ended, and both accept queues.
    CheckSources,
    /// Send this on a new connection to the metadata service, in place of an open one. Answered by
    /// [`handle_mmds_bytes`](super::Agent::handle_mmds_bytes), or by
    /// [`handle_mmds_failed`](super::Agent::handle_mmds_failed).
    AskMmds(String),
    /// Close the connection to the metadata service, if one is open.
    CloseMmds,
    /// End the machine, or this service.
    End(End),
}

/// One step of a rebind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepAction {
    /// Deregister these, then close them.
    CloseConnections(Vec<ConnectionId>),
    /// As [`Action::RearmListener`].
    RearmListener,
    SetClock {
        /// ns since 1970, from the host.
        wall_ns: i64,
    },
    /// Credit these bytes and reseed.
    Reseed { entropy: [u8; 32] },
    /// Set what is given.
    SetIdentity(Identity),
}

/// Answers [`Action::Step`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    Done,
    /// The wall clock was set.
    ClockMoved {
        /// ns, positive is forward.
        step_ns: i64,
    },
    /// The agent runs without privileges by its settings, so the step was skipped.
    Unprivileged,
    Failed(StepFailure),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StepFailure {
    /// Of the system call that failed.
    pub errno: Option<i32>,
    /// What failed on which object, for people.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A session's command. Its output is read.
    Session(SessionId),
    /// A probe's no-op. Its output goes nowhere.
    Probe(ConnectionId),
}

/// The two signals that end processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndSignal {
    Terminate,
    Kill,
}

impl EndSignal {
    /// The same on every architecture of Linux (`signal(7)`).
    pub const fn number(self) -> u8 {
        match self {
            Self::Terminate => 15,
            Self::Kill => 9,
        }
    }
}

/// How the machine ends. A service returns in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    PowerOff,
    Reboot,
}

/// The signals that the agent acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGTERM and SIGPWR.
    End,
    /// SIGINT. To process 1 it is Ctrl-Alt-Del and means a restart.
    Interrupt,
}

/// How a connection ended, as its socket reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    ByPeer,
    /// ENOTCONN or ECONNRESET, as after a transport reset.
    ByReset,
    ByError,
}

/// Why a program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpawnFailure {
    pub stage: SpawnStage,
    pub errno: i32,
    /// What failed on which object, for people.
    pub text: String,
    /// The process id of a child that failed before it executed the program and has to be reaped.
    pub stillborn: Option<i32>,
}

/// The step of starting a program that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpawnStage {
    /// Making the pipes and the child.
    Clone,
    /// Preparing the child.
    SetUp,
    /// Looking up the user and its groups in the image's files, and becoming that user.
    User,
    Chdir,
    Exec,
}

/// The figures of INFO that only the shell can collect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Figures {
    /// Open descriptors of the agent.
    pub fds: u32,
    /// Resident memory of the agent, KiB.
    pub rss_kib: u64,
}
