//! What is measured: every case with its title, unit, floor and subjects. The groups fill it, the
//! comparison and the report read it.
//!
//! A case's name is `GROUP/CASE`. Its *floor* is what the machine can do without any of the
//! programs compared; ratios are taken against it, and it tells a slower program from a slower
//! machine.

use std::fmt;

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

/// What the places of a series are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    /// Whether the places lie apart by factors.
    pub(crate) is_log: bool,
}

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// `GROUP/CASE`; a measurement may have one more part behind it, the VMM.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How it is measured, for the report.
    pub(crate) text: &'static str,
    /// The subject that ratios are taken against.
    pub(crate) floor: Option<&'static str>,
    /// What the series runs over, if it is one.
    pub(crate) axis: Option<Axis>,
}

const fn log(label: &'static str) -> Option<Axis> {
    Some(Axis {
        label,
        is_log: true,
    })
}

const fn linear(label: &'static str) -> Option<Axis> {
    Some(Axis {
        label,
        is_log: false,
    })
}

const CLIENTS: Option<Axis> = log("clients at once");
const WRITES: Option<Axis> = log("bytes of one write");

/// Every case there is, in the order of the report.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "exec/round_trip",
        title: "Exec round trip",
        text: "From the request to the knowledge that the command has ended, over a Unix socket, \
               the command being `/bin/true`, which is dynamically linked as most programs are. \
               The agent is asked as host-tool asks it: a fresh connection, HELLO and EXEC in \
               one write, read until EXITED; and once more over connections that stay open. \
               socat runs with `-t0`, without which it waits half a second after one direction \
               has ended; it tells no exit code. The QEMU guest agent takes one connection, \
               shared by all clients, and is asked for the end without a pause between the \
               questions.",
        floor: Some("posix_spawn"),
        axis: CLIENTS,
    },
    Case {
        name: "exec/round_trip_static",
        title: "Exec round trip of a static program",
        text: "The same with an empty static program, which the kernel starts in a fraction of \
               the time: what is around the command weighs more.",
        floor: Some("posix_spawn"),
        axis: CLIENTS,
    },
    Case {
        name: "exec/process",
        title: "Exec as a script has it",
        text: "One whole client process for each command: `host-tool exec`, `dbclient` (ssh) \
               with a key, and socat as a client. dropbear is started for each connection with \
               the accepted Unix socket as its own, so that nothing is copied in between; the \
               login shell that it starts is part of what ssh is.",
        floor: Some("posix_spawn"),
        axis: CLIENTS,
    },
    Case {
        name: "streams/stdout",
        title: "Standard output",
        text: "A command writes, its client reads and counts. socat copies blocks of 64 KiB, \
               eight times its default. The floor is the command writing into the very socket \
               that the client reads.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "streams/stdout_cpu_server",
        title: "CPU time of the guest's side for standard output",
        text: "Relay and command together; with host-tool as the client, the agent alone.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "streams/stdout_cpu_client",
        title: "CPU time of the client for standard output",
        text: "The reading thread, or the host-tool process.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "streams/stdin",
        title: "Standard input",
        text: "A client writes, the command reads to the end and confirms it. The agent gets one \
               frame for each write, split at 64 KiB, as far as its credit allows.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "streams/stdin_cpu_server",
        title: "CPU time of the guest's side for standard input",
        text: "Relay and command together; with host-tool as the client, the agent alone.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "streams/stdin_cpu_client",
        title: "CPU time of the client for standard input",
        text: "The writing thread, or the host-tool process.",
        floor: Some("socketpair"),
        axis: WRITES,
    },
    Case {
        name: "footprint/file",
        title: "Size of the program",
        text: "The file alone.",
        floor: Some("empty"),
        axis: None,
    },
    Case {
        name: "footprint/file_with_libraries",
        title: "Size of the program with its libraries",
        text: "What an image has to hold for it: the file and every shared library it is linked \
               with.",
        floor: Some("empty"),
        axis: None,
    },
    Case {
        name: "footprint/start",
        title: "Start",
        text: "From the start of the process to its first accepted connection.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/start_faults",
        title: "Page faults at start",
        text: "Pages that the process had touched when it accepted its first connection.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/rss_idle",
        title: "Resident memory, idle",
        text: "All pages that are mapped and there.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/pss_idle",
        title: "Proportional memory, idle",
        text: "The same, pages that several processes map divided among them. On a machine that \
               runs several programs with the same libraries this flatters them; an image with \
               one of them has nobody to share with.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/rss_after",
        title: "Resident memory after many commands",
        text: "10,000 commands for the agent, ten at once; 1,000 for the others. A tenth of that \
               in a quick run.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/pss_after",
        title: "Proportional memory after many commands",
        text: "",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/descriptors_idle",
        title: "Open descriptors before many commands",
        text: "",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/descriptors_after",
        title: "Open descriptors after many commands",
        text: "",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/crates",
        title: "Crates of the agent",
        text: "Direct and transitive, those that run at build time included; one of them is \
               the project's own.",
        floor: None,
        axis: None,
    },
    Case {
        name: "footprint/wake_ups",
        title: "Wake-ups while idle",
        text: "Context switches in a minute in which nobody asks for anything.",
        floor: None,
        axis: None,
    },
    Case {
        name: "growth/sessions_exec",
        title: "Exec beside running sessions",
        text: "Round trip of a no-op while so many other commands run.",
        floor: None,
        axis: linear("running sessions"),
    },
    Case {
        name: "growth/sessions_join",
        title: "Starting one more session",
        text: "From EXEC to STARTED.",
        floor: None,
        axis: linear("running sessions"),
    },
    Case {
        name: "growth/sessions_rss",
        title: "Memory by running sessions",
        text: "Resident memory of the agent.",
        floor: None,
        axis: linear("running sessions"),
    },
    Case {
        name: "growth/connections_exec",
        title: "Exec beside open connections",
        text: "Round trip of a no-op while so many other connections are open and idle.",
        floor: None,
        axis: linear("open connections"),
    },
    Case {
        name: "growth/connections_join",
        title: "One more connection",
        text: "From the connect to the answer to HELLO and INFO.",
        floor: None,
        axis: linear("open connections"),
    },
    Case {
        name: "growth/connections_rss",
        title: "Memory by open connections",
        text: "Resident memory of the agent.",
        floor: None,
        axis: linear("open connections"),
    },
    Case {
        name: "growth/arguments",
        title: "Exec by length of the arguments",
        text: "Round trip of a no-op with so much in its argument vector.",
        floor: Some("posix_spawn"),
        axis: linear("KiB of arguments"),
    },
    Case {
        name: "growth/output",
        title: "Time by volume of output",
        text: "From EXEC to EXITED of a command that writes so much, 64 KiB at a time.",
        floor: None,
        axis: log("MiB of output"),
    },
    Case {
        name: "growth/output_rss",
        title: "Memory by volume of output",
        text: "Resident memory of the agent after the command's output has passed through.",
        floor: None,
        axis: log("MiB of output"),
    },
    Case {
        name: "lab/ready",
        title: "From the load's answer to READY",
        text: "The agent: REBIND until REBOUND, then PROBE, with a process spawned and \
               reaped, on a fresh connection. The floor: the same VMM, kernel and machine \
               with a guest that does nothing but echo, and one raw connection with one \
               byte there and back.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/restore",
        title: "The whole restore",
        text: "From the start of the command to its end, READY included; for the echo guest \
               from the start of the VMM to the echo.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/phases",
        title: "Phases of a restore",
        text: "As host-tool's record has them.",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/steps",
        title: "Steps of the guest within REBIND",
        text: "As REBOUND reports them, and the process of the proof as PROBED does.",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/first",
        title: "Ten commands at once, right after READY",
        text: "From the first connection to the last exit code, by `host-tool stress`.",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/cpu",
        title: "CPU time of a restore on the host",
        text: "All threads of everything that a restore runs, until READY: host-tool, the \
               supervisor and the VMM with its vCPU, in which the guest's own work is. For \
               the echo guest the VMM alone.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/cpu_parts",
        title: "CPU time of a restore by process",
        text: "",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/syscalls",
        title: "System calls of host-tool in a restore",
        text: "As `strace -c` counts them until READY. The supervisor and the VMM are left \
               out from the moment at which they become what they are.",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/memory_at_load",
        title: "Resident memory of the VMM at load",
        text: "As soon as the vCPUs run: `host-tool restore --no-wait` has returned, or the \
               VMM's API has answered. The guest's first wake-up may be in it. Firecracker \
               maps the memory file and reads of it what is touched; QEMU reads all of it \
               first.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/memory",
        title: "Resident memory of the VMM at READY",
        text: "The same process after the guest was named and has proven itself, or has \
               given its echo.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/memory_touched",
        title: "Memory touched between load and READY",
        text: "The difference of the two. A page is 4 KiB, and each is a fault that the \
               host serves while the guest waits.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/boot",
        title: "From nothing to READY",
        text: "`host-tool boot --wait-ready`, kernel and all.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/image",
        title: "Size of the image",
        text: "The uncompressed initramfs with the modules for vsock: with the agent as its \
               only program, and with the echo guest.",
        floor: Some("echo"),
        axis: None,
    },
    Case {
        name: "lab/exec",
        title: "Exec round trip over vsock",
        text: "The command is the image's busybox as `true`. socat and the QEMU guest agent \
               run in the same guest beside the agent and are asked over the same device; \
               the latter takes one connection, which all clients share.",
        floor: None,
        axis: CLIENTS,
    },
    Case {
        name: "lab/stdout",
        title: "Standard output over vsock",
        text: "A command writes 8 MiB in the guest, its client reads and counts. socat runs \
               in the same guest.",
        floor: None,
        axis: None,
    },
    Case {
        name: "lab/clones",
        title: "Clones at once",
        text: "From the start of `restore --count N --parallel N` to its end, when the last \
               clone is READY.",
        floor: None,
        axis: linear("clones"),
    },
    Case {
        name: "lab/clone_memory",
        title: "Memory of a clone",
        text: "Proportional memory of one clone's processes when all are READY: pages that \
               the clones share, such as those of the memory file that nobody has written \
               to, are divided among them.",
        floor: None,
        axis: linear("clones"),
    },
    Case {
        name: "instructions/agent",
        title: "Instructions of the agent",
        text: "User-space instructions of the agent's process in five fixed scenarios, as \
               callgrind counts them, which no other load on the machine changes. A test keeps \
               them: see `tests/instructions.json`.",
        floor: None,
        axis: None,
    },
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
}

