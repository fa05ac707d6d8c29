//! Growth: how time and memory follow the number of sessions and connections, the length of the
//! arguments and the volume of output. Each should be flat or a straight line.

use std::process::{Command, Stdio};
use std::time::Instant;

use shared::message::Message;

use crate::catalogue::Unit;
use crate::exec::{NOOP, fresh_connection, timed};
use crate::peers;
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::stats::count;
use crate::wire::{Wire, exec_of};
use crate::{Failure, Options, procfs};

/// How many sessions or connections exist at once.
const COUNTS: [usize; 7] = [0, 1, 10, 50, 100, 200, 500];

/// KiB of arguments, below the protocol's limit.
const ARGUMENTS_KIB: [usize; 7] = [0, 1, 4, 16, 64, 256, 512];

/// Longest single argument: the kernel's limit is 128 KiB.
const ARGUMENT_LEN: usize = 64 * 1024;

/// MiB of output of one command after another.
const OUTPUT_MIB: [usize; 5] = [1, 4, 16, 64, 256];

pub(crate) fn measure(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let samples = if options.is_quick { 20 } else { 200 };
    let hold = exec_of(["sleep", "1000"]);
    crowd(results, samples, "sessions", |endpoint| {
        let mut exec = hold.clone();
        exec.id = exec_of([NOOP]).id;
        let mut wire = Wire::open(endpoint, &Message::Exec(exec).encode())?;
        match wire.answer()? {
            Message::Started(_) => Ok(wire),
            other => Err(format!("no STARTED but {other:?}").into()),
        }
    })?;
    crowd(results, samples, "connections", |endpoint| {
        let mut wire = Wire::open(endpoint, &[])?;
        wire.ask(&Message::InfoRequest)?;
        Ok(wire)
    })?;
    arguments(options, results)?;
    output(options, results)
}

/// Time of a no-op exec, and the agent's memory, beside a growing number of what `add_one` makes.
fn crowd(
    results: &mut Results,
    samples: usize,
    what: &str,
    mut add_one: impl FnMut(&crate::wire::Endpoint) -> Result<Wire, Failure>,
) -> Result<(), Failure> {
    let agent = peers::agent()?;
    let endpoint = agent.endpoint();
    let mut crowd = Vec::new();
    for target in COUNTS {
        let mut joined = Vec::new();
        while crowd.len() < target {
            joined.push(timed(|| {
                crowd.push(add_one(&endpoint)?);
                Ok(())
            })?);
        }
        let x = Some(count(target));
        let case = |figure: &str| format!("growth/{what}_{figure}");
        results.add(&case("join"), "agent", x, Unit::Microseconds, &joined);
        let times: Vec<f64> = (0..samples)
            .map(|_| timed(|| fresh_connection(&endpoint, NOOP)))
            .collect::<Result<_, _>>()?;
        results.add(&case("exec"), "agent", x, Unit::Microseconds, &times);
        let (rss, _) = procfs::memory_kib(agent.pid())?;
        results.add(&case("rss"), "agent", x, Unit::Kibibytes, &[rss]);
    }
    Ok(())
}

fn arguments(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let agent = peers::agent()?;
    let endpoint = agent.endpoint();
    let rounds = if options.is_quick { 10 } else { 100 };
    for kib in ARGUMENTS_KIB {
        let mut argv = vec![NOOP.to_owned()];
        let mut left = kib * 1024;
        while left > 0 {
            let len = left.min(ARGUMENT_LEN);
            argv.push("x".repeat(len));
            left -= len;
        }
        let subjects = vec![
            Subject::new("posix_spawn", || {
                Ok(vec![timed(|| {
                    let mut command = Command::new(NOOP);
                    command.args(&argv[1..]).stdin(Stdio::null());
                    command.status()?;
                    Ok(())
                })?])
            }),
            Subject::new("agent", || {
                let exec = exec_of(&argv);
                Ok(vec![timed(|| Wire::run(&endpoint, exec).map(drop))?])
            }),
        ];
        let outcomes = interleave(rounds, subjects);
        results.add_all(
            "growth/arguments",
            Some(count(kib)),
            Unit::Microseconds,
            outcomes,
        );
    }
    Ok(())
}

/// Time that a command's output takes, and the agent's memory after it.
fn output(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let agent = peers::agent()?;
    let path = std::env::current_exe()?;
    let path = path.to_str().ok_or("a path that is not UTF-8")?;
    for mib in OUTPUT_MIB {
        if options.is_quick && mib > 64 {
            continue;
        }
        let len = (mib << 20).to_string();
        let mut times = Vec::new();
        for _ in 0..options.count(5) {
            let started_at = Instant::now();
            let exec = exec_of([path, "produce", &len, "65536"]);
            let ran = Wire::run(&agent.endpoint(), exec)?;
            times.push(started_at.elapsed().as_secs_f64() * 1e3);
            if ran.exited.stdout_end != u64::try_from(mib << 20)? {
                return Err(format!("{} of {len} bytes came", ran.stdout_len).into());
            }
        }
        let (rss, _) = procfs::memory_kib(agent.pid())?;
        let x = Some(count(mib));
        results.add("growth/output", "agent", x, Unit::Milliseconds, &times);
        results.add("growth/output_rss", "agent", x, Unit::Kibibytes, &[rss]);
    }
    Ok(())
}
