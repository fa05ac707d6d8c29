//! `host-tool`: boots, snapshots and restores microVMs, proves that their guests are ready, and
//! runs commands in them.
//!
//! A command is short-lived and blocking: it does its phases in order, each under one deadline,
//! and ends. What outlives it is in files: a directory per VM (`vmdir`), an artifact directory
//! per snapshot (`artifact`), and per VM one `supervisor` process, which is the VMM's parent.
//!
//! The modules are layers. Each names itself and those below it, which a test enforces:
//!
//! ```text
//! commands              one file for each command: arguments in, work done, output printed
//! cli                   the argument types and their parser
//! lifecycle             a VM from a plan to proven, to a snapshot, to its end
//! supervisor            the process that stays with a VM
//! report                what a command did, for people and scripts
//! artifact              snapshots on disk
//! vmdir                 a VM's directory
//! vmm                   the VMMs, their versions and faults
//! guest                 a guest's address, and conversations with it
//! values, failpoint     what options hold; faults for tests
//! os                    this machine, with a deadline on everything
//! exit, error           why a command failed, and the number for it
//! sys                   system calls; the only unsafe
//! ```

mod artifact;
mod cli;
mod commands;
mod error;
mod exit;
mod failpoint;
pub mod fuzzing;
mod guest;
mod lifecycle;
mod os;
mod report;
mod supervisor;
mod sys;
#[cfg(test)]
mod testing;
mod values;
mod vmdir;
mod vmm;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::cli::parse::{EarlyExit, parse};
use crate::error::Failure;
use crate::exit::Table;
use crate::report::log::start_log;
use crate::report::output::write_out;
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
        Err(exit) => return print_early(&exit),
    };
    let common = invocation.command.common();
    start_log(common.quiet, common.verbose);
    let table = invocation.command.table();
    match failpoint::arm().and_then(|()| commands::run(invocation)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            report(&failure);
            ExitCode::from(table.code(failure.exit()))
        }
    }
}

/// Prints help, the version, or what is wrong with the command line.
fn print_early(exit: &EarlyExit) -> ExitCode {
    let text = exit.text.as_bytes();
    if exit.code != 0 {
        // Nothing is left to be done about a closed standard error.
        let _ = std::io::stderr().write_all(text);
        return ExitCode::from(exit.code);
    }
    match write_out(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(Table::General.code(failure.exit()))
        }
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
