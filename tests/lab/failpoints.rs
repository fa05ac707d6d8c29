//! Each step of restore, snapshot and boot is made to fail, and to kill its command.
//!
//! Goal: whatever step fails, the command says which one, leaves nothing behind that is not a VM or
//! an artifact as a whole, and works when it is given again. Method: `HOST_TOOL_FAILPOINTS`, a
//! point at a time, and a look at the mark that each leaves when it fires.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::process::{Finished, run};

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("every_failpoint_has_a_case", every_failpoint_has_a_case),
    ("a_host_that_is_slow_everywhere", a_slow_host),
    ("a_restore_fails_at_each_point", |machine| {
        restore_at_each_point(machine, Fault::Fail);
    }),
    ("a_restore_is_killed_at_each_point", |machine| {
        restore_at_each_point(machine, Fault::Kill);
    }),
    ("a_snapshot_fails_at_each_point", |machine| {
        snapshot_at_each_point(machine, Fault::Fail);
    }),
    ("a_snapshot_is_killed_at_each_point", |machine| {
        snapshot_at_each_point(machine, Fault::Kill);
    }),
    ("a_boot_fails_at_its_own_points", a_boot_fails),
];

/// A point, and the exit code of a failure there. The phase is the front of the name.
type Point = (&'static str, i32);

const RESTORE: &[Point] = &[
    ("artifact.before", 3),
    ("version.before", 4),
    ("spawn.before", 5),
    ("spawn.created", 5),
    ("spawn.spawned", 5),
    ("spawn.written", 5),
    ("spawn.connected", 5),
    ("load.before", 5),
    ("load.after", 5),
    ("rebind.before", 6),
    ("rebind.sent", 1),
    ("rebind.after", 6),
    ("probe.before", 6),
    ("probe.sent", 1),
    ("probe.after", 6),
    ("publish.state", 1),
    ("publish.release", 1),
];

const SNAPSHOT: &[Point] = &[
    ("lock.before", 1),
    ("lock.after", 1),
    ("version.before", 4),
    ("artifact.before", 3),
    ("quiesce.before", 6),
    ("quiesce.sent", 1),
    ("pause.before", 5),
    ("pause.after", 5),
    ("save.after", 5),
    ("disks.after", 3),
    ("resume.before", 5),
    ("resume.after", 5),
    ("rebind.before", 6),
    ("rebind.sent", 1),
    ("rebind.after", 6),
    ("probe.before", 6),
    ("probe.sent", 1),
    ("probe.after", 6),
    ("publish.before", 3),
    ("publish.rename", 3),
];

/// Reached only by a snapshot after an interrupted one, and by one that ends its source.
const CONVERGE: Point = ("converge.before", 5);
const STOP: Point = ("stop.before", 1);

const BOOT: &[Point] = &[("start.before", 5), ("start.after", 5)];

/// What a point does to its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fail,
    Kill,
}

/// Runs the command with one point armed. Fails unless that fired, and ended the command as it
/// should.
#[track_caller]
fn run_with(command: &mut Command, (name, exit): Point, fault: Fault) -> Finished {
    let word = match fault {
        Fault::Fail => "fail",
        Fault::Kill => "kill",
    };
    command.env("HOST_TOOL_FAILPOINTS", format!("{name}={word}"));
    let ended = run(command).complains(&format!("failpoint {name} fired"));
    match fault {
        Fault::Kill => ended.exits(137),
        Fault::Fail => {
            let phase = name.split('.').next().unwrap();
            let ended = ended
                .exits(exit)
                .complains(&format!("host-tool: {phase} failed: "))
                .complains(&format!("injected at failpoint {name}"));
            let record = ended.json();
            assert_eq!(
                (&record["event"], &record["phase"], &record["exit"]),
                (&"failed".into(), &phase.into(), &exit.into()),
                "{record}"
            );
            ended
        }
    }
}

/// A point that no case fires would be a point that does nothing.
fn every_failpoint_has_a_case(machine: &Machine) {
    let mut command = machine.command(["ls"]);
    let refused = run(command.env("HOST_TOOL_FAILPOINTS", "?")).exits(2).err();
    let listed = refused.trim().split_once("there are ").expect("a list").1;
    let listed: BTreeSet<&str> = listed.split(' ').collect();
    let fired = [RESTORE, SNAPSHOT, BOOT, &[CONVERGE, STOP]].concat();
    let fired: BTreeSet<&str> = fired.into_iter().map(|(name, _)| name).collect();
    assert_eq!(listed, fired);
}

