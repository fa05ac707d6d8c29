//! VMM kinds and versions, and the faults that versions are known for.
//!
//! The table is consulted before harm is done: before a snapshot stops a guest that cannot be
//! woken again, and before a restore waits for a guest that will never answer. Faults that this
//! program always works around have no row: up to 1.14 Firecracker hands out host ports from the
//! start again after a load (we retry on fresh connections and quiesce before a snapshot), and
//! before 1.16 it binds the vsock socket at the recorded path (we only ever record a relative one).

use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum VmmKind {
    /// Firecracker, by its API socket.
    Firecracker,
    /// QEMU's `microvm` machine with vhost-vsock, by QMP.
    Qemu,
}

impl VmmKind {
    /// Both, in the order in which they are looked for.
    pub(crate) const ALL: [Self; 2] = [Self::Firecracker, Self::Qemu];
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

impl FromStr for VmmKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(UnknownKind {
                text: text.to_owned(),
            }),
        }
    }
}

/// A word that names no VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownKind {
    text: String,
}

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown VMM '{}', expected firecracker or qemu",
            self.text
        )
    }
}

impl std::error::Error for UnknownKind {}

/// A release, compared by its three numbers.
#[derive(Debug, Clone)]
pub(crate) struct VmmVersion {
    /// First number.
    pub(crate) major: u32,
    /// Second number.
    pub(crate) minor: u32,
    /// Third number; 0 where the text has only two.
    pub(crate) patch: u32,
    /// The version as the VMM wrote it, with what follows the numbers (`1.17.0-dev`).
    pub(crate) text: String,
}

impl VmmVersion {
    /// Finds the version in the first line of a `--version` output, or in a bare version: it is
    /// the first word that starts with a number and a dot, a leading `v` aside.
    pub(crate) fn parse(text: &str) -> Result<Self, VersionError> {
        let line = text.lines().next().unwrap_or_default();
        line.split_whitespace()
            .find_map(Self::from_word)
            .ok_or_else(|| VersionError {
                text: line.chars().take(VersionError::TEXT_LEN_MAX).collect(),
            })
    }

    fn from_word(word: &str) -> Option<Self> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let end = word
            .find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(word.len());
        let mut numbers = word[..end]
            .trim_end_matches('.')
            .split('.')
            .map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        let minor = numbers.next()?.ok()?;
        let patch = numbers.next().unwrap_or(Ok(0)).ok()?;
        Some(Self {
            major,
            minor,
            patch,
            text: word.to_owned(),
        })
    }

    const fn number(&self) -> Number {
        (self.major, self.minor, self.patch)
    }
}

impl PartialEq for VmmVersion {
    fn eq(&self, other: &Self) -> bool {
        self.number() == other.number()
    }
}

impl Eq for VmmVersion {}

impl PartialOrd for VmmVersion {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for VmmVersion {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text in which no version was found. Unknown is not "probably fine": nothing is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionError {
    text: String,
}

impl VersionError {
    const TEXT_LEN_MAX: usize = 80;
}

impl fmt::Display for VersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot find a version in '{}'", self.text)
    }
}

impl std::error::Error for VersionError {}

/// What a version is about to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Start a guest from a kernel.
    Boot,
    /// Stop a guest, write its state, let it run again.
    Snapshot,
    /// Start a guest from a snapshot.
    Restore,
}

