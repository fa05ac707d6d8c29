//! What can happen to a clone, or to the commands that make it.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tests::process::{run, signal};

use crate::failpoints;
use crate::machine::{Machine, TIMEOUT};
use crate::proxy::Proxy;
use crate::sessions::{Follower, NUMBERED, kill_supervisor};

use super::{Random, check_clock};

/// Lines that a command has to print before and after a fault.
const LINE_COUNT: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Nothing,
    /// A step of an earlier restore fails.
    FailedStep,
    /// The restoring command is killed at one of its steps.
    KilledTool,
    KilledVmm,
    KilledSupervisor,
    /// The VMM is stopped until its guest no longer answers.
    Pause,
    /// The connection of a running command is cut, three times.
    Cut,
    /// Fifty commands, ten at a time.
    Load,
    /// The guest's clock is set wrong; a clone of it must be right.
    TimeJump,
    /// The clone is snapshotted while a command runs, and the line continues from that snapshot.
    Chain,
}

impl Fault {
    pub(super) const ALL: [Self; 11] = [
        Self::Nothing,
        Self::FailedStep,
        Self::KilledTool,
        Self::KilledVmm,
        Self::KilledSupervisor,
        Self::Pause,
        Self::Cut,
        Self::Load,
        Self::TimeJump,
        // Twice as likely, so that lines get long.
        Self::Chain,
        Self::Chain,
    ];

    /// What happens before the clone is restored.
    pub(super) fn before_restore(self, machine: &Machine, artifact: &Path, random: &mut Random) {
        let action = match self {
            Self::FailedStep => "fail",
            Self::KilledTool => "kill",
            _ => return,
        };
        let (point, _) = random.pick(failpoints::RESTORE);
        let mut command = machine.restore_command(artifact, "clone");
        command.env("HOST_TOOL_FAILPOINTS", format!("{point}={action}"));
        let ended = run(&mut command).complains(&format!("failpoint {point} fired"));
        assert_ne!(ended.code(), 0, "{ended}");
        // When the command has died, its supervisor ends the machine, which may take a moment.
        machine.await_processes();
    }

    /// What happens to the clone. Gives an artifact of it for the next clone, if one was made.
    pub(super) fn after_restore(self, machine: &Machine, random: &mut Random) -> Option<PathBuf> {
        match self {
            Self::Nothing | Self::FailedStep | Self::KilledTool => {}
            Self::KilledVmm => kill_vmm(machine),
            Self::KilledSupervisor => {
                kill_supervisor(machine);
                assert_eq!(machine.exec("clone", "echo alive"), "alive\n");
            }
            Self::Pause => pause(machine),
            Self::Cut => cut(machine),
            Self::Load => load(machine),
            Self::TimeJump => time_jump(machine, random),
            Self::Chain => return Some(snapshot_at_work(machine)),
        }
        None
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::FailedStep => "a step that fails",
            Self::KilledTool => "host-tool killed",
            Self::KilledVmm => "VMM killed",
            Self::KilledSupervisor => "supervisor killed",
            Self::Pause => "pause",
            Self::Cut => "cuts",
            Self::Load => "load",
            Self::TimeJump => "time jump",
            Self::Chain => "clone of a clone",
        })
    }
}

fn vmm_pid(machine: &Machine) -> u32 {
    let record = machine.tool(["inspect", "clone", "--json"]).exits(0).json();
    let pid = record["state"]["process"]["pid"].as_u64().unwrap();
    u32::try_from(pid).unwrap()
}

fn kill_vmm(machine: &Machine) {
    signal(vmm_pid(machine), Signal::SIGKILL);
    machine.await_processes();
    let ran = run(&mut machine.shell("clone", "true"));
    assert_ne!(ran.code(), 0, "a dead machine ran a command");
}

/// Starts a command that prints numbered lines until it is told to stop.
fn start_counting(machine: &Machine, target: &[&str]) -> (Follower, u64) {
    let follower = Follower::exec(machine, target, NUMBERED);
    let mut next = 0;
    follower.expect_numbers(&mut next, LINE_COUNT);
    (follower, next)
}

/// Ends it, and checks that every line came once and in order.
fn finish_counting(machine: &Machine, (follower, mut next): (Follower, u64)) {
    follower.expect_numbers(&mut next, LINE_COUNT);
    machine.exec("clone", "touch /tmp/stop");
    follower.finish_numbers(next).0.exits(0);
    machine.exec("clone", "rm /tmp/stop");
}

fn pause(machine: &Machine) {
    let counting = start_counting(machine, &["--name", "clone"]);
    let pid = vmm_pid(machine);
    signal(pid, Signal::SIGSTOP);
    let probe = machine.tool(["probe", "--name", "clone", "--timeout", "1s"]);
    signal(pid, Signal::SIGCONT);
    assert_ne!(
        probe.code(),
        0,
        "a machine that stood still answered: {probe}"
    );
    finish_counting(machine, counting);
}

fn cut(machine: &Machine) {
    let proxy = Proxy::start(machine, "clone");
    let socket = proxy.socket().to_str().unwrap().to_owned();
    let (follower, mut next) = start_counting(machine, &["--unix", &socket]);
    for _ in 0..3 {
        proxy.cut();
        follower.expect_numbers(&mut next, LINE_COUNT);
    }
    finish_counting(machine, (follower, next));
}

fn load(machine: &Machine) {
    let mut command = machine.line("stress --name clone --parallel 10 --total 50");
    run(command.args(["--timeout", TIMEOUT, "--", "sh", "-c", ":"])).exits(0);
}

/// Sets the clock years back or ahead, and checks that a clone's clock is right.
fn time_jump(machine: &Machine, random: &mut Random) {
    let date = random.pick(&["2001-02-03 04:05:06", "2037-08-09 10:11:12"]);
    machine.exec("clone", &format!("date -s '{date}'"));
    let artifact = machine.snapshot("clone", "jumped", &[]);
    machine.restore(&artifact, "again");
    check_clock(machine, "again");
    machine.tool(["rm", "again", "--force"]).exits(0);
    std::fs::remove_dir_all(artifact).unwrap();
}

fn snapshot_at_work(machine: &Machine) -> PathBuf {
    let counting = start_counting(machine, &["--name", "clone"]);
    let artifact = machine.snapshot("clone", "later", &[]);
    finish_counting(machine, counting);
    artifact
}
