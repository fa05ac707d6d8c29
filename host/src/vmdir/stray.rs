//! Leftovers of killed commands and supervisors: VMMs that no file records, and directories of VMs
//! that were never released.

use std::io;
use std::time::{Duration, Instant};

use super::error::{VmDirError, file_error};
use super::launch_file::LaunchFile;
use super::lock::Lock;
use super::state::Stage;
use super::vm_dir::VmDir;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::process::{find_in, kill_process};

/// How long a supervisor may take to end a VM that was never released.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the directory of a VM whose start was interrupted, because the command that created it
/// was killed. Leaves any other VM alone.
pub(super) fn remove_interrupted_start(dir: &VmDir) -> Result<(), VmDirError> {
    let Some(lock) = dir.try_lock()? else {
        return Ok(());
    };
    let is_interrupted = match dir.find_state() {
        Ok(state) => state.is_none_or(|state| state.stage == Stage::Starting),
        Err(_) => false,
    };
    if !is_interrupted {
        return Ok(());
    }
    // Its supervisor ends the VMM and removes the directory itself.
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    let supervisor_lock = dir.supervisor_lock(deadline)?;
    let is_over = supervisor_lock.is_some() && dir.is_locked_by(&lock);
    match dir.clone().running_under(&lock) {
        Err(VmDirError::NotRunning { .. }) if is_over => {
            log::info!("removing '{}', whose start was interrupted", dir.name());
            drop(supervisor_lock);
            end_stray(dir, &lock, deadline)
                .map_err(io::Error::other)
                .map_err(file_error("kill the stray VMM of", dir.path()))?;
            dir.remove()
        }
        // A VMM whose supervisor was killed, too, stays for the user to inspect; `rm --force`
        // removes it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Kills a VMM that was started in this directory but never recorded in `state.json`: a supervisor
/// that is killed before it reports its VMM leaves one.
///
/// `lock` is the directory's: while it is held, no other command starts a VMM there. `deadline` is
/// for the end of the supervisor, which has been killed or is about to end.
pub(crate) fn end_stray(dir: &VmDir, lock: &Lock, deadline: Instant) -> Result<(), Failure> {
    let Ok(LaunchFile(launch)) = LaunchFile::read(dir) else {
        // No supervisor was started yet.
        return Ok(());
    };
    // A forked child holds the supervisor's lock until it executes the VMM. Once the lock is free,
    // the search below finds the VMM, or there is none.
    let supervisor = dir.supervisor_lock(deadline)?;
    if supervisor.is_none() || !dir.is_locked_by(lock) {
        // A living supervisor ends its VMM itself, and a new VM with the old name is not ours.
        return Ok(());
    }
    let strays = find_in(dir.path(), &launch.args);
    let failed = || format!("cannot look for a stray VMM in {}", dir.path().display());
    for stray in strays.or_fail(Exit::Internal, failed)? {
        log::warn!("killing a stray VMM in {}", dir.path().display());
        kill_process(&stray)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::testing::TempDir;
    use crate::vmdir::StateDir;
    use crate::vmm::Launch;

    #[test]
    fn a_stray_is_killed_only_under_its_directorys_lock_and_without_a_supervisor() {
        let temp = TempDir::new("stray");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, lock) = state_dir.create_vm(None).unwrap();
        let (_other, other_lock) = state_dir.create_vm(None).unwrap();
        let launch = Launch {
            program: "cat".into(),
            args: ["-u", "-"].map(OsString::from).into(),
        };
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).current_dir(dir.path());
        let mut stray = command.stdin(Stdio::piped()).spawn().unwrap();

        let at_once = Instant::now();
        end_stray(&dir, &lock, at_once).unwrap();
        assert!(stray.try_wait().unwrap().is_none(), "nothing was launched");
        LaunchFile(launch).write(&dir).unwrap();
        end_stray(&dir, &other_lock, at_once).unwrap();
        assert!(stray.try_wait().unwrap().is_none(), "another VM's lock");
        let supervisor = dir.supervisor_lock(at_once).unwrap();
        end_stray(&dir, &lock, at_once).unwrap();
        assert!(stray.try_wait().unwrap().is_none(), "it has a supervisor");
        drop(supervisor);
        end_stray(&dir, &lock, at_once).unwrap();
        assert_eq!(stray.wait().unwrap().signal(), Some(9));
    }
}
