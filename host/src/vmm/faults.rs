//! Faults that VMM versions are known for.
//!
//! The table is checked before a fault can do harm: before a snapshot pauses a guest that cannot be
//! resumed, and before a restore waits for a guest that will never answer. Faults that this program
//! always works around have no row. Up to 1.14, Firecracker restarts its numbering of host ports
//! after a load: we retry on new connections and quiesce before a snapshot. Before 1.16, it binds
//! the vsock socket at the path in the snapshot: we record only a relative path.

use std::ops::Range;

use super::version::Number;
use super::{VmmKind, VmmVersion};

/// What a version is about to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Start a guest from a kernel.
    Boot,
    /// Pause a guest, save its state, resume it.
    Snapshot,
    /// Start a guest from a snapshot.
    Restore,
}

/// The fault table's answer for a version and a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// No known fault.
    Allow,
    /// Known faults that the caller reports before it continues.
    Warn(Vec<&'static str>),
    /// The caller must fail.
    Refuse {
        /// What would happen.
        reason: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

/// Looks up `version` for `purpose`. `force` turns refusals into warnings, for faults that strike
/// only sometimes.
pub(crate) fn gate(kind: VmmKind, version: &VmmVersion, purpose: Purpose, force: bool) -> Gate {
    let mut warnings = Vec::new();
    for fault in FAULTS
        .iter()
        .filter(|fault| fault.concerns(kind, version, purpose))
    {
        match fault.verdict {
            Verdict::Refuse { remedy, can_force } if !(force && can_force) => {
                return Gate::Refuse {
                    reason: fault.symptom,
                    remedy,
                };
            }
            Verdict::Refuse { .. } | Verdict::Warn => warnings.push(fault.symptom),
        }
    }
    if warnings.is_empty() {
        Gate::Allow
    } else {
        Gate::Warn(warnings)
    }
}

/// One row of the table.
#[derive(Debug)]
struct Fault {
    kind: VmmKind,
    /// From the first version with the fault to the first one without it.
    versions: Range<Number>,
    purposes: &'static [Purpose],
    symptom: &'static str,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy)]
enum Verdict {
    Warn,
    Refuse {
        remedy: &'static str,
        can_force: bool,
    },
}

impl Fault {
    fn concerns(&self, kind: VmmKind, version: &VmmVersion, purpose: Purpose) -> bool {
        self.kind == kind
            && self.versions.contains(&version.number())
            && self.purposes.contains(&purpose)
    }
}

const ALL_PURPOSES: &[Purpose] = &[Purpose::Boot, Purpose::Snapshot, Purpose::Restore];

const FAULTS: [Fault; 7] = [
    Fault {
        kind: VmmKind::Firecracker,
        versions: (0, 0, 0)..(1, 10, 0),
        purposes: &[Purpose::Snapshot, Purpose::Restore],
        symptom: "Firecracker before 1.10 does not notify a resumed guest that its vsock \
                  connections were reset",
        verdict: Verdict::Refuse {
            remedy: "use Firecracker 1.10 or newer",
            can_force: false,
        },
    },
    Fault {
        kind: VmmKind::Firecracker,
        versions: (0, 0, 0)..(1, 10, 0),
        purposes: &[Purpose::Boot],
        symptom: "snapshots of this guest will be refused: Firecracker before 1.10 does not notify \
                  a resumed guest that its vsock connections were reset",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Firecracker,
        versions: (1, 16, 0)..(1, 16, 1),
        purposes: &[Purpose::Restore],
        symptom: "a guest restored by Firecracker 1.16.0 may never transmit over vsock again",
        verdict: Verdict::Refuse {
            remedy: "use Firecracker 1.16.1 or newer, or try with --force",
            can_force: true,
        },
    },
    Fault {
        kind: VmmKind::Firecracker,
        versions: (1, 16, 0)..(1, 16, 1),
        purposes: &[Purpose::Boot, Purpose::Snapshot],
        symptom: "Firecracker 1.16.0 cannot be trusted to restore a snapshot: the guest may never \
                  transmit over vsock again (fixed in 1.16.1)",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Firecracker,
        versions: (1, 16, 0)..(1, 16, 2),
        purposes: &[Purpose::Snapshot],
        symptom: "on Firecracker 1.16.0 and 1.16.1 a resume without a snapshot before it breaks \
                  host-to-guest vsock permanently; if this snapshot fails after the pause, its \
                  source may be lost",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Qemu,
        versions: (0, 0, 0)..(5, 2, 0),
        purposes: ALL_PURPOSES,
        symptom: "QEMU before 5.2 has no microvm machine with ACPI",
        verdict: Verdict::Refuse {
            remedy: "use QEMU 7.2 or newer",
            can_force: false,
        },
    },
    Fault {
        kind: VmmKind::Qemu,
        versions: (5, 2, 0)..(7, 2, 0),
        purposes: ALL_PURPOSES,
        symptom: "QEMU before 7.2 was never tested with this program",
        verdict: Verdict::Warn,
    },
];

#[cfg(test)]
mod tests {
    use super::VmmKind::{Firecracker, Qemu};
    use super::*;

    /// One letter per purpose (boot, snapshot, restore): allowed, warned, refused.
    #[track_caller]
    fn verdicts(kind: VmmKind, text: &str, force: bool, expected: &str) {
        let version = VmmVersion::parse(text).unwrap();
        let letters: String = ALL_PURPOSES
            .iter()
            .map(|purpose| match gate(kind, &version, *purpose, force) {
                Gate::Allow => 'a',
                Gate::Warn(symptoms) => {
                    assert!(!symptoms.is_empty());
                    'w'
                }
                Gate::Refuse { reason, remedy } => {
                    assert!(!reason.is_empty() && !remedy.is_empty());
                    'r'
                }
            })
            .collect();
        assert_eq!(letters, expected, "{kind} {text}, force {force}");
    }

    #[test]
    fn every_row_of_the_table() {
        for (kind, version, plain, forced) in [
            (Firecracker, "0.25.2", "wrr", "wrr"),
            (Firecracker, "1.9.9", "wrr", "wrr"),
            (Firecracker, "1.10.0", "aaa", "aaa"),
            (Firecracker, "1.14.4", "aaa", "aaa"),
            (Firecracker, "1.15.1", "aaa", "aaa"),
            (Firecracker, "1.16.0", "wwr", "www"),
            (Firecracker, "1.16.1", "awa", "awa"),
            (Firecracker, "1.16.2", "aaa", "aaa"),
            (Firecracker, "1.17.0-dev", "aaa", "aaa"),
            (Firecracker, "2.0.0", "aaa", "aaa"),
            (Qemu, "5.1.99", "rrr", "rrr"),
            (Qemu, "5.2.0", "www", "www"),
            (Qemu, "7.1.50", "www", "www"),
            (Qemu, "7.2.0", "aaa", "aaa"),
            (Qemu, "10.0.2", "aaa", "aaa"),
        ] {
            verdicts(kind, version, false, plain);
            verdicts(kind, version, true, forced);
        }
    }

    #[test]
    fn a_forced_refusal_is_still_a_warning() {
        let version = VmmVersion::parse("1.16.0").unwrap();
        let Gate::Refuse { reason, .. } = gate(Firecracker, &version, Purpose::Restore, false)
        else {
            panic!("not refused");
        };
        assert_eq!(
            gate(Firecracker, &version, Purpose::Restore, true),
            Gate::Warn(vec![reason])
        );
    }
}
