//! The end of a VM: asked for, or forced.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::message::{PowerAction, Shutdown};

use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::answer::AskErrorReason;
use crate::guest::driver::pause;
use crate::guest::requests::Guest;
use crate::os::clock::to_ms;
use crate::os::process::{has_ended, kill_process, send_signal};
use crate::vmdir::stray::end_stray;
use crate::vmdir::{Lock, RunningVm, VmDir};

/// How much of the time to power off sessions have between TERM and KILL, at most.
const SESSION_GRACE_MAX: Duration = Duration::from_secs(5);

/// How long a VMM is given after TERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a supervisor may take to write down the end of its VMM.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the guest to power off, and waits until the VMM, whose process the watch holds, has ended.
pub(crate) fn power_off(guest: &Guest<'_>) -> Result<(), Failure> {
    let deadline = guest.watch.deadline();
    let left = deadline.saturating_duration_since(Instant::now());
    let grace = (left / 2).min(SESSION_GRACE_MAX);
    let shutdown = Shutdown {
        action: PowerAction::PowerOff,
        grace_ms: to_ms(grace),
    };
    match guest.shutdown(shutdown) {
        Ok(()) => {}
        // It was quicker than its answer.
        Err(error) if matches!(error.reason, AskErrorReason::VmmEnded) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match pause(&guest.watch, deadline) {
        Err(AskErrorReason::VmmEnded) => Ok(()),
        _ => Err(Failure::new(Exit::Deadline, "the VMM did not end in time")),
    }
}

/// Ends the VMM without asking the guest: TERM, and KILL when that is not enough.
pub(crate) fn end(vm: &RunningVm) -> Result<(), Failure> {
    send_signal(&vm.process, Signal::SIGTERM)?;
    if !has_ended(&vm.process, TERM_TIMEOUT) {
        kill_process(&vm.process)?;
    }
    await_exit_record(&vm.dir)
}

/// Kills the VMM of a VM of which nothing is needed any more.
pub(crate) fn kill(vm: &RunningVm) -> Result<(), Failure> {
    kill_process(&vm.process)?;
    await_exit_record(&vm.dir)
}

/// Waits until the supervisor has written down how the VMM ended. Where there is none any more,
/// does what it would have done.
pub(crate) fn await_exit_record(dir: &VmDir) -> Result<(), Failure> {
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    if dir.supervisor_lock(deadline)?.is_none() {
        let text = "the VM's supervisor does not end; see supervisor.log in its directory";
        return Err(Failure::new(Exit::Internal, text));
    }
    dir.remove_sockets();
    Ok(())
}

/// As [`await_exit_record`], for a VM whose VMM nobody knows: there may be one all the same.
pub(crate) fn await_or_end_stray(dir: &VmDir, lock: &Lock) -> Result<(), Failure> {
    await_exit_record(dir)?;
    end_stray(dir, lock, Instant::now() + SUPERVISOR_TIMEOUT)
}
