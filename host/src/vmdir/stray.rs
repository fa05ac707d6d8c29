//! What commands and supervisors that were killed leave: a VMM that nobody knows of, and a
//! directory that never was of use.

use std::io;
use std::time::{Duration, Instant};

use super::LOCK;
use super::error::{VmDirError, file_error};
use super::launch_file::LaunchFile;
use super::lock::Lock;
use super::state::Stage;
use super::vm_dir::VmDir;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::process::{find_in, kill_process};

/// How long the supervisor of a VM that never was of use may take to end it.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the directory of a VM whose start was cut short: the command that made it was killed.
/// Any other VM is left alone.
pub(super) fn remove_cut_short(dir: &VmDir) -> Result<(), VmDirError> {
    let path = dir.file(LOCK);
    if dir.check().is_err() || !path.is_file() {
        return Ok(());
    }
    let Some(lock) = Lock::try_new(&path)? else {
        return Ok(());
    };
    let is_cut_short = match dir.read_state() {
        Ok(state) => state.stage == Stage::Starting,
        Err(VmDirError::Json(error)) => error.is_not_found(),
        Err(_) => false,
    };
    if !is_cut_short {
        return Ok(());
    }
    // Its supervisor ends the VMM, and takes the directory away itself.
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    let supervisor_lock = dir.supervisor_lock(deadline)?;
    let is_over = supervisor_lock.is_some() && dir.is_locked_by(&lock);
    match dir.clone().running_under(&lock) {
        Err(VmDirError::NotRunning { .. }) if is_over => {
            log::info!("removing '{}', whose start was cut short", dir.name());
            drop(supervisor_lock);
            end_stray(dir, &lock, deadline)
                .map_err(io::Error::other)
                .map_err(file_error("end what runs in", dir.path()))?;
            dir.remove()
        }
        // A VMM whose supervisor was killed, too, is there for a look, and for `rm --force`.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Kills a VMM that was started in this directory, if there is one that nobody knows: what a
/// supervisor leaves that is killed before it has told anybody of its VMM.
///
/// `lock` is the directory's: while it is held, no other command starts a VMM there. The
/// supervisor has been killed or is about to end, and `deadline` is for that.
pub fn end_stray(dir: &VmDir, lock: &Lock, deadline: Instant) -> Result<(), Failure> {
    let Ok(LaunchFile(launch)) = LaunchFile::read(dir) else {
        // Nothing was to be started yet.
        return Ok(());
    };
    // What was forked to become the VMM holds the supervisor's lock until it is the VMM.
    let supervisor = dir.supervisor_lock(deadline)?;
    if supervisor.is_none() || !dir.is_locked_by(lock) {
        // One that lives ends its VMM itself, and a VM of somebody else's is none of ours.
        return Ok(());
    }
    let strays = find_in(dir.path(), &launch.args);
    let looked = || format!("cannot look for what was left in {}", dir.path().display());
    for stray in strays.or_fail(Exit::Internal, looked)? {
        log::warn!("killing a VMM that was left in {}", dir.path().display());
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
    fn a_stray_is_killed_under_the_lock_of_its_directory_and_after_its_supervisor() {
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
