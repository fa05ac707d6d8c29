//! What the host finds out about an external Firecracker besides what its API says. Another program
//! started it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::process::ProcessId;
use crate::os::uds;
use crate::vmm::{ExternalMachine, MachineSpec};

/// Locks an external VM, which has no VM directory to lock. The lock is a bound abstract socket
/// whose name has the device and inode of the API socket. The kernel frees it when this process
/// ends.
pub(super) fn guard(api_socket: &Path) -> Result<UnixListener, Failure> {
    let found = fs::metadata(api_socket).or_fail(Exit::Start, || {
        format!("cannot look at the API socket {}", api_socket.display())
    })?;
    let name = format!("host-tool/snapshot/{:x}-{:x}", found.dev(), found.ino());
    let bound =
        SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address));
    bound.or_fail(Exit::Usage, || {
        format!(
            "another command takes a snapshot of {}",
            api_socket.display()
        )
    })
}

/// The pid and pidfd of the process that serves the API socket, as far as they are visible in our
/// PID namespace.
pub(super) fn server_process(
    api_socket: &Path,
    deadline: Instant,
) -> Result<(Option<i32>, Option<OwnedFd>), Failure> {
    let stream = uds::connect_unix(api_socket, deadline).or_fail(Exit::Start, || {
        format!("cannot connect to the API socket {}", api_socket.display())
    })?;
    // The kernel reports pid 0 for a process of another PID namespace.
    let credentials = getsockopt(&stream, PeerCredentials).ok();
    let pid = credentials.map(|found| found.pid()).filter(|pid| *pid > 0);
    let process = pid.and_then(|pid| ProcessId::of(pid).ok()?.open().ok()?);
    Ok((pid, process))
}

/// Makes the paths of the drives absolute. Relative ones start at the VMM's working directory.
pub(super) fn with_findable_drives(
    external: ExternalMachine,
    pid: Option<i32>,
) -> Result<MachineSpec, Failure> {
    let mut machine = external.machine;
    for drive in &mut machine.drives {
        let found = match pid {
            Some(pid) => PathBuf::from(format!("/proc/{pid}/cwd")).join(&drive.path),
            None if drive.path.is_absolute() => drive.path.clone(),
            None => {
                let text = format!(
                    "cannot find the machine's drive {}: its Firecracker is in another PID \
                     namespace",
                    drive.path.display()
                );
                return Err(Failure::new(Exit::Artifact, text));
            }
        };
        let found = fs::canonicalize(found);
        drive.path = found.or_fail(Exit::Artifact, || {
            format!("cannot find the machine's drive {}", drive.path.display())
        })?;
    }
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn one_vm_has_one_snapshot_at_a_time() {
        let temp = TempDir::new("guard");
        let at = |name: &str| temp.path().join(name);
        let bind = |name: &str| UnixListener::bind(at(name)).unwrap();
        let (_one, _two) = (bind("one"), bind("two"));
        let held = guard(&at("one")).unwrap();
        let _other = guard(&at("two")).unwrap();
        // The same socket under another name is the same VM.
        std::os::unix::fs::symlink("one", at("link")).unwrap();
        let failure = guard(&at("link")).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        drop(held);
        guard(&at("link")).unwrap();
        assert_eq!(guard(&at("none")).unwrap_err().exit(), Exit::Start);
    }

    #[test]
    fn the_process_behind_a_socket_is_found() {
        let temp = TempDir::new("peer");
        let path = temp.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(30);
        let (pid, process) = server_process(&path, deadline).unwrap();
        assert_eq!(pid, i32::try_from(std::process::id()).ok());
        assert!(process.is_some());
    }

    /// Relative paths in the state mean the VMM's working directory.
    #[test]
    fn relative_drives_are_found_where_the_vmm_runs() {
        let drive = |path: &Path| crate::vmm::Drive {
            path: path.to_owned(),
            read_only: true,
        };
        let external = |path: &Path| ExternalMachine {
            machine: MachineSpec {
                kernel: PathBuf::new(),
                initrd: PathBuf::new(),
                memory_mib: 64,
                vcpu_count: 1,
                drives: vec![drive(path)],
                nic: None,
                append: String::new(),
                guest_cid: 3,
            },
            vsock_path: None,
            interface_count: 0,
        };
        let here = std::env::current_dir().unwrap();
        let pid = i32::try_from(std::process::id()).ok();
        let found = |path: &str| with_findable_drives(external(Path::new(path)), pid);
        let path = found("Cargo.toml").unwrap().drives[0].path.clone();
        assert_eq!(path, here.join("Cargo.toml"));
        assert_eq!(found("none").unwrap_err().exit(), Exit::Artifact);
        // They are never looked up in our own working directory.
        let failure = with_findable_drives(external(Path::new("Cargo.toml")), None).unwrap_err();
        assert!(failure.to_string().contains("PID namespace"), "{failure}");
    }
}
