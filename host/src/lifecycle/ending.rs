//! Ends a VM: the guest powers off, or the host kills the VMM.

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

/// At most this much of the time to power off passes between TERM and KILL of the sessions.
const SESSION_GRACE_MAX: Duration = Duration::from_secs(5);

/// After TERM and this time the VMM gets KILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a supervisor may take to record the end of its VMM.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the guest to power off, and waits until the VMM has ended. The guest's watch must hold the
/// VMM's process.
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
        // The VMM ended before the guest's answer came through.
        Err(error) if matches!(error.reason, AskErrorReason::VmmEnded) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match pause(&guest.watch, deadline) {
        Err(AskErrorReason::VmmEnded) => Ok(()),
        _ => Err(Failure::new(Exit::Deadline, "the VMM did not end in time")),
    }
}

/// Ends the VMM without asking the guest: TERM, then KILL.
pub(crate) fn end(vm: &RunningVm) -> Result<(), Failure> {
    send_signal(&vm.process, Signal::SIGTERM)?;
    if !has_ended(&vm.process, TERM_TIMEOUT) {
        kill_process(&vm.process)?;
    }
    await_exit_record(&vm.dir)
}

/// Kills the VMM at once, for a VM that is not needed any more.
pub(crate) fn kill(vm: &RunningVm) -> Result<(), Failure> {
    kill_process(&vm.process)?;
    await_exit_record(&vm.dir)
}

/// Waits until the supervisor has recorded how the VMM ended. A supervisor that was killed leaves
/// the VMM's sockets, so they are removed here, too.
pub(crate) fn await_exit_record(dir: &VmDir) -> Result<(), Failure> {
    let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
    if dir.supervisor_lock(deadline)?.is_none() {
        let text =
            "the VM's supervisor did not end in time; see supervisor.log in the VM directory";
        return Err(Failure::new(Exit::Internal, text));
    }
    dir.remove_sockets();
    Ok(())
}

/// Like [`await_exit_record`], and also kills a VMM that was started but never recorded in
/// `state.json`.
pub(crate) fn await_or_end_stray(dir: &VmDir, lock: &Lock) -> Result<(), Failure> {
    await_exit_record(dir)?;
    end_stray(dir, lock, Instant::now() + SUPERVISOR_TIMEOUT)
}
