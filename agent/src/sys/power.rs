//! The end of the machine, and the last words before it.

use std::io;
use std::panic;

use nix::sys::reboot::{RebootMode, reboot};

use super::{console, process};

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerMode {
    /// Off. Where the machine cannot be switched off it halts, which a VMM reports just as well.
    Off,
    /// Started again.
    Restart,
}

/// Writes dirty pages back, then ends the machine. Returns only on failure.
pub(crate) fn end_machine(mode: PowerMode) -> io::Error {
    nix::unistd::sync();
    let mode = match mode {
        PowerMode::Off => RebootMode::RB_POWER_OFF,
        PowerMode::Restart => RebootMode::RB_AUTOBOOT,
    };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// From now on a panic of process 1 leaves a line on the console and powers off.
///
/// An init that dies makes the kernel panic, and one that hangs makes the host wait. A host that
/// sees the machine end knows at once, and finds the reason in the console log.
pub(crate) fn power_off_on_panic() {
    panic::set_hook(Box::new(|info| {
        console::write_epitaph(&format!("guest-agent: {info}; powering off"));
        if process::is_init() {
            // Nothing is left to report a failure to.
            let _ = end_machine(PowerMode::Off);
        }
    }));
}
