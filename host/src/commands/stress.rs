//! `host-tool stress`: runs one command many times in parallel, with the client that `exec` uses.

use std::ffi::OsString;
use std::time::Duration;

use crate::cli::StressCommand;
use crate::commands::load::{Load, check_count, make_room, open_sink, parse_argv};
use crate::commands::target::Target;
use crate::error::Failure;
use crate::report::output::print;

/// Time limit of all runs without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Most runs at once: each is a thread on the host and a connection to the guest.
const PARALLEL_MAX: u32 = 1024;

/// Most runs in all: the latency of each is kept.
const TOTAL_MAX: u32 = 1_000_000;

pub(crate) fn run(command: &StressCommand, argv: Option<Vec<OsString>>) -> Result<(), Failure> {
    check_count("--parallel", command.parallel, PARALLEL_MAX)?;
    check_count("--total", command.total, TOTAL_MAX)?;
    let argv = parse_argv(argv)?;
    let parallel = command.parallel.min(command.total);
    make_room(parallel, &format!("--parallel {parallel}"))?;
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let load = Load {
        target: &target,
        argv,
        parallel,
        total: command.total,
        deadline: target.deadline(TIMEOUT_DEFAULT),
        sink: open_sink()?,
    };
    let report = load.run();
    let printed = if command.json {
        print(&report.to_value().to_string())
    } else {
        print(&report.to_text())
    };
    match report.failure() {
        Some(failure) => Err(failure.context(target.endpoint.to_string())),
        None => printed,
    }
}
