//! Measures restores of one artifact, one after the other. Each clone is started, proven ready,
//! measured and discarded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Report;
use crate::artifact::Trust;
use crate::cli::BenchCommand;
use crate::commands::load::latency::Summary;
use crate::commands::restore::plan::open_artifact;
use crate::error::Failure;
use crate::failpoint::{Point, reach};
use crate::lifecycle::plan::Plan;
use crate::lifecycle::starting::StartingVm;
use crate::report::phase::Phase;
use crate::report::record::Record;

/// The part's name in the report.
const NAME: &str = "restore";

/// The phases of a restore, in order.
const PHASES: [Phase; 8] = [
    Phase::Artifact,
    Phase::Version,
    Phase::Spawn,
    Phase::Load,
    Phase::Rebind,
    Phase::Probe,
    Phase::Hooks,
    Phase::Publish,
];

/// Measures `--restores` clones of `artifact`.
pub(super) fn measure(
    command: &BenchCommand,
    artifact: &Path,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut samples = Samples::default();
    // The first restore reads the artifact from disk into the page cache, and is not counted.
    for number in 0..=command.restores {
        match once(command, artifact, deadline) {
            Ok(_) if number == 0 => {}
            Ok(restored) => samples.add(&restored),
            Err(failure) => {
                report.fail(NAME, failure);
                break;
            }
        }
    }
    samples.report(artifact, report);
    Ok(())
}

/// One clone that was ready.
#[derive(Debug)]
struct Restored {
    /// From opening the artifact to ready.
    took: Duration,
    /// The record that `restore --json` would print.
    record: Value,
    /// Resident memory of the VMM when the clone is ready, KiB.
    memory_kib: Option<u64>,
}

fn once(command: &BenchCommand, artifact: &Path, deadline: Instant) -> Result<Restored, Failure> {
    let mut record = Record::new();
    let made = start(command, artifact, deadline, &mut record);
    let vm = made.map_err(|failure| record.failure(failure).0)?;
    record.end();
    let took = record.begun_at().elapsed();
    let restored = Restored {
        took,
        record: record.success_value("ready"),
        memory_kib: vm.pid().and_then(resident_kib),
    };
    // It was never released, so it ends with this command even when `discard` fails.
    vm.discard()?;
    Ok(restored)
}

/// Restores with all options at their defaults. All restores share the command's time limit.
fn start(
    command: &BenchCommand,
    artifact: &Path,
    deadline: Instant,
    record: &mut Record,
) -> Result<StartingVm, Failure> {
    let artifact = open_artifact(artifact, &Trust::default(), record)?;
    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let plan = Plan {
        state_dir: command.state_dir.as_deref(),
        ..Plan::of_artifact(&artifact, false, deadline)?
    };
    record.begin(Phase::Spawn);
    let vm = StartingVm::create(&plan)?;
    record.set("name", vm.name().as_str());
    vm.start(&plan, record)
}

