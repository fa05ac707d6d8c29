//! `host-tool stop` and `host-tool rm`: the end of a VM, and of what it leaves.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::exchange::Request;
use shared::limits::PORT_DEFAULT;
use shared::message::{PowerAction, Shutdown};

use crate::cli::{Rm, Stop};
use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::address::Endpoint;
use crate::guest::answer::AskErrorReason;
use crate::guest::driver::{ask, pause};
use crate::lifecycle::snapshot::let_go_on;
use crate::os::deadline::Watch;
use crate::os::process::{has_ended, kill_process, send_signal};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::vmdir::state::Stage;
use crate::vmdir::stray::end_stray;
use crate::vmdir::{Lock, RunningVm, StateDir, VmDir, VmDirError};

/// How long the guest is given to power off unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How much of that its sessions have between TERM and KILL, at most.
const SESSION_GRACE_MAX: Duration = Duration::from_secs(5);

/// How long a VMM is given after TERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a supervisor may take to write down the end of its VMM.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Powers a VM off, or else kills it.
pub fn stop(command: &Stop) -> Result<(), Failure> {
    let mut record = Record::new();
    record.set("name", command.name.as_str());
    match do_stop(command, &mut record) {
        Ok(()) => record.finish("stopped", command.json),
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn do_stop(command: &Stop, record: &mut Record) -> Result<(), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.begin(Phase::Lock);
    let dir = StateDir::open(command.state_dir.as_deref())?.vm(&command.name)?;
    let lock = dir.lock(deadline)?;
    record.begin(Phase::Stop);
    let vm = match dir.clone().running_under(&lock) {
        Ok(vm) => vm,
        Err(VmDirError::NotRunning { .. }) => {
            record.set("how", "had ended");
            return settle(&dir);
        }
        Err(error) => return Err(error.into()),
    };
    if command.force {
        record.set("how", "killed");
        return end(&vm);
    }
    let watch = Watch::with_process(deadline, Some(vm.process.as_fd()));
    // A guest whose vCPUs stand still cannot be asked for anything.
    let runs = match vm.state.stage {
        Stage::Snapshotting => let_go_on(&vm, deadline),
        Stage::Starting | Stage::Ready | Stage::Unproven => Ok(()),
    };
    let asked = runs.and_then(|()| power_off(&vm.endpoint(PORT_DEFAULT), &watch));
    if let Err(failure) = asked {
        log::warn!("the guest did not power off by itself, so that the VMM is killed: {failure}");
        record.set("how", "killed");
        return end(&vm);
    }
    record.set("how", "powered off");
    settle(&dir)
}

/// Asks the guest to power off, and waits until the VMM, whose process `watch` holds, has ended.
pub fn power_off(endpoint: &Endpoint, watch: &Watch<'_>) -> Result<(), Failure> {
    let left = watch.deadline().saturating_duration_since(Instant::now());
    let grace = (left / 2).min(SESSION_GRACE_MAX);
    let request = Request::Shutdown(Shutdown {
        action: PowerAction::PowerOff,
        grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
    });
    match ask(endpoint, request, watch) {
        Ok(_) => {}
        // It was quicker than its answer.
        Err(error) if matches!(error.reason, AskErrorReason::VmmEnded) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match pause(watch, watch.deadline()) {
        Err(AskErrorReason::VmmEnded) => Ok(()),
        _ => Err(Failure::new(Exit::Deadline, "the VMM did not end in time")),
    }
}

/// Ends the VMM without asking the guest: TERM, and KILL when that is not enough.
fn end(vm: &RunningVm) -> Result<(), Failure> {
    send_signal(&vm.process, Signal::SIGTERM)?;
    if !has_ended(&vm.process, TERM_TIMEOUT) {
        kill_process(&vm.process)?;
    }
    settle(&vm.dir)
}

/// Kills the VMM of a VM of which nothing is needed any more.
pub fn kill(vm: &RunningVm) -> Result<(), Failure> {
    kill_process(&vm.process)?;
    settle(&vm.dir)
}

/// Waits until the supervisor has written down how the VMM ended. Where there is none any more,
/// does what it would have done.
fn settle(dir: &VmDir) -> Result<(), Failure> {
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    if dir.supervisor_lock(deadline)?.is_none() {
        let text = "the VM's supervisor does not end; see supervisor.log in its directory";
        return Err(Failure::new(Exit::Internal, text));
    }
    dir.remove_sockets();
    Ok(())
}

/// As [`settle`], for a VM whose VMM nobody knows: there may be one all the same.
fn settle_stray(dir: &VmDir, lock: &Lock) -> Result<(), Failure> {
    settle(dir)?;
    end_stray(dir, lock, Instant::now() + SUPERVISOR_TIMEOUT)
}

/// Removes what a VM left.
pub fn remove(command: &Rm) -> Result<(), Failure> {
    let mut record = Record::new();
    record.set("name", command.name.as_str());
    match do_remove(command, &mut record) {
        Ok(()) => record.finish("removed", command.json),
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn do_remove(command: &Rm, record: &mut Record) -> Result<(), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.begin(Phase::Lock);
    let dir = StateDir::open(command.state_dir.as_deref())?.vm(&command.name)?;
    let lock = dir.lock(deadline)?;
    record.begin(Phase::Stop);
    match dir.clone().running_under(&lock) {
        Ok(vm) if command.force => kill(&vm)?,
        Ok(_) => {
            let name = &command.name;
            let text = format!("the VM '{name}' runs; 'host-tool stop {name}' first, or --force");
            return Err(Failure::usage(text));
        }
        Err(VmDirError::NotRunning { .. }) => settle_stray(&dir, &lock)?,
        // Whose state cannot be read can still be taken away, once no supervisor is at work.
        Err(VmDirError::Json(error)) if command.force => {
            log::warn!("{error}");
            settle_stray(&dir, &lock)?;
        }
        Err(error) => return Err(error.into()),
    }
    match dir.remove() {
        Ok(()) => Ok(()),
        // Its supervisor took it away itself: the command that started it was killed.
        Err(VmDirError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
