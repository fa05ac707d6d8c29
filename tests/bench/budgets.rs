//! What the design promises, against what was measured.

use crate::catalogue::VMMS;
use crate::results::Results;
use crate::stats::{Summary, figure, ratio};

/// One promise.
struct Budget {
    what: &'static str,
    promise: &'static str,
    /// What was measured and whether it keeps the promise; `None` where it was not measured.
    verdict: fn(&Results) -> Option<(String, Verdict)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Holds,
    Missed,
    /// The promise is about hardware, and the virtual machines were emulated.
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
            Self::Emulated => "not checked: emulated",
        }
    }
}

const FILE_KIB_MAX: f64 = 1536.0;
const FILE_KIB_OVER_EMPTY_MAX: f64 = 480.0;
const RSS_KIB_MAX: f64 = 2048.0;
const FIRST_MS_MAX: f64 = 16.3;
const CRATES_MAX: f64 = 25.0;

const BUDGETS: &[Budget] = &[
    Budget {
        what: "Restore, from the load's answer to READY, against one raw connection to a bare echo guest",
        promise: "≤ 1.5 ×",
        verdict: |results| {
            by_vmm(|vmm| {
                let find = |subject| results.find(&format!("lab/ready/{vmm}"), subject, None);
                let (ours, floor) = (find("agent")?.p50, find("echo")?.p50);
                Some((ratio(ours, floor), Verdict::of(ours <= 1.5 * floor)))
            })
        },
    },
    Budget {
        what: "Ten commands at once, right after READY",
        promise: "≤ 16.3 ms on hardware",
        verdict: |results| {
            by_vmm(|vmm| {
                let ms = results
                    .find(&format!("lab/first/{vmm}"), "agent", None)?
                    .p50;
                let verdict = if results.is_emulated() {
                    Verdict::Emulated
                } else {
                    Verdict::of(ms <= FIRST_MS_MAX)
                };
                Some((format!("{} ms", figure(ms)), verdict))
            })
        },
    },
    Budget {
        what: "Exec of a no-op over a Unix socket, against posix_spawn and wait",
        promise: "≤ 1.3 ×",
        verdict: |results| over_spawn(results, |it| it.p50, 1.3),
    },
    Budget {
        what: "The same, 99th percentile",
        promise: "≤ 2 ×",
        verdict: |results| over_spawn(results, |it| it.p99, 2.0),
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
            let kib = footprint(results, "file", "agent")?;
            at_most(kib, FILE_KIB_MAX, " KiB")
        },
    },
    Budget {
        what: "What it exceeds an empty program by",
        promise: "≤ 480 KiB",
        verdict: |results| {
            let empty_kib = footprint(results, "file", "empty")?;
            let kib = footprint(results, "file", "agent")? - empty_kib;
            at_most(kib, FILE_KIB_OVER_EMPTY_MAX, " KiB")
        },
    },
    Budget {
        what: "Resident memory after many commands",
        promise: "≤ 2 MiB",
        verdict: |results| {
            let before = footprint(results, "rss_idle", "agent")?;
            let after = footprint(results, "rss_after", "agent")?;
            let text = format!("{} KiB before, {} KiB after", figure(before), figure(after));
            Some((text, Verdict::of(after <= RSS_KIB_MAX)))
        },
    },
    Budget {
        what: "Descriptors after many commands",
        promise: "as before",
        verdict: |results| {
            let before = footprint(results, "descriptors_idle", "agent")?;
            let after = footprint(results, "descriptors_after", "agent")?;
            let text = format!("{before} before, {after} after");
            Some((text, Verdict::of(after <= before)))
        },
    },
    Budget {
        what: "Wake-ups of an idle agent in a minute",
        promise: "0",
        verdict: |results| at_most(footprint(results, "wake_ups", "agent")?, 0.0, ""),
    },
    Budget {
        what: "Crates that the agent is made of, direct and transitive",
        promise: "≤ 25",
        verdict: |results| at_most(footprint(results, "crates", "agent")?, CRATES_MAX, ""),
    },
];

/// The verdicts on all VMMs that were measured. One that is missed is missed for all.
fn by_vmm(verdict: impl Fn(&str) -> Option<(String, Verdict)>) -> Option<(String, Verdict)> {
    let found = VMMS
        .into_iter()
        .filter_map(|vmm| Some((vmm, verdict(vmm)?)));
    found
        .map(|(vmm, (text, verdict))| (format!("{vmm} {text}"), verdict))
        .reduce(|(texts, all), (text, verdict)| {
            let is_missed = all == Verdict::Missed;
            let all = if is_missed { all } else { verdict };
            (format!("{texts}, {text}"), all)
        })
}

fn over_spawn(results: &Results, of: fn(&Summary) -> f64, limit: f64) -> Option<(String, Verdict)> {
    let find = |subject| results.find("exec/round_trip", subject, Some(1.0));
    let (ours, floor) = (of(find("agent")?), of(find("posix_spawn")?));
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

fn footprint(results: &Results, case: &str, subject: &str) -> Option<f64> {
    let case = format!("footprint/{case}");
    Some(results.find(&case, subject, None)?.p50)
}

fn at_most(value: f64, limit: f64, unit: &str) -> Option<(String, Verdict)> {
    Some((
        format!("{}{unit}", figure(value)),
        Verdict::of(value <= limit),
    ))
}

/// The promises and whether they are kept.
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
    fn promises_are_checked_by_ratio_and_those_about_hardware_on_hardware() {
        let mut results = Results::default();
        let ms = Unit::Milliseconds;
        results.add("lab/ready/firecracker", "agent", None, ms, &[16.0]);
        results.add("lab/ready/firecracker", "echo", None, ms, &[10.0]);
        results.add("lab/ready/qemu", "agent", None, ms, &[15.0]);
        results.add("lab/ready/qemu", "echo", None, ms, &[10.0]);
        results.add("lab/first/qemu", "agent", None, ms, &[20.0]);
        let us = Unit::Microseconds;
        results.add("exec/round_trip", "agent", Some(1.0), us, &[12.0]);
        results.add("exec/round_trip", "posix_spawn", Some(1.0), us, &[10.0]);
        let text = table(&results);
        let both = "| firecracker 1.60 ×, qemu 1.50 × | **missed** |";
        assert!(text.contains(both), "{text}");
        assert!(text.contains("| 1.20 × | holds |"), "{text}");
        assert!(text.contains("| qemu 20 ms | **missed** |"), "{text}");
        let emulated = "emulated".to_owned();
        results.facts.insert("lab".to_owned(), emulated);
        let text = table(&results);
        assert!(text.contains("| qemu 20 ms | not checked"), "{text}");
        assert!(text.contains("| ≤ 1.5 MiB |  | not measured |"), "{text}");
    }
}
