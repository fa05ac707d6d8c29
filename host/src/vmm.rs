//! Virtual machine monitors: one trait, two real implementations.
//!
//! A VMM process is started by the VM's supervisor with the VM directory as its working directory
//! (so every socket and file path it records is relative, and clones never collide). Everything
//! else goes over its API socket, from whichever short-lived command needs it. A value of
//! [`Vmm`] is one connection's worth of that: it is opened, used for one phase, and dropped.
//!
//! What is not here: the guest (see `guest`), the order of phases (see `boot`, `snapshot`,
//! `restore`), state files and locks (see `vmdir`).

mod binary;
mod error;
pub(crate) mod firecracker;
mod format;
mod kvm;
pub(crate) mod qemu;
mod socket;
pub(crate) mod version;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) use binary::{FindError, find_binary};
pub(crate) use error::VmmError;
pub(crate) use firecracker::ForeignMachine;
pub(crate) use format::load_gate;
pub(crate) use kvm::host_problem;
pub(crate) use version::{Gate, Purpose, VersionError, VmmKind, VmmVersion, gate};

use serde_json::Value;
use shared::message::MacAddress;

use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::address::GuestAddress;
use crate::os::deadline::Watch;

/// Name of the API socket inside the VM directory, for every kind of VMM.
pub(crate) const API_SOCKET: &str = "api.sock";

/// Name under which a VMM knows the network interface.
pub(crate) const NIC_ID: &str = "nic0";

/// Name of Firecracker's vsock socket inside the VM directory.
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";

/// Name of the VMM's own log inside the VM directory: what it prints on standard error, and on
/// Firecracker its log as well. Firecracker writes that from the start of the file, so the file
/// has to be fresh, and whoever else writes to it has to append.
pub(crate) const VMM_LOG: &str = "vmm.log";

/// A VMM binary found on this machine.
#[derive(Debug, Clone)]
pub(crate) struct VmmBinary {
    /// Which implementation drives it.
    pub(crate) kind: VmmKind,
    /// Absolute path of the program.
    pub(crate) path: PathBuf,
    /// What `--version` printed, parsed.
    pub(crate) version: VmmVersion,
}

/// The command line that the supervisor runs in the VM directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Absolute path of the program.
    pub(crate) program: PathBuf,
    /// Arguments after the program's name.
    pub(crate) args: Vec<OsString>,
}

/// The machine that `boot` asks for. All paths are absolute, all files were checked by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineSpec {
    /// Uncompressed ELF kernel.
    pub(crate) kernel: PathBuf,
    /// Initramfs with the agent as `/init`.
    pub(crate) initrd: PathBuf,
    pub(crate) memory_mib: u32,
    pub(crate) vcpu_count: u8,
    /// Block devices, in order.
    pub(crate) drives: Vec<Drive>,
    /// The network interface, if there is one.
    pub(crate) nic: Option<Nic>,
    /// Appended to the kernel command line that the VMM needs.
    pub(crate) append: String,
    /// The guest's vsock CID, 3 or more. Only vhost-vsock shows it on the host.
    pub(crate) guest_cid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    /// Image file on the host.
    pub(crate) path: PathBuf,
    /// The guest may not write to it.
    pub(crate) read_only: bool,
}

/// The guest's network interface, on a tap device that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Name of the tap device.
    pub(crate) tap: String,
    /// The MAC address that the machine was booted with. A clone's guest may have been given
    /// another since.
    pub(crate) mac: MacAddress,
    /// Firecracker's metadata service answers on it.
    pub(crate) has_mmds: bool,
}

/// What the VMM says of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Nothing was booted or loaded yet.
    NotStarted,
    Running,
    /// The vCPUs are stopped, and a resume is possible.
    Paused,
    /// The VMM is in a state from which it cannot run again (QEMU: shutdown, internal error).
    Ended,
}

/// Which way a VMM process that is being started will go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It will be told to [`boot`](Vmm::boot).
    Boot,
    /// It will be told to [`load`](Vmm::load).
    Load,
}

/// Files of one VMM state inside an artifact directory. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateFiles {
    /// Device and vCPU state. For QEMU the migration stream, memory included.
    pub(crate) state: PathBuf,
    /// Guest memory; `None` where it is part of `state`.
    pub(crate) memory: Option<PathBuf>,
    /// The state names a vsock socket elsewhere than in the VM directory, so that a load has to
    /// name that one.
    pub(crate) overrides_vsock: bool,
    /// The tap device to load with, where it is not the one that the state names. QEMU is told on
    /// its command line.
    pub(crate) tap: Option<String>,
}

