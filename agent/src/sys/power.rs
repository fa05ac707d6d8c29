//! Ending the machine, and the last log line before it.
//!
//! Not every machine can power off: Firecracker's x86 machines cannot by ACPI, and a guest that
//! tries just halts, which the VMM cannot tell from an idle one. Such a machine ends by a reset,
//! which makes Firecracker exit. The firmware's tables tell which of the two ends this machine.

use std::io;
use std::panic;
use std::path::Path;

use nix::sys::reboot::{RebootMode, reboot};

use super::{console, process};

/// The fixed ACPI description table, as the kernel exports it.
const FADT_PATH: &str = "/sys/firmware/acpi/tables/FACP";

/// Where the flags are in that table (ACPI 6.5, table 5.9).
const FADT_FLAGS_OFFSET: usize = 112;

/// The flag `HW_REDUCED_ACPI`: there are no power management ports, only the sleep control register
/// below.
const FADT_HW_REDUCED: u32 = 1 << 20;

/// Where the address of the sleep control register is, which powers such a machine off; zero if it
/// has none.
const FADT_SLEEP_CONTROL_OFFSET: usize = 248;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerMode {
    /// Power off, or a reset where only that ends the machine.
    Off,
    Restart,
}

/// Writes dirty pages back and ends the machine. Returns only on failure.
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

/// Makes a panic write a line to the console, and as process 1 end the machine.
///
/// If process 1 exited the kernel would panic, and if it hung the host would wait. The end of the
/// machine tells the host at once, and the console log has the reason.
pub(crate) fn power_off_on_panic() {
    panic::set_hook(Box::new(|info| {
        console::write_epitaph(&format!("guest-agent: {info}; powering off"));
        if process::is_init() {
            // A failure could not be reported anywhere.
            let _ = end_machine(PowerMode::Off);
        }
    }));
}

/// Whether power-off ends the machine. Other architectures than x86 always can: the firmware
/// interface by which Linux boots there can power off too.
fn can_power_off() -> bool {
    if cfg!(not(target_arch = "x86_64")) {
        return true;
    }
    // A PC without ACPI cannot power off.
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
    fn only_a_reduced_machine_without_sleep_control_cannot_power_off() {
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
        // A table of an older revision ends before the field and has no reduced hardware.
        assert!(fadt_can_power_off(&fadt(0, 0)[..116]));
    }
}
