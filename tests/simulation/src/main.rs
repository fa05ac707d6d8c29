//! Plays schedules and reports the result; see `scripts/simulate.sh`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use simulation::run::{self, LENGTHS, Limit, Report};
use simulation::tally::Mark;

/// How many schedules are played by default.
const RUNS_DEFAULT: u64 = 1_000_000;

/// The command line.
struct Options {
    first: u64,
    limit: Limit,
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        first: 0,
        limit: Limit::Runs(RUNS_DEFAULT),
    };
    let mut arguments = arguments;
    while let Some(name) = arguments.next() {
        let value: u64 = arguments.next()?.parse().ok()?;
        match name.as_str() {
            "--seed" => options.first = value,
            "--runs" => options.limit = Limit::Runs(value),
            "--seconds" => options.limit = Limit::Time(Duration::from_secs(value)),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let seed = std::env::var("SEED").ok();
    let result = match (seed, parse(&mut arguments)) {
        (Some(seed), Some(_)) => match seed.parse() {
            Ok(seed) => replay(seed),
            Err(_) => return usage("SEED is a number"),
        },
        (None, Some(options)) => play(&options),
        (_, None) => return usage("wrong arguments; see scripts/simulate.sh --help"),
    };
    result.unwrap_or(ExitCode::FAILURE)
}

fn usage(text: &str) -> ExitCode {
    // Without a standard error the message is lost.
    let _ = writeln!(io::stderr(), "simulation: {text}");
    ExitCode::from(2)
}

/// Plays one schedule and prints what happened.
fn replay(seed: u64) -> io::Result<ExitCode> {
    let limit = Limit::Runs(1);
    let report = run::run(seed, limit, 1);
    if report.failed.is_some() {
        return fail(seed);
    }
    writeln!(io::stdout(), "ok: seed {seed}, {} steps", report.steps)?;
    Ok(ExitCode::SUCCESS)
}

fn fail(seed: u64) -> io::Result<ExitCode> {
    let mut out = io::stdout();
    writeln!(out, "\nmade as short as possible, the last steps are:")?;
    for line in run::trace(seed) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "FAILED: replay with SEED={seed} scripts/simulate.sh")?;
    Ok(ExitCode::FAILURE)
}

fn play(options: &Options) -> io::Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = run::run(options.first, options.limit, threads);
    print(&report)?;
    if let Some(seed) = report.failed {
        return fail(seed);
    }
    let next = options.first.wrapping_add(report.schedules);
    let last = next.wrapping_sub(1);
    writeln!(
        io::stdout(),
        "ok: {} schedules, {} steps, seeds {} to {last}",
        report.schedules,
        report.steps,
        options.first,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout();
    for mark in Mark::ALL {
        writeln!(out, "{:>12}  {}", report.tally.of(*mark), mark.name())?;
    }
    for (most, count) in LENGTHS.iter().zip(report.lengths) {
        writeln!(out, "{count:>12}  schedules of up to {most} steps")?;
    }
    Ok(())
}