/// Names of those who are measured, as a person reads them.
const LABELS: &[(&str, &str)] = &[
    ("agent", "guest-agent"),
    ("agent_kept", "guest-agent, kept connection"),
    ("host_tool", "host-tool"),
    ("supervisor", "supervisor"),
    ("vmm", "VMM"),
    ("posix_spawn", "posix_spawn and wait"),
    ("socketpair", "no relay at all"),
    ("empty", "empty static Rust program"),
    ("echo", "bare echo guest"),
    ("socat", "socat"),
    ("qemu_ga", "QEMU guest agent"),
    ("dropbear", "ssh (dropbear)"),
    ("busybox", "busybox"),
    ("busybox_init", "busybox init"),
];

/// Those who are not ours: floors, and what people would use instead.
const OTHERS: &[&str] = &[
    "posix_spawn",
    "socketpair",
    "empty",
    "echo",
    "socat",
    "qemu_ga",
    "dropbear",
    "busybox",
    "busybox_init",
];

/// How a subject is called in the report.
pub(crate) fn label(subject: &str) -> &str {
    LABELS
        .iter()
        .find(|(name, _)| *name == subject)
        .map_or(subject, |(_, label)| label)
}

/// Where a subject comes among others. Those without a name keep the order in which they came.
pub(crate) fn rank(subject: &str) -> usize {
    let index = LABELS.iter().position(|(name, _)| *name == subject);
    index.unwrap_or(LABELS.len())
}

/// Whether a subject is this project's, so that its getting slower is news.
pub(crate) fn is_ours(subject: &str) -> bool {
    !OTHERS.contains(&subject)
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
