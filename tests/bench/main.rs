//! `bench`: measures the two programs beside what people would use instead, compares runs, and
//! makes the report. `scripts/bench.sh` builds what it needs and calls it.
//!
//! Within a run the subjects that are compared take turns; see [`rounds`]. The record of a run is
//! one file, and the report is made from that file alone.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that people read the output of"
)]

mod budgets;
mod catalogue;
mod compare;
mod exec;
mod facts;
mod footprint;
mod growth;
mod lab;
mod peers;
mod procfs;
mod report;
mod results;
mod rounds;
mod stats;
mod streams;
mod vmm;
mod wire;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use catalogue::Unit;
use results::Results;

/// Why a measurement failed, as text.
type Failure = Box<dyn Error + Send + Sync>;

const USAGE: &str = "usage: bench measure OUT.json [--quick] GROUP...
       bench merge OUT.json IN.json...
       bench report IN.json FOLDER
       bench compare OLD.json NEW.json
groups: exec streams footprint growth instructions lab lab-firecracker lab-qemu";

#[derive(Debug, Clone, Copy)]
struct Options {
    /// A few repetitions only, to see that everything runs.
    is_quick: bool,
}

impl Options {
    /// How often to repeat something that a full run repeats `full` times.
    fn count(self, full: usize) -> usize {
        if self.is_quick { full.min(2) } else { full }
    }

    /// The name in the record.
    const fn run(self) -> &'static str {
        if self.is_quick { QUICK } else { "full" }
    }
}

/// A run with too few repetitions to quote its figures.
const QUICK: &str = "quick";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<ExitCode, Failure> {
    match arguments {
        ["measure", out, rest @ ..] => measure(Path::new(out), rest)?,
        ["merge", out, ins @ ..] => merge(Path::new(out), ins)?,
        ["report", path, folder] => {
            report::write(&Results::read(Path::new(path))?, Path::new(folder))?
        }
        ["compare", old, new] => return compare(Path::new(old), Path::new(new)),
        // The commands whose streams are measured.
        ["produce", len, piece] => streams::produce(len.parse()?, piece.parse()?)?,
        ["consume", len, ..] => streams::consume(len.parse()?)?,
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(out: &Path, arguments: &[&str]) -> Result<(), Failure> {
    let options = Options {
        is_quick: arguments.contains(&"--quick"),
    };
    let mut results = Results::default();
    let groups = || arguments.iter().filter(|it| !it.starts_with("--"));
    if groups().any(|group| !group.starts_with("lab")) {
        facts::note(&options, &mut results)?;
    }
    let mut failed = Vec::new();
    for &group in groups() {
        eprintln!("== {group}");
        let measured = measure_group(group, &options, &mut results, out);
        // The other groups still run.
        if let Err(failure) = measured {
            results.skip(group, failure);
            failed.push(group);
        }
        results.write(out)?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!("not all was measured: {}", failed.join(", ")).into())
}

fn measure_group(
    group: &str,
    options: &Options,
    results: &mut Results,
    out: &Path,
) -> Result<(), Failure> {
    match group {
        "exec" => exec::measure(options, results),
        "streams" => streams::measure(options, results),
        "footprint" => footprint::measure(options, results),
        "growth" => growth::measure(options, results),
        "lab" => lab::measure(options, None, results, out),
        "lab-firecracker" | "lab-qemu" => {
            lab::measure(options, group.strip_prefix("lab-"), results, out)
        }
        "instructions" => instructions(results),
        _ => Err(format!("there is no group {group:?}\n{USAGE}").into()),
    }
}

/// Merges the records of several runs. A later record replaces what it measured again.
fn merge(out: &Path, ins: &[&str]) -> Result<(), Failure> {
    let mut all = Results::default();
    for path in ins {
        all.merge(Results::read(Path::new(path))?);
    }
    all.write(out)
}

/// Prints what changed. The exit code is 1 when something got slower.
fn compare(old: &Path, new: &Path) -> Result<ExitCode, Failure> {
    let comparison = compare::compare(&Results::read(old)?, &Results::read(new)?);
    for line in &comparison.better {
        println!("better: {line}");
    }
    for line in &comparison.worse {
        println!("worse:  {line}");
    }
    let (compared, worse) = (comparison.compared, comparison.worse.len());
    println!("{compared} figures compared, {worse} worse beyond noise");
    Ok(ExitCode::from(u8::from(worse > 0)))
}

/// Copies the counts that the test `instructions` keeps.
fn instructions(results: &mut Results) -> Result<(), Failure> {
    let path = tests::top().join("tests/instructions.json");
    let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for (scenario, count) in kept["instructions"].as_object().into_iter().flatten() {
        let count = count.as_f64().ok_or("a count is not a number")?;
        let unit = Unit::Instructions;
        results.add("instructions/agent", scenario, None, unit, &[count]);
    }
    Ok(())
}
