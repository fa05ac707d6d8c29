//! Which VMM version can load a state that another version saved.
//!
//! Both VMMs refuse a state that they cannot read, but only once the process is started, and with a
//! message about serialization. Their versions show it beforehand.

use super::{Gate, VmmKind, VmmVersion};

/// Checks whether `running` can load a state that `saved_by` wrote.
pub(crate) fn load_gate(kind: VmmKind, saved_by: &VmmVersion, running: &VmmVersion) -> Gate {
    match kind {
        VmmKind::Firecracker => match (snapshot_format(saved_by), snapshot_format(running)) {
            (Some(saved), Some(readable)) if saved != readable => Gate::Refuse {
                reason: "the snapshot was saved in another format than this Firecracker reads",
                remedy: "use the Firecracker version that saved it, or boot and snapshot again",
            },
            // The same format, or a version newer than this table: Firecracker checks it itself.
            _ => Gate::Allow,
        },
        // QEMU's microvm machine is not versioned: its state may change with each release.
        VmmKind::Qemu if release(saved_by) != release(running) => Gate::Warn(vec![
            "the snapshot was saved by another QEMU release, which QEMU does not promise to load \
             for its microvm machine",
        ]),
        VmmKind::Qemu => Gate::Allow,
    }
}

const fn release(version: &VmmVersion) -> (u32, u32) {
    (version.major, version.minor)
}

/// Major number of the snapshot format that a Firecracker release writes, and the only one that
/// it reads. All formats so far have the minor number 0.
fn snapshot_format(version: &VmmVersion) -> Option<u32> {
    match (version.major, version.minor, version.patch) {
        (1, 7, _) => Some(1),
        (1, 8, _) => Some(2),
        (1, 9, _) | (1, 10, 0) => Some(3),
        (1, 10, _) => Some(4),
        (1, 11, _) => Some(5),
        (1, 12, _) => Some(6),
        (1, 13 | 14, _) => Some(8),
        (1, 15, _) => Some(9),
        (1, 16, _) => Some(10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::VmmKind::{Firecracker, Qemu};
    use super::*;

    #[test]
    fn versions_that_load_the_state_of_others() {
        for (kind, saved_by, running, letter) in [
            (Firecracker, "1.16.0", "1.16.1", 'a'),
            (Firecracker, "1.13.1", "1.14.4", 'a'),
            (Firecracker, "1.14.4", "1.13.0", 'a'),
            (Firecracker, "1.9.1", "1.10.0", 'a'),
            (Firecracker, "1.10.0", "1.10.1", 'r'),
            (Firecracker, "1.10.1", "1.10.2", 'a'),
            (Firecracker, "1.11.0", "1.12.0", 'r'),
            (Firecracker, "1.12.0", "1.13.0", 'r'),
            (Firecracker, "1.15.1", "1.16.1", 'r'),
            (Firecracker, "1.16.1", "1.15.1", 'r'),
            (Firecracker, "1.7.0", "1.8.0", 'r'),
            (Firecracker, "1.16.1", "1.17.0-dev", 'a'),
            (Qemu, "7.2.1", "7.2.22", 'a'),
            (Qemu, "7.2.22", "8.0.0", 'w'),
            (Qemu, "9.0.0", "8.0.0", 'w'),
        ] {
            let version = |text| VmmVersion::parse(text).unwrap();
            let found = match load_gate(kind, &version(saved_by), &version(running)) {
                Gate::Allow => 'a',
                Gate::Warn(_) => 'w',
                Gate::Refuse { .. } => 'r',
            };
            assert_eq!(found, letter, "{kind} {saved_by} by {running}");
        }
    }
}
