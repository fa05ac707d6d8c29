//! What was promised, against what was measured.

use crate::prose::{VMMS, is_emulated};
use crate::report::ratio;
use crate::results::Results;
use crate::stats::Summary;
use crate::svg::figure;

/// One promise.
struct Budget {
    what: &'static str,
    promise: &'static str,
    /// What was measured, and what that means; `None` where it was not.
    verdict: fn(&Results) -> Option<(String, Verdict)>,
}

/// Whether a promise is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    Missed,
    /// It is about hardware, and this was none.
    Emulated,
}

impl Verdict {
    const fn of(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Missed }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Missed => "**missed**",
            Self::Emulated => "not judged: emulated",
        }
    }
}

/// Largest agent, bytes in KiB.
const FILE_KIB_MAX: f64 = 1536.0;
/// Most that it may exceed an empty program by.
const FILE_KIB_OVER_EMPTY_MAX: f64 = 480.0;
const RSS_KIB_MAX: f64 = 2048.0;
/// Ten commands at once after READY, on hardware.
const FIRST_MS_MAX: f64 = 16.3;
const CRATES_MAX: f64 = 25.0;

const BUDGETS: &[Budget] = &[
    Budget {
        what: "Restore, from the load's answer to READY, against one raw connection to a bare echo guest",
        promise: "≤ 1.5 ×",
        verdict: |results| {
            let mut texts = Vec::new();
            let mut holds = true;
            for vmm in VMMS {
                let case = format!("lab/ready/{vmm}");
                if let (Some(ours), Some(floor)) = (
                    results.find(&case, "agent", None),
                    results.find(&case, "echo", None),
                ) {
                    holds &= ours.p50 <= 1.5 * floor.p50;
                    texts.push(format!("{vmm} {}", ratio(ours.p50, floor.p50)));
                }
            }
            (!texts.is_empty()).then(|| (texts.join(", "), Verdict::of(holds)))
        },
    },
    Budget {
        what: "Ten commands at once, right after READY",
        promise: "≤ 16.3 ms on hardware",
        verdict: |results| {
            let find = |vmm| results.find(&format!("lab/first/{vmm}"), "agent", None);
            let found = VMMS
                .into_iter()
                .filter_map(|vmm| Some((vmm, find(vmm)?.p50)));
            let found: Vec<_> = found.collect();
            let text = |(vmm, ms): &(&str, f64)| format!("{vmm} {} ms", figure(*ms));
            let texts: Vec<String> = found.iter().map(text).collect();
            let verdict = if is_emulated(results) {
                Verdict::Emulated
            } else {
                Verdict::of(found.iter().all(|(_, ms)| *ms <= FIRST_MS_MAX))
            };
            (!texts.is_empty()).then(|| (texts.join(", "), verdict))
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
            Some((
                format!("{} KiB", figure(kib)),
                Verdict::of(kib <= FILE_KIB_MAX),
            ))
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
                Verdict::of(kib <= FILE_KIB_OVER_EMPTY_MAX),
            ))
        },
    },
    Budget {
        what: "Resident memory after many commands",
        promise: "≤ 2 MiB",
        verdict: |results| {
            let idle = results.find("footprint/rss_idle", "agent", None)?.p50;
            let kib = results.find("footprint/rss_after", "agent", None)?.p50;
            let text = format!("{} KiB before, {} KiB after", figure(idle), figure(kib));
            Some((text, Verdict::of(kib <= RSS_KIB_MAX)))
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
            let text = format!("{before} before, {after} after");
            Some((text, Verdict::of(after <= before)))
        },
    },
    Budget {
        what: "Wake-ups of an idle agent in a minute",
        promise: "0",
        verdict: |results| {
            let count = results.find("footprint/wake_ups", "agent", None)?.p50;
            Some((figure(count), Verdict::of(count == 0.0)))
        },
    },
    Budget {
        what: "Crates that the agent is made of, direct and transitive",
        promise: "≤ 25",
        verdict: |results| {
            let count = results.find("footprint/crates", "agent", None)?.p50;
            Some((figure(count), Verdict::of(count <= CRATES_MAX)))
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
) -> Option<(String, Verdict)> {
    let ours = of(results.find(case, subject, x)?);
    let floor = of(results.find(case, floor, x)?);
    Some((ratio(ours, floor), Verdict::of(ours <= limit * floor)))
}

fn ahead(
    results: &Results,
    case: &str,
    (subject, other): (&str, &str),
) -> Option<(String, Verdict)> {
    let ours = results.find(case, subject, Some(1.0))?.p50;
    let theirs = results.find(case, other, Some(1.0))?.p50;
    Some((ratio(theirs, ours), Verdict::of(theirs >= 2.0 * ours)))
}

fn throughput(results: &Results, case: &str) -> Option<(String, Verdict)> {
    let ours = results.find(case, "agent", Some(65_536.0))?.p50;
    let theirs = results.find(case, "socat", Some(65_536.0))?.p50;
    Some((ratio(ours, theirs), Verdict::of(ours >= theirs)))
}

/// The promises and what became of them.
pub(crate) fn table(results: &Results) -> String {
    let mut text = String::from("| What | Budget | Measured | |\n|---|---|---|---|\n");
    for budget in BUDGETS {
        let (measured, verdict) = match (budget.verdict)(results) {
            Some((measured, verdict)) => (measured, verdict.as_str()),
            None => (String::new(), "not measured"),
        };
        let Budget { what, promise, .. } = budget;
        text.push_str(&format!(
            "| {what} | {promise} | {measured} | {verdict} |\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Unit;

    #[test]
    fn promises_are_judged_by_ratio_and_those_about_hardware_on_hardware() {
        let mut results = Results::default();
        let ms = Unit::Milliseconds;
        results.add("lab/ready/qemu", "agent", None, ms, &[16.0]);
        results.add("lab/ready/qemu", "echo", None, ms, &[10.0]);
        results.add("lab/first/qemu", "agent", None, ms, &[20.0]);
        let us = Unit::Microseconds;
        results.add("exec/round_trip", "agent", Some(1.0), us, &[12.0]);
        results.add("exec/round_trip", "posix_spawn", Some(1.0), us, &[10.0]);
        let text = table(&results);
        assert!(text.contains("| qemu 1.60 × | **missed** |"), "{text}");
        assert!(text.contains("| 1.20 × | holds |"), "{text}");
        assert!(text.contains("| qemu 20 ms | **missed** |"), "{text}");
        let emulated = "emulated".to_owned();
        results.facts.insert("lab".to_owned(), emulated);
        let text = table(&results);
        assert!(text.contains("| qemu 20 ms | not judged"), "{text}");
        assert!(text.contains("| ≤ 1.5 MiB |  | not measured |"), "{text}");
    }
}
