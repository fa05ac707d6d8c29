//! What the agent is told when it starts.

use std::time::Duration;

/// What the agent knows of itself and of its machine from the start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Version of this program.
    pub version: String,
    /// The kernel's boot id, which is the same in every clone of one boot.
    pub boot_id: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether this is process 1, which owns every process of the machine.
    pub is_init: bool,
    /// What SIGTERM and SIGPWR give running sessions between TERM and KILL.
    pub grace: Duration,
    /// Whether the image has hooks for after a restore.
    pub has_restore_hooks: bool,
    /// Whether to watch the metadata service for another restore epoch.
    pub watches_mmds: bool,
    /// The program that the image asks for.
    pub workload: Option<WorkloadSettings>,
}

/// A program that runs as long as the machine does, and is not asked for by any host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadSettings {
    /// Arguments, the program first; at least one.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` pairs on top of the agent's default environment.
    pub env: Vec<Vec<u8>>,
    /// Working directory; `/` when missing.
    pub cwd: Option<Vec<u8>>,
    /// Whose rights it gets, as EXEC has it; the agent's when missing.
    pub user: Option<Vec<u8>>,
    /// Whether it is started again.
    pub restart: Restart,
    /// What its last end means.
    pub at_end: WorkloadEnd,
}

/// When the workload is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    /// Never.
    No,
    /// When it ended with another code than 0, by a signal, or could not be started.
    OnFailure,
}

/// What it means that the workload has ended and is not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadEnd {
    /// Nothing: the guest goes on, and its result can be asked for.
    Keep,
    /// The machine is switched off; a service returns.
    PowerOff,
}
