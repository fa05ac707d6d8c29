//! What is measured: every case with its title, floor and series, and every subject.
//!
//! A case's name is `GROUP/CASE`. Its *floor* is what the machine can do without any of the
//! programs compared. Ratios are taken against it, and it tells a slower program from a slower
//! machine.

use std::fmt;

/// The VMMs, as cases of the lab have them behind their name.
pub(crate) const VMMS: [&str; 2] = ["firecracker", "qemu"];

/// What a measurement counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    Milliseconds,
    MebibytesPerSecond,
    MillisecondsPerGibibyte,
    Kibibytes,
    Count,
    Instructions,
}

impl Unit {
    pub(crate) const ALL: [Self; 7] = [
        Self::Microseconds,
        Self::Milliseconds,
        Self::MebibytesPerSecond,
        Self::MillisecondsPerGibibyte,
        Self::Kibibytes,
        Self::Count,
        Self::Instructions,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::MebibytesPerSecond => "MiB/s",
            Self::MillisecondsPerGibibyte => "ms/GiB",
            Self::Kibibytes => "KiB",
            Self::Count => "count",
            Self::Instructions => "instructions",
        }
    }

    pub(crate) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.as_str() == text)
    }

    /// Whether a larger figure is a better one.
    pub(crate) const fn is_more_better(self) -> bool {
        match self {
            Self::MebibytesPerSecond => true,
            Self::Microseconds
            | Self::Milliseconds
            | Self::MillisecondsPerGibibyte
            | Self::Kibibytes
            | Self::Count
            | Self::Instructions => false,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a series varies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    /// What a value counts, as it stands behind the number.
    pub(crate) label: &'static str,
    /// The values that the report shows. The record has all of them.
    pub(crate) shown: &'static [f64],
}

const fn axis(label: &'static str, shown: &'static [f64]) -> Option<Axis> {
    Some(Axis { label, shown })
}

const CLIENTS: Option<Axis> = axis("at once", &[1.0, 10.0, 100.0]);
const WRITES: Option<Axis> = axis("bytes a write", &[64.0, 65_536.0]);
const SESSIONS: Option<Axis> = axis("sessions", &[0.0, 500.0]);
const CONNECTIONS: Option<Axis> = axis("connections", &[0.0, 500.0]);
const ARGUMENTS: Option<Axis> = axis("KiB of arguments", &[0.0, 512.0]);
const OUTPUT: Option<Axis> = axis("MiB of output", &[1.0, 256.0]);
const CLONES: Option<Axis> = axis("at once", &[1.0, 16.0]);

const NONE: Option<&str> = None;
const SPAWN: Option<&str> = Some("posix_spawn");
const RAW: Option<&str> = Some("socketpair");
const EMPTY: Option<&str> = Some("empty");
const ECHO: Option<&str> = Some("echo");

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// `GROUP/CASE`; a measurement in a virtual machine has the VMM as a third part.
    pub(crate) name: &'static str,
    /// What the report calls it. A case without a title is in the record only.
    pub(crate) title: &'static str,
    /// The subject that ratios are taken against.
    pub(crate) floor: Option<&'static str>,
    /// What the series varies, if it is one.
    pub(crate) axis: Option<Axis>,
}

const fn series(
    name: &'static str,
    title: &'static str,
    floor: Option<&'static str>,
    axis: Option<Axis>,
) -> Case {
    Case {
        name,
        title,
        floor,
        axis,
    }
}

const fn single(name: &'static str, title: &'static str, floor: Option<&'static str>) -> Case {
    series(name, title, floor, None)
}

const fn unshown(name: &'static str, floor: Option<&'static str>) -> Case {
    single(name, "", floor)
}

