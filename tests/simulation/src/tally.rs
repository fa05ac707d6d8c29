//! Counts what the schedules have met.

/// Declares what is counted, each with its name in the report.
macro_rules! marks {
    ($($variant:ident = $name:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mark {
            $(#[doc = $name] $variant,)*
        }

        impl Mark {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

marks! {
    Flush = "action: flush";
    Close = "action: close";
    DrainAccept = "action: drain accept";
    RearmListener = "action: rearm listener";
    RebindStep = "action: step of a rebind";
    Spawn = "action: spawn";
    ResumeOutput = "action: resume output";
    CountOutput = "action: count output";
    CloseOutput = "action: close output";
    FlushInput = "action: flush input";
    CloseInput = "action: close input";
    ResizeTty = "action: resize terminal";
    SignalGroup = "action: signal group";
    KillSession = "action: kill session";
    SignalEveryone = "action: signal everyone";
    LookAtConsole = "action: look at console";
    CollectFigures = "action: collect figures";
    ListHooks = "action: list hooks";
    WriteGeneration = "action: write generation";
    CheckSources = "action: check sources";
    AskMmds = "action: ask the metadata service";
    CloseMmds = "action: close the metadata service's connection";
    End = "action: end";
    PartialRead = "kernel: read of a part";
    PartialWrite = "kernel: write of a part";
    FullSocket = "kernel: socket was full";
    FullPipe = "kernel: pipe was full";
    Reset = "kernel: transport reset";
    PeerClosed = "kernel: peer closed";
    PeerError = "kernel: connection broke";
    DeadInQueue = "kernel: dead child accepted";
    EdgeLost = "kernel: edge of the listener lost";
    ShedForDescriptors = "kernel: EMFILE on accept, one shed";
    AcceptFailed = "kernel: EMFILE or ENOMEM on accept";
    SpawnFailed = "kernel: spawn failed";
    Stillborn = "kernel: stillborn child";
    RegisterFailed = "kernel: listener not registered";
    StepFailed = "kernel: step of a rebind failed";
    SignalLost = "kernel: end of a child not told";
    StreamFailed = "kernel: stream of a command failed";
    ExitBeforeEof = "kernel: SIGCHLD before EOF";
    EofBeforeExit = "kernel: EOF before SIGCHLD";
    Orphan = "kernel: orphan reaped";
    PidReused = "kernel: process id used again";
    StaleEvent = "kernel: event of a closed source";
    StrayInput = "kernel: input for what is gone";
    ClockJump = "kernel: clock jumped";
    Metadata = "kernel: metadata service answered";
    AgentRestarted = "kernel: agent killed and started anew";
    Foreign = "kernel: peer that is not the host";
    Hello = "client: HELLO answered";
    Rebound = "client: REBOUND";
    Probed = "client: PROBED";
    Quiesced = "client: QUIESCED";
    Refused = "client: request refused";
    Unknown = "client: EXEC of which the agent cannot tell";
    Unanswered = "client: request not answered in time";
    Started = "client: STARTED or ATTACHED";
    Resumed = "client: session resumed after a cut";
    Output = "client: output checked";
    Gap = "client: GAP";
    Exited = "client: EXITED checked";
    Undecided = "client: session without an end";
    Mistake = "client: mistake refused";
    Fault = "client: EXITED with a fault";
    InputRead = "child: input checked";
    LeftAlone = "schedule: guest left alone for two minutes";
    Converged = "schedule: guest came back and came to rest";
    Ended = "schedule: machine ended";
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally(Vec<u64>);

impl Default for Tally {
    fn default() -> Self {
        Self(vec![0; Mark::ALL.len()])
    }
}

impl Tally {
    pub fn count(&mut self, mark: Mark) {
        self.0[mark as usize] += 1;
    }

    #[must_use]
    pub fn of(&self, mark: Mark) -> u64 {
        self.0[mark as usize]
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// What was never met.
    pub fn missing(&self) -> impl Iterator<Item = Mark> {
        let marks = Mark::ALL.iter().copied();
        marks.filter(|mark| self.of(*mark) == 0)
    }
}
