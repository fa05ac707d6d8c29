//! The end of the machine, and the last words before it.
//!
//! Not every machine can be switched off: Firecracker's x86 machines have no power button behind
//! ACPI, and a guest that tries just halts, which its VMM cannot tell from being idle. They end by
//! a reset, which Firecracker answers by exiting. So the firmware's tables are asked which of the
//! two ends this machine.

use std::io;
use std::panic;
use std::path::Path;

use nix::sys::reboot::{RebootMode, reboot};

use super::{console, process};

/// The fixed ACPI description table, as the kernel exports it.
const FADT_PATH: &str = "/sys/firmware/acpi/tables/FACP";

/// Where the flags are in that table (ACPI 6.5, table 5.9).
const FADT_FLAGS_OFFSET: usize = 112;

/// `HW_REDUCED_ACPI` among the flags: there are no power management ports, only the sleep control
/// register below.
const FADT_HW_REDUCED: u32 = 1 << 20;

/// Where the address of the sleep control register is, by which such a machine is switched off;
/// zero if it has none.
const FADT_SLEEP_CONTROL_OFFSET: usize = 248;

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerMode {
    /// Off, or reset where that is the only end.
    Off,
    /// Started again.
    Restart,
}

/// Writes dirty pages back, then ends the machine. Returns only on failure.
pub(crate) fn end_machine(mode: PowerMode) -> io::Error {
    nix::unistd::sync();
    let mode = match mode {
        PowerMode::Off if can_power_off() => RebootMode::RB_POWER_OFF,
        PowerMode::Off | PowerMode::Restart => RebootMode::RB_AUTOBOOT,
    };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// From now on a panic of process 1 leaves a line on the console and ends the machine.
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

/// Whether switching off does anything. Only x86 has machines where it does not; elsewhere the
/// firmware interface that Linux needs to start can also switch off.
fn can_power_off() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        return true;
    }
    // A PC without ACPI has no way at all.
    std::fs::read(Path::new(FADT_PATH)).is_ok_and(|fadt| fadt_can_power_off(&fadt))
}

fn fadt_can_power_off(fadt: &[u8]) -> bool {
    let flags = fadt
        .get(FADT_FLAGS_OFFSET..)
        .and_then(|bytes| bytes.first_chunk());
    let is_reduced = flags.is_some_and(|bytes| u32::from_le_bytes(*bytes) & FADT_HW_REDUCED != 0);
    let address = fadt
        .get(FADT_SLEEP_CONTROL_OFFSET..)
        .and_then(|bytes| bytes.first_chunk());
    let has_sleep_control = address.is_some_and(|bytes| u64::from_le_bytes(*bytes) != 0);
    !is_reduced || has_sleep_control
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reduced_machine_without_sleep_control_cannot_be_switched_off() {
        let fadt = |flags: u32, address: u64| {
            let mut table = vec![0; 276];
            table[FADT_FLAGS_OFFSET..][..4].copy_from_slice(&flags.to_le_bytes());
            table[FADT_SLEEP_CONTROL_OFFSET..][..8].copy_from_slice(&address.to_le_bytes());
            table
        };
        assert!(fadt_can_power_off(&fadt(0, 0)), "an ordinary PC");
        assert!(
            fadt_can_power_off(&fadt(FADT_HW_REDUCED, 0xfea0_0600)),
            "QEMU's microvm"
        );
        assert!(
            !fadt_can_power_off(&fadt(FADT_HW_REDUCED, 0)),
            "Firecracker"
        );
        // A table of an older revision ends before the field, and knows no reduced hardware.
        assert!(fadt_can_power_off(&fadt(0, 0)[..116]));
    }
}
