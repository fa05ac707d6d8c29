//! A Firecracker that another program started, and what there is to know of it besides its API.

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
use crate::vmm::{ForeignMachine, MachineSpec};

/// What keeps two snapshots of one VM apart where there is no VM directory to lock: a name in the
/// abstract socket namespace, made of what tells its API socket from any other. It is gone with
/// this process.
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

/// The process behind the API socket, as far as it can be seen from here.
pub(super) fn server_process(
    api_socket: &Path,
    deadline: Instant,
) -> Result<(Option<i32>, Option<OwnedFd>), Failure> {
    let stream = uds::connect_unix(api_socket, deadline).or_fail(Exit::Start, || {
        format!("cannot connect to the API socket {}", api_socket.display())
    })?;
    // It is 0 for a process of another PID namespace.
    let credentials = getsockopt(&stream, PeerCredentials).ok();
    let pid = credentials.map(|found| found.pid()).filter(|pid| *pid > 0);
    let process = pid.and_then(|pid| ProcessId::of(pid).ok()?.open().ok()?);
    Ok((pid, process))
}

/// Gives drives the paths under which this program finds them. Relative ones begin where the VMM
/// runs.
pub(super) fn with_findable_drives(
    foreign: ForeignMachine,
    pid: Option<i32>,
) -> Result<MachineSpec, Failure> {
    let mut machine = foreign.machine;
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
    fn two_commands_do_not_take_a_snapshot_of_one_vm() {
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

    /// The state holds relative paths, and only the VMM's own directory gives them a meaning.
    #[test]
    fn relative_drives_are_found_where_the_vmm_runs() {
        let drive = |path: &Path| crate::vmm::Drive {
            path: path.to_owned(),
            read_only: true,
        };
        let foreign = |path: &Path| ForeignMachine {
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
        let found = |path: &str| with_findable_drives(foreign(Path::new(path)), pid);
        let path = found("Cargo.toml").unwrap().drives[0].path.clone();
        assert_eq!(path, here.join("Cargo.toml"));
        assert_eq!(found("none").unwrap_err().exit(), Exit::Artifact);
        // In no case are they looked for where this program runs.
        let failure = with_findable_drives(foreign(Path::new("Cargo.toml")), None).unwrap_err();
        assert!(failure.to_string().contains("PID namespace"), "{failure}");
    }
}
