//! What the core asks of the shell.

use shared::id::Generation;
use shared::message::{HookStage, TtySize};

use super::ids::{ConnectionId, SessionId};
use super::rebind::steps::StepAction;
use super::sessions::program::Command;

/// One thing to do, in the order in which they are polled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write what the connection's outbox holds, as far as the socket takes it.
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
        /// Which rebind it belongs to.
        run: u64,
        /// What to do.
        action: StepAction,
    },
    /// Start a program. Answered by [`handle_spawned`](super::Agent::handle_spawned).
    Spawn {
        /// What it is for.
        purpose: Purpose,
        /// What to start.
        command: Box<Command>,
    },
    /// There is room for the session's output again: read on where reading stopped.
    ResumeOutput(SessionId),
    /// Close what is left of the session's outputs: pipes that somebody else still holds open at
    /// their other end, and a terminal, which stays open until the session has ended.
    CloseOutput(SessionId),
    /// Write what [`input_pending`](super::Agent::input_pending) holds to the session's standard
    /// input, as far as it takes it, and go on when it takes more. Answered by
    /// [`handle_input_written`](super::Agent::handle_input_written), or by
    /// [`handle_input_closed`](super::Agent::handle_input_closed) when nobody reads it any more.
    FlushInput(SessionId),
    /// Close the session's standard input: its end, or nobody is to read it any more. Of a
    /// terminal nothing is closed.
    CloseInput(SessionId),
    /// Tell the session's terminal its size.
    ResizeTty {
        /// Whose.
        session: SessionId,
        /// The new size.
        size: TtySize,
    },
    /// Send a signal to a process group. An empty group is no error.
    SignalGroup {
        /// Id of the group.
        group: i32,
        /// Number of the signal (`signal(7)`).
        number: u8,
    },
    /// Send a signal to every process of the machine. Asked of process 1 only.
    SignalEveryone(EndSignal),
    /// Find out whether the console has sent everything. Answered by
    /// [`handle_console`](super::Agent::handle_console).
    LookAtConsole,
    /// Collect what INFO reports. Answered by [`handle_figures`](super::Agent::handle_figures).
    CollectFigures(ConnectionId),
    /// Look for the hooks of a stage. Answered by
    /// [`handle_hooks_listed`](super::Agent::handle_hooks_listed).
    ListHooks(HookStage),
    /// Leave the guest's name where its programs can read it.
    WriteGeneration(Generation),
    /// Close the connection to the metadata service, if there is one, and send this on a new one.
    /// Answered by [`handle_mmds_bytes`](super::Agent::handle_mmds_bytes), or by
    /// [`handle_mmds_failed`](super::Agent::handle_mmds_failed).
    AskMmds(String),
    /// Close the connection to the metadata service, if there is one.
    CloseMmds,
    /// End the machine, or this service.
    End(End),
}

/// What a process is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It is a session's command; its output is wanted.
    Session(SessionId),
    /// It is a probe's no-op; its output is not wanted.
    Probe(ConnectionId),
}

/// The two signals by which processes are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndSignal {
    /// Asks.
    Terminate,
    /// Does not ask.
    Kill,
}

impl EndSignal {
    /// Its number, the same on every architecture of Linux (`signal(7)`).
    pub const fn number(self) -> u8 {
        match self {
            Self::Terminate => 15,
            Self::Kill => 9,
        }
    }
}

/// How everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The machine is switched off; a service returns.
    PowerOff,
    /// The machine starts again; a service returns.
    Reboot,
}

/// Signals that the agent acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGTERM and SIGPWR: end.
    End,
    /// SIGINT: end; to process 1 it is Ctrl-Alt-Del and means a restart.
    Interrupt,
}

/// How a connection ended, as the socket tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// The peer closed it.
    ByPeer,
    /// As after a transport reset: ENOTCONN or ECONNRESET.
    ByReset,
    /// Any other error.
    ByError,
}

/// A program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpawnFailure {
    /// How far it came.
    pub stage: SpawnStage,
    /// The error number.
    pub errno: i32,
    /// The error number in words.
    pub text: String,
    /// A child that existed for a moment and will be reaped.
    pub stillborn: Option<i32>,
}

/// The steps of starting a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpawnStage {
    /// Making the pipes and the child.
    Clone,
    /// Preparing the child.
    SetUp,
    /// Finding the user and its groups in the image's files, and becoming that user.
    User,
    /// Entering the working directory.
    Chdir,
    /// Executing the program.
    Exec,
}

/// What only the shell can count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Figures {
    /// Open descriptors of this process.
    pub fds: u32,
    /// Resident memory of this process, KiB.
    pub rss_kib: u64,
}
