//! `host-tool bench`: measures a guest and its restores on this machine: a command, alone and in
//! parallel, the throughput of its streams, and each phase of a restore.
//!
//! Each part is measured separately. A part that fails is reported, and the others still run.
//! `scripts/bench.sh` compares host-tool with other programs.

mod restores;
mod streams;

use std::ffi::OsString;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use shared::message::{ByteString, Info};

use crate::cli::{BenchCommand, TargetArguments};
use crate::commands::load::latency::Summary;
use crate::commands::load::{Load, check_count, common_exit, make_room, open_sink, parse_argv};
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::HOST_VERSION;
use crate::report::output::print;
use crate::report::table::columns;
use crate::values::printable;

/// Time limit of the whole benchmark without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10 * 60);

/// How many commands run at once: one measurement for each number.
const PARALLEL: [u32; 3] = [1, 10, 100];

/// Most of `--runs` and of `--restores`: the duration of each is kept.
const COUNT_MAX: u32 = 100_000;

pub(crate) fn run(command: &BenchCommand, argv: Option<Vec<OsString>>) -> Result<(), Failure> {
    check_count("--runs", command.runs, COUNT_MAX)?;
    check_count("--restores", command.restores, COUNT_MAX)?;
    let argv = parse_argv(argv)?;
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    let mut report = Report::default();
    report.set("machine", machine());
    report.set("host_tool", HOST_VERSION);
    if has_target(&command.into()) {
        let most = PARALLEL.into_iter().max().unwrap_or(1);
        make_room(most, &format!("{most} commands at once"))?;
        let target = Target::find(command.into(), command.state_dir.as_deref())?;
        report.note_guest(&target, deadline)?;
        execs(&target, &argv, command.runs, deadline, &mut report)?;
        streams::measure(&target, command.size, deadline, &mut report);
    } else if command.artifact.is_none() {
        let text = "give a guest with --name, --uds, --cid or --unix, or a snapshot with \
                    --artifact";
        return Err(Failure::usage(text));
    }
    if let Some(artifact) = &command.artifact {
        restores::measure(command, artifact, deadline, &mut report)?;
    }
    report.print(command.json)
}

/// Whether the command line gives a guest. [`Target::find`] checks the options themselves.
const fn has_target(arguments: &TargetArguments<'_>) -> bool {
    arguments.name.is_some()
        || arguments.uds.is_some()
        || arguments.cid.is_some()
        || arguments.unix.is_some()
}

/// The properties of this machine that results depend on.
fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "processor": model,
        "processors": thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "kernel": kernel.trim(),
    })
}

/// Measures the round trip of a command, for each number of [`PARALLEL`].
fn execs(
    target: &Target,
    argv: &[ByteString],
    runs: u32,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), Failure> {
    let load = |parallel: u32, total: u32| -> Result<_, Failure> {
        let load = Load {
            target,
            argv: argv.to_vec(),
            parallel,
            total,
            deadline,
            sink: open_sink()?,
        };
        Ok(load.run())
    };
    // Loads the program into the guest's page cache.
    load(1, 1)?;
    let mut values = Vec::new();
    for parallel in PARALLEL {
        // With fewer runs than threads, fewer than `parallel` would run at once.
        let done = load(parallel, runs.max(parallel))?;
        let what = format!("exec, {parallel} at once");
        let mut value = done.to_value();
        if let Some(object) = value.as_object_mut() {
            // These two are about `bench` as a whole.
            object.remove("event");
            object.remove("exit");
        }
        values.push(value);
        if let Some(summary) = done.summary() {
            let rate = format!("{:.1}/s", done.per_second());
            report.row(&what, done.succeeded(), &summary, rate);
        }
        if let Some(failure) = done.failure() {
            report.fail(&what, failure);
        }
    }
    report.set("exec", values);
    Ok(())
}

/// The results so far.
#[derive(Debug, Default)]
struct Report {
    fields: Map<String, Value>,
    /// Lines above the table.
    heads: Vec<String>,
    rows: Vec<[String; 8]>,
    /// Lines below the table.
    notes: Vec<String>,
    failures: Vec<(String, Failure)>,
}

