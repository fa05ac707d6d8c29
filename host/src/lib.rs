//! `host-tool`: boots, snapshots and restores microVMs, proves that their guests are ready, and
//! runs commands in them.
//!
//! A command is short-lived and blocking: it does its phases in order, each under one deadline,
//! and ends. What outlives it is in files: a directory per VM ([`vmdir`]), an artifact directory
//! per snapshot ([`artifact`]), and per VM one [`supervisor`] process, which is the VMM's parent
//! and otherwise in nobody's way.
//!
//! ```text
//! cli ─▶ boot, restore, snapshot, probe, exec, attach, logs, stop, ls, doctor
//!          │            │                        │
//!          ▼            ▼                        ▼
//!        launch       guest (shared::exchange)  vmdir, artifact, record
//!          │            │
//!          ▼            ▼
//!   supervisor, vmm   uds, deadline ─▶ sys
//! ```

pub mod adopt;
pub mod artifact;
pub mod attach;
pub mod bench;
pub mod boot;
pub mod cli;
pub mod commands;
pub mod doctor;
pub mod environment;
pub mod error;
pub mod exec;
pub mod exit;
pub mod failpoint;
pub mod fleet;
pub mod guest;
pub mod kill;
pub mod lifecycle;
pub mod logs;
pub mod ls;
pub mod os;
pub mod probe;
pub mod ps;
pub mod report;
pub mod restore;
pub mod snapshots;
pub mod stop;
pub mod stress;
pub mod supervisor;
pub mod sys;
pub mod target;
#[cfg(test)]
pub(crate) mod testing;
pub mod values;
pub mod vmdir;
pub mod vmm;
pub mod wait;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::cli::Command;
use crate::cli::parse::{Invocation, parse};
use crate::error::Failure;
use crate::values::without_controls;

/// Runs the program with the arguments behind its name.
#[must_use]
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments
        .first()
        .is_some_and(|first| first == supervisor::COMMAND)
    {
        return supervisor::run(&arguments[1..]);
    }
    let invocation = match parse(arguments) {
        Ok(invocation) => invocation,
        Err(exit) => {
            let text = exit.text.as_bytes();
            // Nothing is left to be done about a closed output.
            let _ = match exit.code {
                0 => std::io::stdout().write_all(text),
                _ => std::io::stderr().write_all(text),
            };
            return ExitCode::from(exit.code);
        }
    };
    let common = invocation.command.common();
    start_log(common.quiet, common.verbose);
    let table = invocation.command.table();
    match failpoint::arm().and_then(|()| dispatch(invocation)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            report(&failure);
            ExitCode::from(table.code(failure.exit()))
        }
    }
}

/// Does what was asked for, and gives the exit code: 0, or a guest's own.
fn dispatch(invocation: Invocation) -> Result<u8, Failure> {
    match invocation.command {
        Command::Boot(command) => boot::run(&command).map(|()| 0),
        Command::Snapshot(command) => lifecycle::snapshot::run(&command).map(|()| 0),
        Command::Snapshots(command) => snapshots::run(&command).map(|()| 0),
        Command::Restore(command) => restore::run(&command).map(|()| 0),
        Command::Probe(command) => probe::run(&command).map(|()| 0),
        Command::Exec(command) => exec::run(&command, invocation.argv),
        Command::Attach(command) => attach::run(&command),
        Command::Wait(command) => wait::run(&command),
        Command::Kill(command) => kill::run(&command).map(|()| 0),
        Command::Ps(command) => ps::run(&command).map(|()| 0),
        Command::Logs(command) => logs::run(&command).map(|()| 0),
        Command::Stress(command) => stress::run(&command, invocation.argv).map(|()| 0),
        Command::Bench(command) => bench::run(&command, invocation.argv).map(|()| 0),
        Command::Ls(command) => ls::list(&command).map(|()| 0),
        Command::Inspect(command) => ls::inspect(&command).map(|()| 0),
        Command::Stop(command) => stop::stop(&command).map(|()| 0),
        Command::Rm(command) => stop::remove(&command).map(|()| 0),
        Command::Doctor(command) => doctor::run(&command).map(|()| 0),
    }
}

/// Tells the user why, on standard error.
fn report(failure: &Failure) {
    let mut stderr = std::io::stderr().lock();
    // Nothing is left to be done about a closed standard error.
    let text = without_controls(&failure.to_string());
    let _ = writeln!(stderr, "host-tool: {text}");
    if let Some(details) = failure.details() {
        let _ = stderr.write_all(details.as_bytes());
    }
}

/// Sends the log to standard error, a line each, as this program's other messages are.
fn start_log(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => log::LevelFilter::Error,
        (false, 0) => log::LevelFilter::Warn,
        (false, 1) => log::LevelFilter::Info,
        (false, 2) => log::LevelFilter::Debug,
        (false, _) => log::LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            let text = without_controls(&record.args().to_string());
            writeln!(out, "host-tool: {level}: {text}")
        })
        .init();
}
