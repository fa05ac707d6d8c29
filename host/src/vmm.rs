//! Virtual machine monitors: one trait, two real implementations.
//!
//! A VMM process is started by the VM's supervisor with the VM directory as its working directory
//! (so every socket and file path it records is relative, and clones never collide). Everything
//! else goes over its API socket, from whichever short-lived command needs it. A value of
//! [`Vmm`] is one connection's worth of that: it is opened, used for one phase, and dropped.
//!
//! What is not here: the guest (see `guest`), the order of phases (see `boot`, `snapshot`,
//! `restore`), state files and locks (see `vmdir`).

pub mod firecracker;
pub mod qemu;
pub mod version;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use version::{VmmKind, VmmVersion};

/// Name of the API socket inside the VM directory, for every kind of VMM.
pub const API_SOCKET: &str = "api.sock";

/// Name of Firecracker's vsock socket inside the VM directory.
pub const VSOCK_SOCKET: &str = "vsock.sock";

/// A VMM binary found on this machine.
#[derive(Debug, Clone)]
pub struct VmmBinary {
    /// Which implementation drives it.
    pub kind: VmmKind,
    /// Absolute path of the program.
    pub path: PathBuf,
    /// What `--version` printed, parsed.
    pub version: VmmVersion,
}

/// The command line that the supervisor runs in the VM directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
}

/// The machine that `boot` asks for. All paths are absolute, all files were checked by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Initramfs with the agent as `/init`.
    pub initrd: PathBuf,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Number of virtual CPUs.
    pub vcpu_count: u8,
    /// Block devices, in order.
    pub drives: Vec<Drive>,
    /// Appended to the kernel command line that the VMM needs.
    pub append: String,
    /// The guest's vsock CID, 3 or more. Only vhost-vsock shows it on the host.
    pub guest_cid: u32,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Image file on the host.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
}

/// How the host reaches the guest's vsock port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAddress {
    /// Firecracker's Unix socket with its `CONNECT <port>` line.
    HybridVsock {
        /// Path of the Unix socket.
        uds_path: PathBuf,
    },
    /// The host kernel's AF_VSOCK (vhost-vsock).
    Vsock {
        /// The guest's context id.
        cid: u32,
    },
    /// A plain Unix socket on which an agent listens (development and tests).
    Unix {
        /// Path of the socket.
        path: PathBuf,
    },
}

/// What the VMM says of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Nothing was booted or loaded yet.
    NotStarted,
    /// The vCPUs run.
    Running,
    /// The vCPUs are stopped, and a resume is possible.
    Paused,
    /// The VMM is in a state from which it cannot run again (QEMU: shutdown, internal error).
    Ended,
}

/// Files of one VMM state inside an artifact directory. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFiles {
    /// Device and vCPU state. For QEMU the migration stream, memory included.
    pub state: PathBuf,
    /// Guest memory; `None` where it is part of `state`.
    pub memory: Option<PathBuf>,
}

/// One VMM process, spoken to over its API socket. Every call blocks until it is answered, the
/// deadline passes, or the process dies.
pub trait Vmm: fmt::Debug {
    /// Which VMM this is.
    fn kind(&self) -> VmmKind;

    /// The version that the running process reports.
    fn version(&mut self, deadline: Instant) -> Result<VmmVersion, VmmError>;

    /// What the VMM says of the machine.
    fn run_state(&mut self, deadline: Instant) -> Result<RunState, VmmError>;

    /// Configures a fresh process as `spec` says and starts the vCPUs.
    fn boot(&mut self, spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError>;

    /// Loads a snapshot into a fresh process and resumes it in the same step where the VMM can.
    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError>;

    /// Stops the vCPUs.
    fn pause(&mut self, deadline: Instant) -> Result<(), VmmError>;

    /// Writes the paused machine to `files`. `progress` is told the bytes written so far.
    fn save(
        &mut self,
        files: &StateFiles,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError>;

    /// Lets a paused machine run again. Never called for a machine that runs: on Firecracker
    /// 1.16.0 and 1.16.1 a redundant resume ends host-to-guest vsock for good.
    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError>;

    /// Asks the VMM process to end, where its API can. The caller still waits for, and may kill, it.
    fn quit(&mut self, deadline: Instant) -> Result<(), VmmError>;
}

/// The address under which the guest of the VM in `vm_dir` answers.
#[must_use]
pub fn guest_address(kind: VmmKind, vm_dir: &Path, guest_cid: u32) -> GuestAddress {
    match kind {
        VmmKind::Firecracker => GuestAddress::HybridVsock { uds_path: vm_dir.join(VSOCK_SOCKET) },
        VmmKind::Qemu => GuestAddress::Vsock { cid: guest_cid },
    }
}