impl Report {
    fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }

    /// Records the guest's versions. Fails if the guest does not answer.
    fn note_guest(&mut self, target: &Target, deadline: Instant) -> Result<(), Failure> {
        let Info {
            agent_version,
            kernel,
            ..
        } = target.guest(deadline).info()?;
        self.heads.push(format!(
            "guest-agent {} on Linux {}",
            printable(&agent_version),
            printable(&kernel)
        ));
        let guest = json!({ "agent_version": agent_version, "kernel": kernel });
        self.set("guest", guest);
        Ok(())
    }

    /// Adds a line to the table, with durations in milliseconds.
    fn row(&mut self, what: &str, count: usize, summary: &Summary, rate: String) {
        let ms = |duration: Duration| format!("{:.3}", duration.as_secs_f64() * 1e3);
        let Summary {
            min,
            p50,
            p90,
            p99,
            max,
        } = *summary;
        let [min, p50, p90, p99, max] = [min, p50, p90, p99, max].map(ms);
        let count = count.to_string();
        self.rows
            .push([what.to_owned(), count, min, p50, p90, p99, max, rate]);
    }

    fn fail(&mut self, what: &str, failure: Failure) {
        self.failures.push((what.to_owned(), failure));
    }

    fn exit(&self) -> Exit {
        common_exit(self.failures.iter().map(|(_, failure)| failure.exit()))
    }

    fn to_value(&self) -> Value {
        let failures: Map<String, Value> = self
            .failures
            .iter()
            .map(|(what, failure)| (what.clone(), failure.to_string().into()))
            .collect();
        let event = if failures.is_empty() {
            "done"
        } else {
            "failed"
        };
        let mut value = Value::Object(self.fields.clone());
        value["event"] = event.into();
        value["exit"] = Table::General.code(self.exit()).into();
        value["failures"] = failures.into();
        value
    }

    fn to_text(&self) -> String {
        let heading = ["MS", "N", "MIN", "P50", "P90", "P99", "MAX", "RATE"];
        let mut table = vec![heading.map(str::to_owned)];
        table.extend(self.rows.iter().cloned());
        let mut lines = self.heads.clone();
        if !self.rows.is_empty() {
            lines.push(columns(&table).trim_end().to_owned());
        }
        lines.extend(self.notes.iter().cloned());
        let failures = self.failures.iter();
        lines.extend(failures.map(|(what, failure)| format!("failed: {what}: {failure}")));
        lines.join("\n")
    }

    fn print(mut self, is_json: bool) -> Result<(), Failure> {
        let printed = if is_json {
            print(&self.to_value().to_string())
        } else {
            print(&self.to_text())
        };
        let (exit, count) = (self.exit(), self.failures.len());
        if count == 0 {
            return printed;
        }
        let (what, first) = self.failures.swap_remove(0);
        let text = match count {
            1 => format!("{what} failed"),
            _ => format!("{count} parts failed, the first of them is {what}"),
        };
        Err(first.context(text).with_exit(exit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.heads.push("a guest".to_owned());
        let summary = Summary::of(vec![Duration::from_micros(1500); 3]).unwrap();
        report.row("exec, 1 at once", 3, &summary, "666.7/s".to_owned());
        report.set("machine", machine());
        report
    }

    #[test]
    fn figures_are_aligned_with_their_headings() {
        let expected = "a guest\n\
             MS               N  MIN    P50    P90    P99    MAX    RATE\n\
             exec, 1 at once  3  1.500  1.500  1.500  1.500  1.500  666.7/s";
        assert_eq!(report().to_text(), expected);
        let value = report().to_value();
        assert_eq!(
            (&value["event"], &value["exit"]),
            (&json!("done"), &json!(0))
        );
        assert!(value["machine"]["processors"].as_u64() > Some(0), "{value}");
    }

    #[test]
    fn a_failed_part_is_named_and_sets_the_exit_code() {
        let mut report = report();
        report.fail("stdout", Failure::new(Exit::NotFound, "there is no head"));
        let value = report.to_value();
        assert_eq!(value["exit"], 6);
        assert_eq!(value["failures"], json!({ "stdout": "there is no head" }));
        let text = report.to_text();
        assert!(
            text.ends_with("\nfailed: stdout: there is no head"),
            "{text}"
        );
        report.fail("restore", Failure::new(Exit::Deadline, "too late"));
        assert_eq!(report.exit(), Exit::Guest, "the exits differ");
    }
}