/// Arms all of them with a delay, and fails unless all have fired.
#[track_caller]
fn delay_all(command: &mut Command, points: &[Point]) {
    let words: Vec<String> = points
        .iter()
        .map(|(name, _)| format!("{name}=delay:30"))
        .collect();
    let mut ended = run(command.env("HOST_TOOL_FAILPOINTS", words.join(","))).exits(0);
    for (name, _) in points {
        ended = ended.complains(&format!("failpoint {name} fired"));
    }
}

/// Nothing depends on one step following another at once.
fn a_slow_host(machine: &Machine) {
    let artifact = machine.artifact();
    delay_all(&mut machine.restore_command(&artifact, "vm"), RESTORE);
    assert_eq!(machine.exec("vm", "echo ready"), "ready\n");
    let copy = machine.path("copy");
    delay_all(&mut snapshot_command(machine, &copy), SNAPSHOT);
    assert_eq!(machine.exec("vm", "echo on"), "on\n");
    machine.end("vm");
    machine.restore(&copy, "clone");
    machine.end("clone");
    machine.is_clean();
}

fn restore_at_each_point(machine: &Machine, fault: Fault) {
    let artifact = machine.artifact();
    for &point in RESTORE {
        run_with(&mut machine.restore_command(&artifact, "vm"), point, fault);
        match fault {
            Fault::Fail => machine.is_clean(),
            // At once: what the supervisor is still taking away is in nobody's way.
            Fault::Kill => {}
        }
        machine.restore(&artifact, "vm");
        assert_eq!(machine.exec("vm", "echo ready"), "ready\n", "{point:?}");
        drop(machine.tool(["rm", "vm", "--force"]).exits(0));
        machine.await_processes();
        machine.is_clean();
    }
}

fn snapshot_command(machine: &Machine, artifact: &Path) -> Command {
    let words = ["snapshot", "--json", "--name", "vm", "--timeout", TIMEOUT];
    let mut command = machine.command(words);
    command.arg("--out").arg(artifact);
    command
}

/// What a snapshot with a fault left is a whole artifact or none, and a source that goes on.
#[track_caller]
fn is_whole(machine: &Machine, folder: &Path, point: Point, fault: Fault) {
    let kept = machine.exec("vm", "cat /tmp/file");
    assert_eq!(kept, "kept\n", "{point:?}");
    let artifact = folder.join("a");
    if artifact.exists() {
        let words = ["snapshots", "verify", artifact.to_str().unwrap()];
        drop(machine.tool(words).exits(0));
        fs::remove_dir_all(&artifact).unwrap();
    }
    if fault == Fault::Fail {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{point:?}");
    }
}

fn snapshot_at_each_point(machine: &Machine, fault: Fault) {
    machine.restore(&machine.artifact(), "vm");
    machine.exec("vm", "echo kept > /tmp/file");
    let folder = machine.path("artifacts");
    fs::create_dir(&folder).unwrap();
    let artifact = folder.join("a");
    let again = || {
        drop(run(&mut snapshot_command(machine, &artifact)).exits(0));
        // Drafts of commands that were killed are gone with the next one for the same target.
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "drafts are left");
        fs::remove_dir_all(&artifact).unwrap();
    };
    for &point in SNAPSHOT {
        run_with(&mut snapshot_command(machine, &artifact), point, fault);
        is_whole(machine, &folder, point, fault);
        again();
    }
    let interrupt = ("save.after", 5);
    let mut command = snapshot_command(machine, &artifact);
    run_with(&mut command, interrupt, Fault::Kill);
    run_with(&mut snapshot_command(machine, &artifact), CONVERGE, fault);
    is_whole(machine, &folder, CONVERGE, Fault::Kill);
    again();
    let mut command = snapshot_command(machine, &artifact);
    run_with(command.arg("--stop"), STOP, fault);
    is_whole(machine, &folder, STOP, fault);
    machine.end("vm");
    machine.is_clean();
}

fn a_boot_fails(machine: &Machine) {
    for &point in BOOT {
        for fault in [Fault::Fail, Fault::Kill] {
            run_with(
                &mut machine.command(machine.boot_arguments("vm")),
                point,
                fault,
            );
            machine.await_processes();
            machine.is_clean();
        }
    }
    machine.boot("vm");
    machine.end("vm");
    machine.is_clean();
}
