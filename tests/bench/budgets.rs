//! What was promised, against what was measured; and what follows from the figures, in words. Every
//! sentence is written from the record, and is left out where that lacks its figures.

use crate::report::ratio;
use crate::results::Results;
use crate::stats::Summary;
use crate::svg::figure;

/// One promise.
struct Budget {
    what: &'static str,
    promise: &'static str,
    /// What was measured, and whether it keeps the promise.
    verdict: fn(&Results) -> Option<(String, bool)>,
}

/// Largest agent, bytes in KiB.
const FILE_KIB_MAX: f64 = 1536.0;
/// Most that it may exceed an empty program by.
const FILE_KIB_OVER_EMPTY_MAX: f64 = 480.0;
const RSS_KIB_MAX: f64 = 2048.0;

const BUDGETS: &[Budget] = &[
    Budget {
        what: "Restore, from the load's answer to READY, against one raw connection to a bare echo guest",
        promise: "≤ 1.5 ×",
        verdict: |results| {
            let mut texts = Vec::new();
            let mut holds = true;
            for vmm in ["firecracker", "qemu"] {
                let case = format!("lab/ready/{vmm}");
                if let (Some(ours), Some(floor)) = (
                    results.find(&case, "agent", None),
                    results.find(&case, "echo", None),
                ) {
                    holds &= ours.p50 <= 1.5 * floor.p50;
                    texts.push(format!("{vmm} {}", ratio(ours.p50, floor.p50)));
                }
            }
            (!texts.is_empty()).then(|| (texts.join(", "), holds))
        },
    },
    Budget {
        what: "Exec of a no-op over a Unix socket, against posix_spawn and wait",
        promise: "≤ 1.3 ×",
        verdict: |results| {
            against(
                results,
                "exec/round_trip",
                Some(1.0),
                ("agent", "posix_spawn"),
                |it| it.p50,
                1.3,
            )
        },
    },
    Budget {
        what: "The same, 99th percentile",
        promise: "≤ 2 ×",
        verdict: |results| {
            against(
                results,
                "exec/round_trip",
                Some(1.0),
                ("agent", "posix_spawn"),
                |it| it.p99,
                2.0,
            )
        },
    },
    Budget {
        what: "Exec latency against socat",
        promise: "at least 2 × ahead",
        verdict: |results| ahead(results, "exec/round_trip", ("agent", "socat")),
    },
    Budget {
        what: "Exec latency against the QEMU guest agent",
        promise: "at least 2 × ahead",
        verdict: |results| ahead(results, "exec/round_trip", ("agent", "qemu_ga")),
    },
    Budget {
        what: "`host-tool exec` against ssh (dropbear)",
        promise: "at least 2 × ahead",
        verdict: |results| ahead(results, "exec/process", ("host_tool", "dropbear")),
    },
    Budget {
        what: "Standard output in writes of 64 KiB, against socat",
        promise: "≥ 1.0 ×",
        verdict: |results| throughput(results, "streams/stdout"),
    },
    Budget {
        what: "Standard input in writes of 64 KiB, against socat",
        promise: "≥ 1.0 ×",
        verdict: |results| throughput(results, "streams/stdin"),
    },
    Budget {
        what: "The agent's binary, static and stripped",
        promise: "≤ 1.5 MiB",
        verdict: |results| {
            let kib = results.find("footprint/file", "agent", None)?.p50;
            Some((format!("{} KiB", figure(kib)), kib <= FILE_KIB_MAX))
        },
    },
    Budget {
        what: "What it exceeds an empty program by",
        promise: "≤ 480 KiB",
        verdict: |results| {
            let kib = results.find("footprint/file", "agent", None)?.p50
                - results.find("footprint/file", "empty", None)?.p50;
            Some((
                format!("{} KiB", figure(kib)),
                kib <= FILE_KIB_OVER_EMPTY_MAX,
            ))
        },
    },
    Budget {
        what: "Resident memory after many commands",
        promise: "≤ 2 MiB",
        verdict: |results| {
            let kib = results.find("footprint/rss_after", "agent", None)?.p50;
            Some((format!("{} KiB", figure(kib)), kib <= RSS_KIB_MAX))
        },
    },
    Budget {
        what: "Descriptors after many commands",
        promise: "as before",
        verdict: |results| {
            let before = results
                .find("footprint/descriptors_idle", "agent", None)?
                .p50;
            let after = results
                .find("footprint/descriptors_after", "agent", None)?
                .p50;
            Some((format!("{before} before, {after} after"), after <= before))
        },
    },
    Budget {
        what: "Wake-ups of an idle agent in a minute",
        promise: "0",
        verdict: |results| {
            let count = results.find("footprint/wake_ups", "agent", None)?.p50;
            Some((figure(count), count == 0.0))
        },
    },
];

fn against(
    results: &Results,
    case: &str,
    x: Option<f64>,
    (subject, floor): (&str, &str),
    of: fn(&Summary) -> f64,
    limit: f64,
) -> Option<(String, bool)> {
    let ours = of(results.find(case, subject, x)?);
    let floor = of(results.find(case, floor, x)?);
    Some((ratio(ours, floor), ours <= limit * floor))
}

fn ahead(results: &Results, case: &str, (subject, other): (&str, &str)) -> Option<(String, bool)> {
    let ours = results.find(case, subject, Some(1.0))?.p50;
    let theirs = results.find(case, other, Some(1.0))?.p50;
    Some((ratio(theirs, ours), theirs >= 2.0 * ours))
}

