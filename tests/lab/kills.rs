//! A VMM or a supervisor is killed at each point of the commands that work with them.
//!
//! Goal: whichever process dies at whatever point, the command fails long before its time limit,
//! and works when it is repeated. Method: `HOST_TOOL_FAILPOINTS` with a delay. Its mark says that
//! the command has come to the point, and the delay leaves time to kill there; nothing else depends
//! on it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tests::process::{Finished, run, signal};

use crate::Case;
use crate::failpoints::{RESTORE, SNAPSHOT};
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("a_vmm_killed_at_each_point_of_a_restore", |machine| {
        killed_during_restores(machine, Victim::Vmm);
    }),
    (
        "a_supervisor_killed_at_each_point_of_a_restore",
        |machine| {
            killed_during_restores(machine, Victim::Supervisor);
        },
    ),
    (
        "a_supervisor_killed_at_each_point_of_a_snapshot",
        a_supervisor_killed_during_snapshots,
    ),
];

/// The process to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Vmm,
    Supervisor,
}

impl Victim {
    fn kill(self, machine: &Machine) {
        for (pid, name) in machine.processes() {
            if name.starts_with("host-tool") == (self == Self::Supervisor) {
                signal(pid, Signal::SIGKILL);
            }
        }
    }
}

/// Runs the command, and calls `kill` when it has come to the point.
#[track_caller]
fn run_and_kill(command: &mut Command, point: &str, kill: impl FnOnce()) -> Finished {
    command.env("HOST_TOOL_FAILPOINTS", format!("{point}=delay:1000"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (mark, mut stderr) = (format!("failpoint {point} fired\n"), String::new());
    while !stderr.ends_with(&mark) {
        let len = log.read_line(&mut stderr).unwrap();
        assert_ne!(len, 0, "never came to {point}: {stderr}");
    }
    kill();
    log.read_to_string(&mut stderr).unwrap();
    let output = child.wait_with_output().unwrap();
    Finished {
        status: output.status,
        stdout: output.stdout,
        stderr: stderr.into_bytes(),
    }
}

/// Each restore is also the repetition of the one before.
fn killed_during_restores(machine: &Machine, victim: Victim) {
    let artifact = machine.artifact();
    let points = RESTORE.iter().map(|(point, _)| *point);
    // Before this point there is no process to kill.
    for point in points.skip_while(|point| *point != "spawn.spawned") {
        let mut command = machine.restore_command(&artifact, "vm");
        let ended = run_and_kill(&mut command, point, || victim.kill(machine));
        eprintln!("{victim:?} killed at {point}: {ended}");
        match ended.code() {
            // It came too late to disturb the command, or does not matter there.
            0 => drop(machine.tool(["rm", "vm", "--force"]).exits(0)),
            1 | 5 | 8 => {}
            _ => panic!("{victim:?} killed at {point}: {ended}"),
        }
    }
    machine.restore(&artifact, "vm");
    assert_eq!(machine.exec("vm", "echo ready"), "ready\n");
    machine.end("vm");
    machine.await_processes();
    machine.is_clean();
}

/// A snapshot does not need the supervisor, so its death changes nothing.
fn a_supervisor_killed_during_snapshots(machine: &Machine) {
    let origin = machine.artifact();
    let artifact = machine.path("copy");
    for (point, _) in SNAPSHOT {
        machine.restore(&origin, "vm");
        let args = ["snapshot", "--json", "--name", "vm", "--timeout", TIMEOUT];
        let mut command = machine.command(args);
        command.arg("--out").arg(&artifact);
        let kill = || Victim::Supervisor.kill(machine);
        run_and_kill(&mut command, point, kill).exits(0);
        assert_eq!(machine.exec("vm", "echo on"), "on\n", "{point}");
        let args = ["snapshots", "verify", artifact.to_str().unwrap()];
        run(&mut machine.command(args)).exits(0);
        fs::remove_dir_all(&artifact).unwrap();
        machine.tool(["rm", "vm", "--force"]).exits(0);
        machine.is_clean();
    }
}