/// The fault table's verdict on a version and a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// No known fault.
    Allow,
    /// To be said on standard error, and gone on from.
    Warn(Vec<&'static str>),
    /// To be failed on.
    Refuse {
        /// What would happen.
        reason: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

/// Judges `version` for `purpose`. `force` turns the refusals that are about odds, not about
/// certainty, into warnings.
#[must_use]
pub(crate) fn gate(kind: VmmKind, version: &VmmVersion, purpose: Purpose, force: bool) -> Gate {
    let mut warnings = Vec::new();
    for fault in FAULTS
        .iter()
        .filter(|fault| fault.concerns(kind, version, purpose))
    {
        match fault.verdict {
            Verdict::Refuse { .. } if !force => return fault.refusal(),
            Verdict::Refuse {
                can_force: false, ..
            } => return fault.refusal(),
            Verdict::Refuse { .. } | Verdict::Warn => warnings.push(fault.symptom),
        }
    }
    if warnings.is_empty() {
        Gate::Allow
    } else {
        Gate::Warn(warnings)
    }
}

type Number = (u32, u32, u32);

/// One row of the table.
#[derive(Debug)]
struct Fault {
    kind: VmmKind,
    /// First version that has it.
    since: Number,
    /// First version without it.
    until: Number,
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
        let number = version.number();
        self.kind == kind
            && (self.since..self.until).contains(&number)
            && self.purposes.contains(&purpose)
    }

    const fn refusal(&self) -> Gate {
        let remedy = match self.verdict {
            Verdict::Refuse { remedy, .. } => remedy,
            Verdict::Warn => "",
        };
        Gate::Refuse {
            reason: self.symptom,
            remedy,
        }
    }
}

const ALL_PURPOSES: &[Purpose] = &[Purpose::Boot, Purpose::Snapshot, Purpose::Restore];

const FAULTS: [Fault; 7] = [
    Fault {
        kind: VmmKind::Firecracker,
        since: (0, 0, 0),
        until: (1, 10, 0),
        purposes: &[Purpose::Snapshot, Purpose::Restore],
        symptom: "Firecracker before 1.10 does not wake a resumed guest to see that its vsock \
                  connections were reset",
        verdict: Verdict::Refuse {
            remedy: "use Firecracker 1.10 or newer",
            can_force: false,
        },
    },
    Fault {
        kind: VmmKind::Firecracker,
        since: (0, 0, 0),
        until: (1, 10, 0),
        purposes: &[Purpose::Boot],
        symptom: "snapshots of this guest will be refused: Firecracker before 1.10 does not wake \
                  a resumed guest to see that its vsock connections were reset",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Firecracker,
        since: (1, 16, 0),
        until: (1, 16, 1),
        purposes: &[Purpose::Restore],
        symptom: "a guest restored by Firecracker 1.16.0 may never transmit over vsock again",
        verdict: Verdict::Refuse {
            remedy: "use Firecracker 1.16.1 or newer, or --force to try",
            can_force: true,
        },
    },
    Fault {
        kind: VmmKind::Firecracker,
        since: (1, 16, 0),
        until: (1, 16, 1),
        purposes: &[Purpose::Boot, Purpose::Snapshot],
        symptom: "Firecracker 1.16.0 cannot be trusted to restore a snapshot: the guest may never \
                  transmit over vsock again (fixed in 1.16.1)",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Firecracker,
        since: (1, 16, 0),
        until: (1, 16, 2),
        purposes: &[Purpose::Snapshot],
        symptom: "on Firecracker 1.16.0 and 1.16.1 a resume without a snapshot taken before it \
                  ends host-to-guest vsock for good; if this snapshot fails after the pause, its \
                  source may be lost",
        verdict: Verdict::Warn,
    },
    Fault {
        kind: VmmKind::Qemu,
        since: (0, 0, 0),
        until: (5, 2, 0),
        purposes: ALL_PURPOSES,
        symptom: "QEMU before 5.2 has no microvm machine with ACPI",
        verdict: Verdict::Refuse {
            remedy: "use QEMU 7.2 or newer",
            can_force: false,
        },
    },
    Fault {
        kind: VmmKind::Qemu,
        since: (5, 2, 0),
        until: (7, 2, 0),
        purposes: ALL_PURPOSES,
        symptom: "QEMU before 7.2 was never tested with this program",
        verdict: Verdict::Warn,
    },
];

#[cfg(test)]
mod tests {
    use super::VmmKind::{Firecracker, Qemu};
    use super::*;

    #[track_caller]
    fn parsed(text: &str, number: Number, kept: &str) {
        let version = VmmVersion::parse(text).unwrap();
        assert_eq!((version.number(), version.text.as_str()), (number, kept));
    }

    #[test]
    fn versions_are_found_where_vmms_print_them() {
        parsed("Firecracker v1.16.1\n\n2026 exiting", (1, 16, 1), "1.16.1");
        parsed("Firecracker v1.17.0-dev", (1, 17, 0), "1.17.0-dev");
        parsed("1.10.1", (1, 10, 1), "1.10.1");
        parsed(
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
            (7, 2, 22),
            "7.2.22",
        );
        parsed("QEMU emulator version 10.0 (v10.0.0)", (10, 0, 0), "10.0");
        parsed(
            "Firecracker v1.16.1-5-gabcdef",
            (1, 16, 1),
            "1.16.1-5-gabcdef",
        );
    }

    #[test]
    fn text_without_a_version_is_an_error() {
        for text in [
            "",
            "\n1.2.3",
            "Firecracker",
            "v",
            "1",
            "v.1",
            "99999999999.1.1",
            "é1.2",
        ] {
            assert!(VmmVersion::parse(text).is_err(), "{text}");
        }
        let err = VmmVersion::parse("who knows").unwrap_err();
        assert_eq!(err.to_string(), "cannot find a version in 'who knows'");
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text| VmmVersion::parse(text).unwrap();
        assert!(version("1.9.9") < version("1.10.0"));
        assert!(version("1.16.1") < version("1.16.2"));
        assert!(version("1.16.1") < version("2.0"));
        assert_eq!(version("1.17.0-dev"), version("1.17.0"));
    }

    #[test]
    fn kinds_are_written_as_they_are_read() {
        for kind in VmmKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let err = "xen".parse::<VmmKind>().unwrap_err();
        assert_eq!(
            err.to_string(),
            "unknown VMM 'xen', expected firecracker or qemu"
        );
    }

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
    fn a_forced_refusal_is_still_said() {
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