/// Every case there is, in the order of the report.
pub(crate) const CASES: &[Case] = &[
    single("lab/ready", "Load answered to READY", ECHO),
    single("lab/restore", "The whole restore", ECHO),
    single("lab/phases", "Phase", NONE),
    single("lab/steps", "Step in the guest", NONE),
    unshown("lab/first", NONE),
    single("lab/cpu", "CPU time of a restore", ECHO),
    single("lab/cpu_parts", "CPU time of a restore", NONE),
    single("lab/syscalls", "System calls of a restore", NONE),
    unshown("lab/memory_at_load", ECHO),
    single("lab/memory", "VMM's memory at READY", ECHO),
    unshown("lab/memory_touched", ECHO),
    single("lab/boot", "Boot to READY", ECHO),
    single("lab/image", "Image", ECHO),
    series("lab/exec", "Exec over vsock", NONE, CLIENTS),
    single("lab/stdout", "Standard output over vsock", NONE),
    series("lab/clones", "Restore", NONE, CLONES),
    series("lab/clone_memory", "Memory of a clone", NONE, CLONES),
    series("exec/round_trip", "Exec", SPAWN, CLIENTS),
    unshown("exec/round_trip_static", SPAWN),
    series("exec/process", "Client process", SPAWN, CLIENTS),
    series("streams/stdout", "Output", RAW, WRITES),
    series("streams/stdout_cpu_server", "Output, CPU", RAW, WRITES),
    unshown("streams/stdout_cpu_client", RAW),
    series("streams/stdin", "Input", RAW, WRITES),
    series("streams/stdin_cpu_server", "Input, CPU", RAW, WRITES),
    unshown("streams/stdin_cpu_client", RAW),
    single("footprint/file", "Program", EMPTY),
    single("footprint/file_with_libraries", "With libraries", EMPTY),
    single("footprint/start", "Start", NONE),
    single("footprint/start_faults", "Page faults at start", NONE),
    single("footprint/rss_idle", "Resident, idle", NONE),
    unshown("footprint/pss_idle", NONE),
    single("footprint/rss_after", "Resident after commands", NONE),
    unshown("footprint/pss_after", NONE),
    unshown("footprint/descriptors_idle", NONE),
    unshown("footprint/descriptors_after", NONE),
    unshown("footprint/crates", NONE),
    single("footprint/wake_ups", "Wake-ups in a minute", NONE),
    series("growth/sessions_exec", "Exec", NONE, SESSIONS),
    unshown("growth/sessions_join", NONE),
    series("growth/sessions_rss", "Resident", NONE, SESSIONS),
    series("growth/connections_exec", "Exec", NONE, CONNECTIONS),
    unshown("growth/connections_join", NONE),
    series("growth/connections_rss", "Resident", NONE, CONNECTIONS),
    series("growth/arguments", "Exec", SPAWN, ARGUMENTS),
    series("growth/output", "Command", NONE, OUTPUT),
    series("growth/output_rss", "Resident", NONE, OUTPUT),
    single("instructions/agent", "Instructions", NONE),
];

impl Case {
    /// The case that a measurement belongs to.
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        let is_its = |case: &&Self| {
            name.strip_prefix(case.name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        CASES.iter().find(is_its)
    }

    pub(crate) fn group(&self) -> &'static str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// The values that the report shows of it: one without a value where it is not a series.
    pub(crate) fn shown(&self) -> Vec<Option<f64>> {
        self.axis.map_or_else(
            || vec![None],
            |axis| axis.shown.iter().copied().map(Some).collect(),
        )
    }
}

/// Subjects by name: how the report calls them, and whether they are this project's. The others are
/// floors, and what people would use instead.
const SUBJECTS: &[(&str, &str, bool)] = &[
    ("agent", "guest-agent", true),
    ("agent_kept", "guest-agent, connection kept", true),
    ("host_tool", "host-tool", true),
    ("supervisor", "supervisor", true),
    ("vmm", "VMM", true),
    ("posix_spawn", "posix_spawn and wait", false),
    ("socketpair", "no relay", false),
    ("empty", "empty Rust program", false),
    ("echo", "bare echo guest", false),
    ("socat", "socat", false),
    ("qemu_ga", "QEMU guest agent", false),
    ("dropbear", "ssh (dropbear)", false),
    ("busybox", "busybox", false),
    ("busybox_init", "busybox init", false),
];

/// How a subject is called in the report.
pub(crate) fn label(subject: &str) -> &str {
    SUBJECTS
        .get(rank(subject))
        .map_or(subject, |(_, label, _)| label)
}

/// Where a subject comes among others. Subjects without a label keep their order behind the rest.
pub(crate) fn rank(subject: &str) -> usize {
    let index = SUBJECTS.iter().position(|(name, ..)| *name == subject);
    index.unwrap_or(SUBJECTS.len())
}

/// Whether a subject is this project's, so that a change of its figures is news. Phases and steps
/// are, which have no label.
pub(crate) fn is_ours(subject: &str) -> bool {
    SUBJECTS
        .get(rank(subject))
        .is_none_or(|(.., is_ours)| *is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_finds_its_case() {
        let name = |text| Case::of(text).map(|case| case.name);
        assert_eq!(name("exec/round_trip"), Some("exec/round_trip"));
        assert_eq!(
            name("exec/round_trip_static"),
            Some("exec/round_trip_static")
        );
        assert_eq!(name("lab/ready/qemu"), Some("lab/ready"));
        assert_eq!(name("lab/nothing"), None);
    }

    #[test]
    fn units_are_read_as_they_are_written() {
        for unit in Unit::ALL {
            assert_eq!(Unit::of(unit.as_str()), Some(unit));
        }
    }
}