fn throughput(results: &Results, case: &str) -> Option<(String, bool)> {
    let ours = results.find(case, "agent", Some(65_536.0))?.p50;
    let theirs = results.find(case, "socat", Some(65_536.0))?.p50;
    Some((ratio(ours, theirs), ours >= theirs))
}

/// The promises and what became of them.
pub(crate) fn table(results: &Results) -> String {
    let mut text = String::from("| What | Budget | Measured | |\n|---|---|---|---|\n");
    for budget in BUDGETS {
        let (measured, verdict) = match (budget.verdict)(results) {
            Some((measured, true)) => (measured, "holds"),
            Some((measured, false)) => (measured, "**missed**"),
            None => (String::new(), "not measured"),
        };
        let Budget { what, promise, .. } = budget;
        text.push_str(&format!(
            "| {what} | {promise} | {measured} | {verdict} |\n"
        ));
    }
    text
}

/// Sentences on what a figure consists of.
pub(crate) fn limits(results: &Results) -> String {
    let sentences = [
        exec_limit(results),
        crowd_limit(results),
        stream_limit(results),
        ready_limit(results),
    ];
    paragraphs(sentences)
}

fn paragraphs<const N: usize>(sentences: [Option<String>; N]) -> String {
    let sentences: Vec<String> = sentences.into_iter().flatten().collect();
    if sentences.is_empty() {
        return "The run lacks the figures for this.\n".to_owned();
    }
    format!("- {}\n", sentences.join("\n- "))
}

fn exec_limit(results: &Results) -> Option<String> {
    let find = |subject| results.find("exec/round_trip", subject, Some(1.0));
    let (agent, kept, floor) = (find("agent")?, find("agent_kept")?, find("posix_spawn")?);
    let share = floor.p50 / agent.p50 * 100.0;
    Some(format!(
        "**Exec.** Of the {} µs of a no-op, {} µs ({share:.0} %) are what the kernel takes to \
         make, run and reap the process. The rest, {} µs, is the agent, its client and the \
         socket between them; {} µs of it are for the connection, which a kept one does not \
         pay.",
        figure(agent.p50),
        figure(floor.p50),
        figure(agent.p50 - floor.p50),
        figure((agent.p50 - kept.p50).max(0.0)),
    ))
}

fn crowd_limit(results: &Results) -> Option<String> {
    let find = |subject, x| results.find("exec/round_trip", subject, Some(x));
    let (one, crowd) = (find("agent", 1.0)?, find("agent", 100.0)?);
    let floor = find("posix_spawn", 100.0)?;
    Some(format!(
        "**A crowd.** A hundred clients at once each wait {} ms, {} as long as one alone, where \
         the bare floor takes {} ms: the agent is one thread, and it starts one process after \
         the other, suspended until each has been executed.",
        figure(crowd.p50 / 1e3),
        ratio(crowd.p50, one.p50),
        figure(floor.p50 / 1e3),
    ))
}

fn stream_limit(results: &Results) -> Option<String> {
    let case = "streams/stdout";
    let x = Some(65_536.0);
    let (agent, socat) = (
        results.find(case, "agent", x)?,
        results.find(case, "socat", x)?,
    );
    let cpu = |subject| results.find("streams/stdout_cpu_server", subject, x);
    Some(format!(
        "**Streams.** In writes of 64 KiB the agent moves {} MiB/s and socat {}; a gibibyte \
         costs the guest's side {} ms of CPU time with the agent, {} ms with socat, and {} ms \
         with no relay at all. Frames, offsets and a ring that a client can come back to are \
         what is between the last two.",
        figure(agent.p50),
        figure(socat.p50),
        figure(cpu("agent")?.p50),
        figure(cpu("socat")?.p50),
        figure(cpu("socketpair")?.p50),
    ))
}

fn ready_limit(results: &Results) -> Option<String> {
    let vmm = ["firecracker", "qemu"].into_iter().find(|vmm| {
        results
            .find(&format!("lab/ready/{vmm}"), "agent", None)
            .is_some()
    })?;
    let phase = |name| Some(results.find(&format!("lab/phases/{vmm}"), name, None)?.p50);
    let echo = results.find(&format!("lab/ready/{vmm}"), "echo", None)?.p50;
    Some(format!(
        "**Ready.** On {vmm}, {} ms are for REBIND and {} ms for the proof behind it, where an \
         echo over a raw connection takes {} ms. A restored guest finds none of its pages in \
         place: each that it touches is a fault that the VMM's host serves, and the process that \
         the proof starts touches the most.",
        figure(phase("rebind")?),
        figure(phase("probe")?),
        figure(echo),
    ))
}

/// What to make of the figures elsewhere.
pub(crate) fn hardware(results: &Results) -> String {
    let is_emulated = results
        .facts
        .get("lab")
        .is_some_and(|lab| lab == "emulated");
    let lab = if is_emulated {
        "The virtual machines of this run were emulated within an emulated machine. On hardware, \
         expect their times to be ten to fifty times shorter, and their ratios to stay: both \
         sides of each pair run the same VMM, kernel and machine."
    } else {
        "The virtual machines of this run had hardware virtualization: their times are what a user sees on such a machine."
    };
    format!(
        "- {lab}\n- What was measured natively is what the agent itself does: over vsock instead \
         of a Unix socket each message costs two exits of the virtual machine and an interrupt \
         more, some tens of microseconds on hardware, for the agent and for every alternative \
         alike.\n- Absolute times vary by the machine and by what else it does; compare with a \
         run of your own, on your own machine, before and after a change.\n"
    )
}
