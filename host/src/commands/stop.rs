//! `host-tool stop` and `host-tool rm`: ends a VM, and removes its directory.

use std::time::{Duration, Instant};

use shared::limits::PORT_DEFAULT;

use crate::cli::{Rm, Stop};
use crate::error::Failure;
use crate::lifecycle::ending::{await_exit_record, await_or_end_stray, end, kill, power_off};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::vmdir::state::Stage;
use crate::vmdir::{RunningVm, StateDir, VmDirError};
use crate::vmm::{API_SOCKET, connect, resume_if_paused};

/// Time limit for the guest to power off, without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Powers a VM off; kills its VMM if that fails.
pub(crate) fn stop(command: &Stop) -> Result<(), Failure> {
    let mut record = Record::new();
    record.set("name", command.name.as_str());
    let result = do_stop(command, &mut record);
    record.conclude(result, "stopped", command.json)
}

fn do_stop(command: &Stop, record: &mut Record) -> Result<(), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.begin(Phase::Lock);
    let dir = StateDir::existing(command.state_dir.as_deref())?.vm(&command.name)?;
    let lock = dir.lock(deadline)?;
    record.begin(Phase::Stop);
    let vm = match dir.clone().running_under(&lock) {
        Ok(vm) => vm,
        Err(VmDirError::NotRunning { .. }) => {
            record.set("how", "had ended");
            return await_exit_record(&dir);
        }
        Err(error) => return Err(error.into()),
    };
    if command.force {
        record.set("how", "killed");
        return end(&vm);
    }
    // A guest with paused vCPUs cannot answer.
    let runs = match vm.state.stage {
        Stage::Snapshotting => resume_vcpus(&vm, deadline),
        Stage::Starting | Stage::Ready | Stage::Unproven => Ok(()),
    };
    let asked = runs.and_then(|()| power_off(&vm.guest(PORT_DEFAULT, deadline)));
    if let Err(failure) = asked {
        log::warn!("the guest did not power off; killing the VMM: {failure}");
        record.set("how", "killed");
        return end(&vm);
    }
    record.set("how", "powered off");
    await_exit_record(&dir)
}

/// Resumes the vCPUs that an interrupted snapshot paused.
fn resume_vcpus(vm: &RunningVm, deadline: Instant) -> Result<(), Failure> {
    let process = vm.process.try_clone().ok();
    let socket = vm.dir.file(API_SOCKET);
    let mut vmm = connect(vm.state.vmm_kind, &socket, process, deadline)?;
    resume_if_paused(&mut *vmm, deadline)
}

/// Removes the directory of a VM that has ended.
pub(crate) fn remove(command: &Rm) -> Result<(), Failure> {
    let mut record = Record::new();
    record.set("name", command.name.as_str());
    let result = do_remove(command, &mut record);
    record.conclude(result, "removed", command.json)
}

fn do_remove(command: &Rm, record: &mut Record) -> Result<(), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.begin(Phase::Lock);
    let dir = StateDir::existing(command.state_dir.as_deref())?.vm(&command.name)?;
    let lock = dir.lock(deadline)?;
    record.begin(Phase::Stop);
    match dir.clone().running_under(&lock) {
        Ok(vm) if command.force => kill(&vm)?,
        Ok(_) => {
            let name = &command.name;
            let text =
                format!("the VM '{name}' runs; give --force, or run 'host-tool stop {name}' first");
            return Err(Failure::usage(text));
        }
        Err(VmDirError::NotRunning { .. }) => await_or_end_stray(&dir, &lock)?,
        // A VM with an unreadable state can be removed, too, once its supervisor has ended.
        Err(VmDirError::Json(error)) if command.force => {
            log::warn!("{error}");
            await_or_end_stray(&dir, &lock)?;
        }
        Err(error) => return Err(error.into()),
    }
    match dir.remove() {
        Ok(()) => Ok(()),
        // The supervisor removed it: the command that started the VM was killed.
        Err(VmDirError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
