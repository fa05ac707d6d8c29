//! What the agent is told when it starts.

use std::time::Duration;

use shared::id::Instance;

/// Ended sessions that are remembered, as the agent ships.
pub const RESULTS_MAX: usize = 256;

/// Memory for rings, standard inputs and connections in a machine whose size is not known.
const MEMORY_LEN_DEFAULT: usize = 64 * 1024 * 1024;

/// What the agent knows about itself and its machine from the start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Version of the agent.
    pub version: String,
    /// Drawn at random for this run of the agent.
    pub instance: Instance,
    /// The kernel's boot id, the same in every clone of one boot.
    pub boot_id: String,
    pub kernel: String,
    /// Whether the agent is process 1, which owns every process of the machine.
    pub is_init: bool,
    /// Bytes for all rings, standard inputs and connections together.
    pub memory_len: usize,
    /// Time between TERM and KILL for running sessions after SIGTERM or SIGPWR.
    pub grace: Duration,
    /// Ended sessions that are remembered. The oldest is forgotten first.
    pub results_max: usize,
    pub confinement: Confinement,
    /// Whether the image has hooks for after a restore.
    pub has_restore_hooks: bool,
    /// Whether to watch the metadata service for another restore epoch.
    pub watches_mmds: bool,
    /// The program that the image asks for.
    pub workload: Option<WorkloadSettings>,
}

/// How long sessions have between SIGTERM and SIGKILL when a signal ends the agent.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

impl Settings {
    /// Those of an agent that ships, as a service in a machine of which nothing is known.
    pub fn new(instance: Instance) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance,
            boot_id: String::new(),
            kernel: String::new(),
            is_init: false,
            memory_len: MEMORY_LEN_DEFAULT,
            grace: SIGNAL_GRACE,
            results_max: RESULTS_MAX,
            confinement: Confinement::default(),
            has_restore_hooks: false,
            watches_mmds: false,
            workload: None,
        }
    }
}

/// The most that the processes of a session may use together. `None` is the guest's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    pub pids_max: Option<u64>,
    /// Bytes.
    pub memory_max: Option<u64>,
}

impl Limits {
    /// These limits, and others where there are none.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            pids_max: self.pids_max.or(others.pids_max),
            memory_max: self.memory_max.or(others.memory_max),
        }
    }
}

/// How far the guest can hold its sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Confinement {
    /// Whether each session runs in a cgroup of its own.
    pub has_cgroups: bool,
    /// Whether these can have limits.
    pub has_limits: bool,
    /// The image's limits for a session whose request has none.
    pub limits: Limits,
}

/// The workload: the image's own program, which runs as long as the machine does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadSettings {
    /// Arguments, the program first; at least one.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` pairs on top of the agent's default environment.
    pub env: Vec<Vec<u8>>,
    /// `/` when missing.
    pub cwd: Option<Vec<u8>>,
    /// The user it runs as, in the form that EXEC has; the agent's when missing.
    pub user: Option<Vec<u8>>,
    pub restart: Restart,
    pub at_end: WorkloadEnd,
}

/// When the workload is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    No,
    /// After an end by a signal or with a code other than 0, and when it could not be started.
    OnFailure,
}

/// What follows when the workload has ended and is not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadEnd {
    /// The guest runs on, and a host can ask for the result.
    Keep,
    /// The machine is switched off; a service returns.
    PowerOff,
}
