//! Each step of restore, snapshot and boot fails once, and once kills its command.
//!
//! Goal: whichever step fails, the command names it, leaves nothing but complete VMs and artifacts,
//! and works when it is repeated. Method: `HOST_TOOL_FAILPOINTS`, one point at a time. Each point
//! prints a mark when it fires, which the cases check.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

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
    (
        "a_supervisor_fails_before_its_vm_is_in_use",
        a_supervisor_fails_early,
    ),
    (
        "a_supervisor_fails_while_its_vm_is_in_use",
        a_supervisor_fails_late,
    ),
    ("a_supervisor_fails_after_its_vmm", a_supervisor_fails_last),
    ("a_supervisor_that_is_slow", a_slow_supervisor),
    ("answers_are_lost_in_a_clone", answers_are_lost),
    ("a_step_fails_in_a_clone", a_step_fails_in_a_clone),
];

/// A point, and the exit code when it fails. The point's name begins with the phase.
pub(crate) type Point = (&'static str, i32);

pub(crate) const RESTORE: &[Point] = &[
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

pub(crate) const SNAPSHOT: &[Point] = &[
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

/// Points of the supervisor before the VM is in use.
const SUPERVISOR_EARLY: &[&str] = &[
    "supervisor.started",
    "supervisor.locked",
    "supervisor.spawned",
    "supervisor.reported",
];

/// While the VM is in use.
const SUPERVISOR_LATE: &[&str] = &["supervisor.kept", "supervisor.scribe", "supervisor.health"];

/// After the VMM has ended.
const SUPERVISOR_LAST: &[&str] = &["supervisor.reaped", "supervisor.recorded"];

/// After the command that was starting the VM has died.
const SUPERVISOR_REMOVE: &str = "supervisor.remove";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fail,
    Kill,
}

impl Fault {
    const fn word(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Kill => "kill",
        }
    }
}

/// Runs the command with one point armed. Fails unless the point fired and the command ended as it
/// should.
#[track_caller]
fn run_with(command: &mut Command, (name, exit): Point, fault: Fault) -> Finished {
    // The supervisor of a killed command is slow to end its VM: no later command may depend on it.
    let delay = match fault {
        Fault::Kill => ",supervisor.reaped=delay:300",
        Fault::Fail => "",
    };
    let points = format!("{name}={}{delay}", fault.word());
    command.env("HOST_TOOL_FAILPOINTS", points);
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

/// Each point of the program must be in one of these lists.
fn every_failpoint_has_a_case(machine: &Machine) {
    let mut command = machine.command(["ls"]);
    let refused = run(command.env("HOST_TOOL_FAILPOINTS", "?")).exits(2).err();
    let listed = refused
        .trim()
        .split_once("the points are ")
        .expect("a list")
        .1;
    let listed: BTreeSet<&str> = listed.split(' ').collect();
    let fired = [RESTORE, SNAPSHOT, BOOT, &[CONVERGE, STOP]].concat();
    let fired = fired.into_iter().map(|(name, _)| name);
    let supervisors = [SUPERVISOR_EARLY, SUPERVISOR_LATE, SUPERVISOR_LAST].concat();
    let fired = fired.chain(supervisors).chain([SUPERVISOR_REMOVE]);
    let fired: BTreeSet<&str> = fired.collect();
    assert_eq!(listed, fired);
}

/// Runs the command with a delay at all points, and fails unless all have fired.
#[track_caller]
fn delay_all(command: &mut Command, points: &[Point]) {
    let armed: Vec<String> = points
        .iter()
        .map(|(name, _)| format!("{name}=delay:30"))
        .collect();
    let mut ended = run(command.env("HOST_TOOL_FAILPOINTS", armed.join(","))).exits(0);
    for (name, _) in points {
        ended = ended.complains(&format!("failpoint {name} fired"));
    }
}

/// No step relies on the next one following at once.
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

/// Each command passes the points of those before it, so each is also the repetition of the one
/// before.
fn restore_at_each_point(machine: &Machine, fault: Fault) {
    let artifact = machine.artifact();
    for &point in RESTORE {
        run_with(&mut machine.restore_command(&artifact, "vm"), point, fault);
        match fault {
            Fault::Fail => machine.is_clean(),
            // The supervisor may still be removing what the killed command left. It must not
            // disturb the next.
            Fault::Kill => {}
        }
    }
    machine.restore(&artifact, "vm");
    assert_eq!(machine.exec("vm", "echo ready"), "ready\n");
    machine.end("vm");
    machine.is_clean();
}

fn snapshot_command(machine: &Machine, artifact: &Path) -> Command {
    let args = ["snapshot", "--json", "--name", "vm", "--timeout", TIMEOUT];
    let mut command = machine.command(args);
    command.arg("--out").arg(artifact);
    command
}

/// After a failed snapshot the artifact is complete or absent, and the source runs.
#[track_caller]
fn is_whole(machine: &Machine, folder: &Path, point: Point, fault: Fault) {
    let kept = machine.exec("vm", "cat /tmp/file");
    assert_eq!(kept, "kept\n", "{point:?}");
    let artifact = folder.join("a");
    if artifact.exists() {
        let args = ["snapshots", "verify", artifact.to_str().unwrap()];
        machine.tool(args).exits(0);
        fs::remove_dir_all(&artifact).unwrap();
    }
    // The draft of a killed command stays until the next command for the same target.
    let drafts_max = usize::from(fault == Fault::Kill);
    let drafts = fs::read_dir(folder).unwrap().count();
    assert!(drafts <= drafts_max, "{drafts} drafts at {point:?}");
}

/// As for a restore, each command is also the repetition of the one before.
fn snapshot_at_each_point(machine: &Machine, fault: Fault) {
    machine.restore(&machine.artifact(), "vm");
    machine.exec("vm", "echo kept > /tmp/file");
    let folder = machine.path("artifacts");
    fs::create_dir(&folder).unwrap();
    let artifact = folder.join("a");
    for &point in SNAPSHOT {
        run_with(&mut snapshot_command(machine, &artifact), point, fault);
        is_whole(machine, &folder, point, fault);
    }
    let mut command = snapshot_command(machine, &artifact);
    run_with(&mut command, ("save.after", 5), Fault::Kill);
    run_with(&mut snapshot_command(machine, &artifact), CONVERGE, fault);
    is_whole(machine, &folder, CONVERGE, Fault::Kill);
    let mut command = snapshot_command(machine, &artifact);
    run_with(command.arg("--stop"), STOP, fault);
    is_whole(machine, &folder, STOP, fault);
    run(&mut snapshot_command(machine, &artifact)).exits(0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "drafts are left");
    machine.end("vm");
    machine.restore(&artifact, "clone");
    assert_eq!(machine.exec("clone", "cat /tmp/file"), "kept\n");
    machine.end("clone");
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

/// Boots a guest with faults, and takes a snapshot that carries those which have not happened yet.
fn faulty_artifact(machine: &Machine, faults: &str) -> std::path::PathBuf {
    let image = std::env::var("TEST_INITRD_FAILPOINTS").unwrap();
    let mut command = machine.command(machine.boot_image("origin", &image));
    command.args(["--append", &format!("agent.failpoints={faults}")]);
    run(&mut command).exits(0);
    let artifact = machine.snapshot("origin", "artifact", &["--stop"]);
    let console = fs::read_to_string(machine.state_dir().join("origin/console.log")).unwrap();
    machine.tool(["rm", "origin"]).exits(0);
    assert!(!console.contains("bad value"), "{console}");
    artifact
}

/// The host asks again for a lost answer; only the count of attempts shows it.
fn answers_are_lost(machine: &Machine) {
    let artifact = faulty_artifact(machine, "cut:quiesced,mute:rebound@2,cut:probed@2");
    let record = machine.restore(&artifact, "clone");
    for phase in ["rebind", "probe"] {
        let attempts = record["attempts"][phase].as_u64().unwrap();
        assert!(attempts > 1, "{phase}: {record}");
    }
    assert_eq!(machine.exec("clone", "echo ready"), "ready\n");
    machine.end("clone");
    machine.is_clean();
}

/// The failure is reported, and again by each command to a guest that was kept.
fn a_step_fails_in_a_clone(machine: &Machine) {
    let artifact = faulty_artifact(machine, "listener@2");
    let text = "injected at failpoint listener";
    let ended = run(&mut machine.restore_command(&artifact, "clone")).exits(6);
    let ended = ended.complains(text);
    assert_eq!(ended.json()["phase"], "rebind", "{ended}");
    machine.is_clean();
    let mut kept = machine.restore_command(&artifact, "clone");
    run(kept.arg("--keep-on-failure")).exits(6);
    let probe = machine.tool(["probe", "--name", "clone", "--timeout", TIMEOUT]);
    probe.exits(1).complains(text);
    machine.tool(["rm", "clone", "--force"]).exits(0);
    machine.is_clean();
}

/// A restore with points armed in its supervisor, and with a health check for that thread's point.
fn restore_with(machine: &Machine, artifact: &Path, points: &str) -> Command {
    let mut command = machine.restore_command(artifact, "vm");
    command.args(["--health-cmd", "true"]);
    command.env("HOST_TOOL_FAILPOINTS", points);
    command
}

/// Waits for the supervisor's end.
fn await_supervisor(machine: &Machine) {
    for (pid, name) in machine.processes() {
        if name.starts_with("host-tool") {
            let pid = format!("--pid={pid}");
            run(Command::new("tail").args([&pid, "--follow", "/dev/null"])).exits(0);
        }
    }
}

/// Waits until the supervisor's log contains `text`.
#[track_caller]
fn supervisor_says(machine: &Machine, text: &str) {
    let path = machine.state_dir().join("vm/supervisor.log");
    let started_at = Instant::now();
    while !fs::read_to_string(&path).unwrap_or_default().contains(text) {
        assert!(started_at.elapsed() < tests::DEADLINE, "no {text:?}");
        // Another command meanwhile must not disturb.
        machine.tool(["ls"]);
    }
}

/// The row of the machine in `ls`.
#[track_caller]
fn listed(machine: &Machine) -> serde_json::Value {
    machine.tool(["ls", "--json"]).exits(0).json()["vms"][0].take()
}

/// The command fails with the supervisor's error, or because the supervisor said nothing. Nothing
/// is left, not even a VMM that only the supervisor knew.
fn a_supervisor_fails_early(machine: &Machine) {
    let artifact = machine.artifact();
    for point in SUPERVISOR_EARLY {
        for fault in [Fault::Fail, Fault::Kill] {
            let points = format!("{point}={}", fault.word());
            let ended = run(&mut restore_with(machine, &artifact, &points));
            let expected: &[i32] = match (*point, fault) {
                // The VMM was known, so the command notices its end or the lost supervisor.
                ("supervisor.reported", Fault::Fail) => &[5, 8],
                ("supervisor.reported", Fault::Kill) => &[1],
                _ => &[5],
            };
            assert!(expected.contains(&ended.code()), "{points}: {ended}");
            let text = match fault {
                Fault::Fail => format!("injected at failpoint {point}"),
                Fault::Kill => "the VM's supervisor".to_owned(),
            };
            if ended.code() != 8 {
                ended.complains(&text);
            }
            machine.is_clean();
        }
    }
    machine.restore(&artifact, "vm");
    assert_eq!(machine.exec("vm", "echo ready"), "ready\n");
    machine.end("vm");
    machine.is_clean();
}

/// The VM runs on, `ls` says whether it is supervised, and it ends like any other.
fn a_supervisor_fails_late(machine: &Machine) {
    let artifact = machine.artifact();
    for point in SUPERVISOR_LATE {
        for fault in [Fault::Fail, Fault::Kill] {
            let points = format!("{point}={}", fault.word());
            run(&mut restore_with(machine, &artifact, &points)).exits(0);
            supervisor_says(machine, &format!("failpoint {point} fired"));
            // When one thread fails, the others run on.
            let is_gone = fault == Fault::Kill || *point == "supervisor.kept";
            if is_gone {
                await_supervisor(machine);
            }
            assert_eq!(listed(machine)["supervised"], !is_gone, "{points}");
            assert_eq!(machine.exec("vm", "echo ready"), "ready\n", "{points}");
            machine.end("vm");
            machine.is_clean();
        }
    }
}

/// At most the record of how the VMM ended is lost.
fn a_supervisor_fails_last(machine: &Machine) {
    let artifact = machine.artifact();
    for point in SUPERVISOR_LAST {
        for fault in [Fault::Fail, Fault::Kill] {
            let points = format!("{point}={}", fault.word());
            run(&mut restore_with(machine, &artifact, &points)).exits(0);
            machine.tool(["stop", "vm", "--timeout", TIMEOUT]).exits(0);
            supervisor_says(machine, &format!("failpoint {point} fired"));
            let status = match *point {
                "supervisor.reaped" => "dead",
                _ => "exited",
            };
            assert_eq!(listed(machine)["status"], status, "{points}");
            machine.tool(["rm", "vm"]).exits(0);
            machine.is_clean();
        }
    }
    // The command dies, and then its supervisor while it removes the VM.
    for fault in [Fault::Fail, Fault::Kill] {
        let points = format!("load.before=kill,{SUPERVISOR_REMOVE}={}", fault.word());
        run(&mut restore_with(machine, &artifact, &points)).exits(137);
        supervisor_says(machine, &format!("failpoint {SUPERVISOR_REMOVE} fired"));
        assert_eq!(listed(machine)["status"], "exited", "{points}");
    }
    machine.restore(&artifact, "vm");
    machine.end("vm");
    machine.is_clean();
}

/// No step relies on a fast supervisor.
fn a_slow_supervisor(machine: &Machine) {
    let artifact = machine.artifact();
    let points = [SUPERVISOR_EARLY, SUPERVISOR_LATE, SUPERVISOR_LAST].concat();
    let armed: Vec<String> = points
        .iter()
        .map(|point| format!("{point}=delay:300"))
        .collect();
    run(&mut restore_with(machine, &artifact, &armed.join(","))).exits(0);
    assert_eq!(machine.exec("vm", "echo ready"), "ready\n");
    machine.tool(["stop", "vm", "--timeout", TIMEOUT]).exits(0);
    for point in points {
        supervisor_says(machine, &format!("failpoint {point} fired"));
    }
    assert_eq!(listed(machine)["status"], "exited");
    machine.tool(["rm", "vm"]).exits(0);
    let points = format!("load.before=kill,{SUPERVISOR_REMOVE}=delay:300");
    run(&mut restore_with(machine, &artifact, &points)).exits(137);
    machine.await_processes();
    machine.is_clean();
}
