//! Virtual machine monitors: one trait, two implementations, Firecracker and QEMU.
//!
//! The VM's supervisor starts the VMM process with the VM directory as its working directory. So
//! all paths of sockets and drives that a VMM records are relative, and clones never collide.
//! Commands then control the VMM over its API socket. A value of [`Vmm`] is one connection to it:
//! a command opens it, uses it for one phase, and drops it.
//!
//! Elsewhere: the guest (`guest`), the order of phases (`lifecycle`), state files and locks
//! (`vmdir`).

mod binary;
mod error;
mod faults;
pub(crate) mod firecracker;
mod format;
mod kvm;
mod launch;
mod machine;
pub(crate) mod metadata;
pub(crate) mod network;
pub(crate) mod qemu;
mod socket;
mod stream;
mod version;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::address::GuestAddress;
use crate::os::deadline::Watch;

pub(crate) use binary::{FindError, VmmBinary, find_binary};
pub(crate) use error::VmmError;
pub(crate) use faults::{Gate, Purpose, gate};
pub(crate) use firecracker::ExternalMachine;
pub(crate) use format::load_gate;
pub(crate) use kvm::host_problem;
pub(crate) use launch::{
    API_SOCKET, Launch, Start, VMM_LOG, VSOCK_SOCKET, drive_link, prepare_dir,
};
pub(crate) use machine::{Drive, MachineSpec, Nic, OpenFile, StateFiles};
pub(crate) use version::{VersionError, VmmKind, VmmVersion};

/// The state of the machine, as the VMM reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Nothing was booted or loaded yet.
    NotStarted,
    Running,
    /// The vCPUs are paused and can be resumed.
    Paused,
    /// The machine cannot run again (QEMU: shutdown, internal error).
    Ended,
}

/// One VMM process, controlled over its API socket. Every call blocks until it is answered, the
/// deadline passes, or the process ends.
pub(crate) trait Vmm: fmt::Debug {
    fn kind(&self) -> VmmKind;

    /// Whether the next answer on this connection is the answer to the next call. False after a
    /// call has timed out or failed half-way: its late answer could be taken for the next one's.
    /// Connect again then. A refusal is an answer and changes nothing.
    fn is_in_step(&self) -> bool;

    /// The version that the running process reports.
    fn version(&mut self, deadline: Instant) -> Result<VmmVersion, VmmError>;

    fn run_state(&mut self, deadline: Instant) -> Result<RunState, VmmError>;

    /// Gives a new process the data that its metadata service serves to the guest.
    fn put_metadata(&mut self, data: &Value, deadline: Instant) -> Result<(), VmmError>;

    /// Configures a new process as `spec` says and starts the vCPUs.
    fn boot(&mut self, spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError>;

    /// Loads a snapshot into a new process and resumes it, in the same step where the VMM can.
    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError>;

    fn pause(&mut self, deadline: Instant) -> Result<(), VmmError>;

    /// Writes the paused machine to `files`. `progress` gets the number of bytes written so far.
    ///
    /// The files are not synced to the disk: the caller can do that after it has resumed the guest.
    fn save(
        &mut self,
        files: &StateFiles,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError>;

    /// Resumes a paused machine, also one that another command paused, and ends a save that is
    /// still under way. Does nothing to a machine that runs: on Firecracker 1.16.0 and 1.16.1 a
    /// redundant resume breaks host-to-guest vsock permanently.
    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError>;
}

/// The address of the guest of the VM in `vm_dir`.
pub(crate) fn guest_address(kind: VmmKind, vm_dir: &Path, guest_cid: u32) -> GuestAddress {
    match kind {
        VmmKind::Firecracker => GuestAddress::HybridVsock {
            uds_path: vm_dir.join(VSOCK_SOCKET),
        },
        VmmKind::Qemu => GuestAddress::Vsock { cid: guest_cid },
    }
}

/// The command line for a VMM process of the VM `name`, to be run in a VM directory that
/// [`prepare_dir`] has prepared.
///
/// The guest's serial console is the process's standard output; standard error belongs in
/// [`VMM_LOG`]. Firecracker is told the machine later, over its API. QEMU takes it from the command
/// line, and a load needs the machine that was saved. `HOST_TOOL_FIRECRACKER_ARGS` and
/// `HOST_TOOL_QEMU_ARGS` add arguments, separated by blanks.
pub(crate) fn launch(binary: &VmmBinary, name: &str, spec: &MachineSpec, start: Start) -> Launch {
    let (mut args, variable) = match binary.kind {
        VmmKind::Firecracker => (firecracker::launch_args(name), "HOST_TOOL_FIRECRACKER_ARGS"),
        VmmKind::Qemu => (qemu::launch_args(name, spec, start), "HOST_TOOL_QEMU_ARGS"),
    };
    let extra = env::var(variable).unwrap_or_default();
    args.extend(extra.split_whitespace().map(OsString::from));
    Launch {
        program: binary.path.clone(),
        args,
    }
}

/// Connects to a VMM that serves `api_socket` already. `process` is its pidfd, if known.
pub(crate) fn connect(
    kind: VmmKind,
    api_socket: &Path,
    process: Option<OwnedFd>,
    deadline: Instant,
) -> Result<Box<dyn Vmm>, VmmError> {
    let stream = socket::connect(api_socket, deadline)?;
    Ok(wrap(kind, stream, process))
}

/// Connects to a VMM that was just started, as soon as it serves `api_socket`.
pub(crate) fn await_and_connect(
    kind: VmmKind,
    api_socket: &Path,
    process: Option<OwnedFd>,
    deadline: Instant,
) -> Result<Box<dyn Vmm>, VmmError> {
    let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
    let stream = socket::await_and_connect(api_socket, &watch)?;
    Ok(wrap(kind, stream, process))
}

/// Connects to a Firecracker that another program started, and queries the machine that it runs.
pub(crate) fn adopt(
    api_socket: &Path,
    process: Option<OwnedFd>,
    deadline: Instant,
) -> Result<(Box<dyn Vmm>, ExternalMachine), VmmError> {
    let stream = socket::connect(api_socket, deadline)?;
    let mut vmm = firecracker::Firecracker::new(stream, process);
    let external = vmm.describe(deadline)?;
    Ok((Box::new(vmm), external))
}

/// Resumes the vCPUs if an interrupted snapshot has left them paused.
pub(crate) fn resume_if_paused(vmm: &mut dyn Vmm, deadline: Instant) -> Result<(), Failure> {
    match vmm.run_state(deadline)? {
        RunState::Paused => {
            log::warn!("an interrupted snapshot left the VM paused; resuming it");
            Ok(vmm.resume(deadline)?)
        }
        RunState::Running => Ok(()),
        RunState::NotStarted | RunState::Ended => Err(Failure::new(
            Exit::Start,
            "the VMM has no machine that can be resumed",
        )),
    }
}

fn wrap(kind: VmmKind, stream: UnixStream, process: Option<OwnedFd>) -> Box<dyn Vmm> {
    match kind {
        VmmKind::Firecracker => Box::new(firecracker::Firecracker::new(stream, process)),
        VmmKind::Qemu => Box::new(qemu::Qemu::new(stream, process)),
    }
}

#[cfg(test)]
pub(crate) mod testing;
