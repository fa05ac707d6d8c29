//! The names of all files in a VM directory. A file of another name is not a VM's, and is never
//! removed.

use crate::vmm::{API_SOCKET, VMM_LOG, VSOCK_SOCKET, drive_link};

/// The lock that a command holds while it changes the VM.
pub(super) const LOCK: &str = "lock";
pub(super) const SUPERVISOR_LOCK: &str = "supervisor.lock";
pub(super) const OUTPUT_LOCK: &str = "output.lock";
pub(super) const STATE: &str = "state.json";
/// The state that the supervisor publishes when the VM is in use.
pub(super) const NEXT_STATE: &str = "state.next.json";
pub(super) const EXIT: &str = "exit.json";
pub(super) const WORKLOAD: &str = "workload.json";
pub(super) const LAUNCH: &str = "launch.json";
pub(super) const PENDING_REBIND: &str = "naming.json";
pub(super) const HEALTH_CHECK: &str = "health-check.json";
pub(super) const HEALTH: &str = "health.json";
pub(super) const OUTPUT_RECORD: &str = "output.json";
pub(crate) const OUTPUT_LOG: &str = "output.log";
pub(crate) const OLDER_LOG: &str = "output.log.1";
/// The guest's serial console, as the VMM printed it.
pub(crate) const CONSOLE_LOG: &str = "console.log";
const OLDER_CONSOLE_LOG: &str = "console.log.1";
/// The supervisor's standard error.
pub(crate) const SUPERVISOR_LOG: &str = "supervisor.log";

/// Ends the name of a JSON file that is being written.
pub(super) const TMP_SUFFIX: &str = ".tmp";

/// Files that are replaced by rename.
const REPLACED: [&str; 9] = [
    STATE,
    NEXT_STATE,
    EXIT,
    WORKLOAD,
    LAUNCH,
    PENDING_REBIND,
    HEALTH_CHECK,
    HEALTH,
    OUTPUT_RECORD,
];

const OTHERS: [&str; 11] = [
    LOCK,
    SUPERVISOR_LOCK,
    OUTPUT_LOCK,
    OUTPUT_LOG,
    OLDER_LOG,
    CONSOLE_LOG,
    OLDER_CONSOLE_LOG,
    SUPERVISOR_LOG,
    VMM_LOG,
    API_SOCKET,
    VSOCK_SOCKET,
];

/// The clone's copy of a drive.
pub(crate) fn disk(index: usize) -> String {
    format!("disk{index}")
}

/// Whether host-tool or the VMM makes files of this name.
pub(super) fn is_known(name: &str) -> bool {
    let replaced = name.strip_suffix(TMP_SUFFIX).unwrap_or(name);
    if OTHERS.contains(&name) || REPLACED.contains(&replaced) {
        return true;
    }
    // The listeners for connections that the guest opens, and the core of a VMM that crashed.
    let numbered = [format!("{VSOCK_SOCKET}_"), "core.".to_owned()];
    let mut ends = numbered
        .iter()
        .filter_map(|start| name.strip_prefix(&start[..]));
    if name == "core" || ends.any(|end| end.parse::<u32>().is_ok()) {
        return true;
    }
    let digits = name.trim_start_matches(|char: char| !char.is_ascii_digit());
    let number = digits.parse::<usize>();
    number.is_ok_and(|number| name == disk(number) || name == drive_link(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_vm_are_known_and_others_are_not() {
        for name in [
            "lock",
            "state.json",
            "state.json.tmp",
            "state.next.json.tmp",
            "vsock.sock",
            "vsock.sock_52",
            "disk0",
            "drive12",
            "core",
            "core.4711",
        ] {
            assert!(is_known(name), "{name}");
        }
        for name in [
            "",
            "notes",
            "lock.tmp",
            "state.json.tmp.tmp",
            "vsock.sock_x",
            "disk",
            "disk00",
            "disk0.img",
            "core.c",
            "xdisk0",
        ] {
            assert!(!is_known(name), "{name}");
        }
    }
}