impl StateFiles {
    /// The files that a VMM of this kind needs, under their usual names in `dir`.
    #[must_use]
    pub(crate) fn in_dir(kind: VmmKind, dir: &Path) -> Self {
        let memory = match kind {
            VmmKind::Firecracker => Some(dir.join("memory")),
            VmmKind::Qemu => None,
        };
        Self {
            state: dir.join("vmstate"),
            memory,
            overrides_vsock: false,
            tap: None,
        }
    }
}

/// One VMM process, spoken to over its API socket. Every call blocks until it is answered, the
/// deadline passes, or the process dies.
pub(crate) trait Vmm: fmt::Debug {
    fn kind(&self) -> VmmKind;

    /// Whether each answer that comes next over this connection is that to the next call. It is not
    /// once a call has failed otherwise than by a refusal: its answer may still come.
    fn is_in_step(&self) -> bool;

    /// The version that the running process reports.
    fn version(&mut self, deadline: Instant) -> Result<VmmVersion, VmmError>;

    /// What the VMM says of the machine.
    fn run_state(&mut self, deadline: Instant) -> Result<RunState, VmmError>;

    /// Gives a fresh process what its metadata service is to tell the guest.
    fn put_metadata(&mut self, data: &Value, deadline: Instant) -> Result<(), VmmError>;

    /// Configures a fresh process as `spec` says and starts the vCPUs.
    fn boot(&mut self, spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError>;

    /// Loads a snapshot into a fresh process and resumes it in the same step where the VMM can.
    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError>;

    fn pause(&mut self, deadline: Instant) -> Result<(), VmmError>;

    /// Writes the paused machine to `files`. `progress` is told the bytes written so far.
    ///
    /// That the files survive a power cut is up to the caller, who can see to it after the guest
    /// was resumed.
    fn save(
        &mut self,
        files: &StateFiles,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError>;

    /// Lets a paused machine run again, whoever paused it, and whatever of a save is still under
    /// way. A machine that runs is left alone: on Firecracker 1.16.0 and 1.16.1 a redundant resume
    /// ends host-to-guest vsock for good.
    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError>;
}

/// The address under which the guest of the VM in `vm_dir` answers.
#[must_use]
pub(crate) fn guest_address(kind: VmmKind, vm_dir: &Path, guest_cid: u32) -> GuestAddress {
    match kind {
        VmmKind::Firecracker => GuestAddress::HybridVsock {
            uds_path: vm_dir.join(VSOCK_SOCKET),
        },
        VmmKind::Qemu => GuestAddress::Vsock { cid: guest_cid },
    }
}

/// The command line for a VMM process that runs in its VM directory, under the name `name`. The
/// directory went through [`prepare_dir`] before.
///
/// Its standard output is the guest's serial console; its standard error belongs into [`VMM_LOG`].
/// Firecracker is told about the machine later, over its API; QEMU needs it here, and for a load
/// the machine has to be the one that was saved. `HOST_TOOL_FIRECRACKER_ARGS` and
/// `HOST_TOOL_QEMU_ARGS` add arguments, separated by blanks.
#[must_use]
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

/// Makes a VM directory fit for a new VMM process: unlinks the sockets that an earlier one left,
/// which would make the new one fail to bind, and links the drives.
///
/// VMMs open a drive by its link's name, [`drive_link`], relative to the VM directory. A snapshot
/// records that name, so that each clone finds its own file behind it.
pub(crate) fn prepare_dir(vm_dir: &Path, drives: &[Drive]) -> io::Result<()> {
    for entry in fs::read_dir(vm_dir)? {
        let entry = entry?;
        let is_link = entry.file_type()?.is_symlink();
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| is_stale(name, is_link))
        {
            fs::remove_file(entry.path())?;
        }
    }
    for (index, drive) in drives.iter().enumerate() {
        symlink(&drive.path, vm_dir.join(drive_link(index)))?;
    }
    Ok(())
}

/// Says whether a file must not be there when a VMM starts: its sockets, the listeners for
/// connections that the guest opens (`vsock.sock_<port>`), and links to drives. A drive that is
/// itself in the directory is somebody's data, and stays.
fn is_stale(name: &str, is_link: bool) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let is_guest_listener = |name: &str| {
        let port = name
            .strip_prefix(VSOCK_SOCKET)
            .and_then(|rest| rest.strip_prefix('_'));
        port.is_some_and(is_number)
    };
    name == API_SOCKET
        || name == VSOCK_SOCKET
        || is_guest_listener(name)
        || (is_link && name.strip_prefix(DRIVE_PREFIX).is_some_and(is_number))
}