/// Resident memory of a process, KiB.
fn resident_kib(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// All clones that were ready.
#[derive(Debug, Default)]
struct Samples {
    took: Vec<Duration>,
    /// By phase, in the order of the phases.
    phases: Vec<(String, Vec<Duration>)>,
    /// By the agent's step within REBIND, in the agent's order.
    steps: Vec<(String, Vec<Duration>)>,
    memory_kib: Vec<u64>,
    /// The most attempts that any clone needed, by phase.
    attempts: BTreeMap<String, u64>,
    vmm: Value,
}

impl Samples {
    fn add(&mut self, restored: &Restored) {
        self.took.push(restored.took);
        self.memory_kib.extend(restored.memory_kib);
        let record = &restored.record;
        self.vmm = record["vmm"].clone();
        // A JSON object is sorted by name, but the report lists phases in the order they run.
        for phase in PHASES.map(Phase::as_str) {
            if let Some(us) = record["phases_us"][phase].as_u64() {
                push(&mut self.phases, phase, us);
            }
        }
        for step in record["guest"]["steps"].as_array().into_iter().flatten() {
            if let (Some(name), Some(us)) = (step["name"].as_str(), step["us"].as_u64()) {
                push(&mut self.steps, name, us);
            }
        }
        for (phase, count) in record["attempts"].as_object().into_iter().flatten() {
            let most = self.attempts.entry(phase.clone()).or_default();
            *most = (*most).max(count.as_u64().unwrap_or(0));
        }
    }

    fn report(self, artifact: &Path, report: &mut Report) {
        let count = self.took.len();
        let Some(all) = Summary::of(self.took) else {
            return;
        };
        report.row(NAME, count, &all, String::new());
        let mut table = |prefix: &str, parts: Vec<(String, Vec<Duration>)>| -> Map<String, Value> {
            let mut object = Map::new();
            for (name, samples) in parts {
                let count = samples.len();
                if let Some(summary) = Summary::of(samples) {
                    report.row(&format!("{prefix}{name}"), count, &summary, String::new());
                    object.insert(name, summary.to_value());
                }
            }
            object
        };
        let phases = table("  ", self.phases);
        let steps = table("    guest: ", self.steps);
        let memory_kib = median(self.memory_kib);
        if let Some(kib) = memory_kib {
            let text = format!("resident memory of the VMM at READY: {kib} KiB (median)");
            report.notes.push(text);
        }
        report.set(
            NAME,
            json!({
                "artifact": artifact.display().to_string(),
                "vmm": { "kind": self.vmm["kind"], "version": self.vmm["version"] },
                "runs": count,
                "latency_us": all.to_value(),
                "phases_us": phases,
                "steps_us": steps,
                "attempts_max": self.attempts,
                "memory_kib": memory_kib,
            }),
        );
    }
}

fn push(parts: &mut Vec<(String, Vec<Duration>)>, name: &str, us: u64) {
    let took = Duration::from_micros(us);
    match parts.iter_mut().find(|(known, _)| known == name) {
        Some((_, samples)) => samples.push(took),
        None => parts.push((name.to_owned(), vec![took])),
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(rebind_us: u64, attempts: u64) -> Restored {
        Restored {
            took: Duration::from_millis(5),
            record: json!({
                "phases_us": { "rebind": rebind_us, "artifact": 7 },
                "attempts": { "rebind": attempts },
                "guest": { "steps": [{ "name": "clock", "us": 3 }] },
                "vmm": { "kind": "qemu", "version": "7.2.0", "pid": 1 },
            }),
            memory_kib: Some(rebind_us),
        }
    }

    #[test]
    fn phases_keep_their_order_and_the_worst_attempts() {
        let mut samples = Samples::default();
        for (us, attempts) in [(10, 1), (30, 4), (20, 2)] {
            samples.add(&restored(us, attempts));
        }
        let mut report = Report::default();
        samples.report(Path::new("base.snap"), &mut report);
        let names: Vec<&str> = report.rows.iter().map(|row| row[0].as_str()).collect();
        let expected = ["restore", "  artifact", "  rebind", "    guest: clock"];
        assert_eq!(names, expected);
        let value = &report.to_value()["restore"];
        assert_eq!(value["runs"], 3);
        assert_eq!(value["phases_us"]["rebind"]["p50"], 20);
        assert_eq!(value["attempts_max"], json!({ "rebind": 4 }));
        assert_eq!(value["memory_kib"], 20);
        assert_eq!(value["vmm"], json!({ "kind": "qemu", "version": "7.2.0" }));
    }

    #[test]
    fn without_a_clone_there_is_nothing_to_report() {
        let mut report = Report::default();
        Samples::default().report(Path::new("base.snap"), &mut report);
        assert!(report.to_value().get("restore").is_none());
    }

    #[test]
    fn a_median_is_a_value_that_occurred() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![4, 1]), Some(1));
        assert_eq!(median(vec![9, 1, 5]), Some(5));
    }
}
