//! One file for each command: it checks the arguments, calls the layers below, and prints.

mod attach;
mod bench;
mod boot;
mod doctor;
mod environment;
mod exec;
mod kill;
mod load;
mod logs;
mod ls;
mod machine;
mod probe;
mod ps;
mod restore;
mod session;
mod snapshot;
mod snapshots;
mod stop;
mod stress;
mod target;
mod wait;

use crate::cli::Command;
use crate::cli::parse::Invocation;
use crate::error::Failure;

/// Runs the command. Returns the exit code: 0, or that of the command in the guest.
pub(crate) fn run(invocation: Invocation) -> Result<u8, Failure> {
    match invocation.command {
        Command::Boot(command) => boot::run(&command).map(|()| 0),
        Command::Snapshot(command) => snapshot::run(&command).map(|()| 0),
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