const DRIVE_PREFIX: &str = "drive";

/// Name inside the VM directory under which the VMM finds drive number `index`.
#[must_use]
pub(crate) fn drive_link(index: usize) -> String {
    format!("{DRIVE_PREFIX}{index}")
}

/// Connects to a VMM that serves `api_socket` already. `process` is its pidfd, where known.
pub(crate) fn connect(
    kind: VmmKind,
    api_socket: &Path,
    process: Option<OwnedFd>,
    deadline: Instant,
) -> Result<Box<dyn Vmm>, VmmError> {
    let watch = Watch::with_process(deadline, process.as_ref().map(AsFd::as_fd));
    let stream = socket::connect(api_socket, &watch)?;
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

/// Connects to a Firecracker that another program started, and asks what machine that described.
pub(crate) fn adopt(
    api_socket: &Path,
    process: Option<OwnedFd>,
    deadline: Instant,
) -> Result<(Box<dyn Vmm>, ForeignMachine), VmmError> {
    let stream = socket::connect(api_socket, &Watch::until(deadline))?;
    let mut vmm = firecracker::Firecracker::new(stream, process);
    let foreign = vmm.describe(deadline)?;
    Ok((Box::new(vmm), foreign))
}

/// Has the vCPUs run: an interrupted snapshot may have left them paused.
pub(crate) fn resume_if_paused(vmm: &mut dyn Vmm, deadline: Instant) -> Result<(), Failure> {
    match vmm.run_state(deadline)? {
        RunState::Paused => {
            log::warn!("an interrupted snapshot left the VM paused; it goes on now");
            Ok(vmm.resume(deadline)?)
        }
        RunState::Running => Ok(()),
        RunState::NotStarted | RunState::Ended => Err(Failure::new(
            Exit::Start,
            "the VMM has no machine that can go on",
        )),
    }
}

fn wrap(kind: VmmKind, stream: UnixStream, process: Option<OwnedFd>) -> Box<dyn Vmm> {
    match kind {
        VmmKind::Firecracker => Box::new(firecracker::Firecracker::new(stream, process)),
        VmmKind::Qemu => Box::new(qemu::Qemu::new(stream, process)),
    }
}

pub(crate) mod metadata;
pub(crate) mod network;
#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_directory_is_freed_of_what_an_earlier_vmm_left() {
        let temp = TempDir::new("prepare");
        let at = |name: &str| temp.path().join(name);
        for name in [API_SOCKET, VSOCK_SOCKET, "vsock.sock_5252"] {
            drop(UnixListener::bind(at(name)).unwrap());
        }
        for name in ["state.json", "vsock.sock_x", "drive", "drive7"] {
            fs::write(at(name), "kept").unwrap();
        }
        let drive = |path: &str| Drive {
            path: path.into(),
            read_only: false,
        };
        prepare_dir(temp.path(), &[drive("/old"), drive("/old"), drive("/old")]).unwrap();
        prepare_dir(temp.path(), &[drive("/a"), drive("/b")]).unwrap();

        assert_eq!(fs::read_link(at("drive0")).unwrap(), Path::new("/a"));
        assert_eq!(fs::read_link(at("drive1")).unwrap(), Path::new("/b"));
        let entries = fs::read_dir(temp.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let expected = [
            "drive",
            "drive0",
            "drive1",
            "drive7",
            "state.json",
            "vsock.sock_x",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn state_files_by_kind() {
        let files = StateFiles::in_dir(VmmKind::Firecracker, Path::new("/a"));
        assert_eq!(files.state, Path::new("/a/vmstate"));
        assert_eq!(files.memory.as_deref(), Some(Path::new("/a/memory")));
        assert_eq!(
            StateFiles::in_dir(VmmKind::Qemu, Path::new("/a")).memory,
            None
        );
    }
}
