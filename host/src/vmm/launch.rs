//! What a VMM process is started with: a command line, and the VM directory that it runs in.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;
use nix::unistd::symlinkat;

use super::Drive;
use crate::os::dir::{Dir, is_of_type};

/// Name of the API socket inside the VM directory, for every kind of VMM.
pub(crate) const API_SOCKET: &str = "api.sock";

/// Name of Firecracker's vsock socket inside the VM directory.
pub(crate) const VSOCK_SOCKET: &str = "vsock.sock";

/// Name of the VMM's log inside the VM directory: its standard error and, for Firecracker, its log.
/// Firecracker writes the log from the start of the file. So the file has to be new for each
/// process, and other writers have to append.
pub(crate) const VMM_LOG: &str = "vmm.log";

/// Name under which a VMM knows the network interface.
pub(super) const NIC_ID: &str = "nic0";

const DRIVE_PREFIX: &str = "drive";

/// The command line that the supervisor runs in the VM directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Absolute path of the program.
    pub(crate) program: PathBuf,
    /// Arguments after the program's name.
    pub(crate) args: Vec<OsString>,
}

/// What a VMM process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// A [`boot`](super::Vmm::boot).
    Boot,
    /// A [`load`](super::Vmm::load).
    Load,
}

/// Prepares a VM directory for a new VMM process: removes the sockets of an earlier one, on which a
/// bind would fail, and links the drives.
///
/// The VMM opens a drive as [`drive_link`], relative to the VM directory. A snapshot records that
/// name, and each clone has its own file behind it.
pub(crate) fn prepare_dir(vm_dir: &Path, drives: &[Drive]) -> io::Result<()> {
    let dir = Dir::open(vm_dir)?;
    for name in dir.names()? {
        let is_link = is_of_type(&dir.stat_of(&name)?, SFlag::S_IFLNK);
        if name.to_str().is_some_and(|name| is_stale(name, is_link)) {
            dir.unlink(&name)?;
        }
    }
    for (index, drive) in drives.iter().enumerate() {
        symlinkat(&drive.path, &dir, drive_link(index).as_str())?;
    }
    Ok(())
}

/// Whether a directory entry belongs to an earlier VMM process: its sockets, the listeners for
/// connections that the guest opens (`vsock.sock_<port>`), and links to drives. A file with the
/// name of a drive link is not removed: it may be the user's data.
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

/// Name inside the VM directory under which the VMM finds drive number `index`.
pub(crate) fn drive_link(index: usize) -> String {
    format!("{DRIVE_PREFIX}{index}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn what_an_earlier_vmm_left_is_removed_and_the_rest_is_kept() {
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
}
