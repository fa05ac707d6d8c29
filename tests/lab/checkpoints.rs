//! Checkpoints and hooks: what programs in the guest learn of a snapshot, and what the image runs
//! around one.

use std::collections::HashSet;
use std::path::PathBuf;

use tests::process::run;

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    (
        "a_checkpoint_has_a_verdict_in_each_machine",
        a_checkpoint_has_a_verdict_in_each_machine,
    ),
    ("hooks_run_around_a_snapshot", hooks_run_around_a_snapshot),
];

/// A program that waits at a checkpoint and writes the result to a file.
const WAIT: &str = "setsid sh -c 'guest-agent checkpoint --tag built > /tmp/v; mv /tmp/v /verdict' \
                    > /dev/null 2>&1 < /dev/null &";

/// Makes the agent available as `guest-agent`.
const LINK: &str = "ln -sf /init /bin/guest-agent";

/// Waits for the result and prints it.
const VERDICT: &str = "while ! test -e /verdict; do usleep 10000; done; cat /verdict";

fn a_checkpoint_has_a_verdict_in_each_machine(machine: &Machine) {
    machine.boot("vm");
    machine.exec("vm", LINK);
    let mut wait = machine.line("snapshot --name vm --timeout 2s --at-checkpoint=other --out");
    let waited = run(wait.arg(machine.path("none"))).exits(124);
    waited.complains("no program in the guest reached checkpoint other");
    assert!(!machine.path("none").exists());

    machine.exec("vm", WAIT);
    let artifact = machine.snapshot("vm", "artifact", &["--at-checkpoint=built"]);
    assert_eq!(machine.exec("vm", VERDICT), "source\n");
    let name = |vm: &str| machine.exec(vm, "cat /run/guest-agent/generation");
    let mut names = HashSet::from([name("vm")]);
    for clone in ["first", "second"] {
        let record = machine.restore(&artifact, clone);
        let generation = format!("{}\n", record["generation"].as_str().unwrap());
        let verdict = machine.exec(clone, VERDICT);
        assert_eq!(verdict, format!("clone {generation}"), "{record}");
        assert_eq!(name(clone), generation);
        names.insert(generation);
    }
    assert_eq!(names.len(), 3, "{names:?}");
    let cold = machine.exec("vm", "guest-agent checkpoint --timeout 1ms");
    assert_eq!(cold, "cold\n");
    for vm in ["vm", "first", "second"] {
        machine.end(vm);
    }
    machine.is_clean();
}

/// Adds a hook to a running machine, and so to its snapshots.
fn add_hook(machine: &Machine, name: &str, script: &str) {
    let path = format!("/etc/guest-agent/{name}");
    let text = format!("#!/bin/sh\\n{script}\\n");
    let line = format!("mkdir -p ${{0%/*}}; printf '{text}' > $0; chmod 755 $0");
    let line = line.replace("$0", &path);
    machine.exec(
        "vm",
        &line.replace("${0%/*}", path.rsplit_once('/').unwrap().0),
    );
}

fn hooks_run_around_a_snapshot(machine: &Machine) {
    machine.boot("vm");
    for name in [
        "restore.d/20-b",
        "restore.d/10-a",
        "snapshot.d/10-a",
        "snapshot.d/20-b",
    ] {
        add_hook(machine, name, &format!("echo {name} >> /seen"));
    }
    let artifact = machine.snapshot("vm", "artifact", &[]);
    let before = "snapshot.d/20-b\nsnapshot.d/10-a\n";
    // Restore hooks do not run in the source.
    assert_eq!(machine.exec("vm", "cat /seen"), before);
    let record = machine.restore(&artifact, "clone");
    let after = "restore.d/10-a\nrestore.d/20-b\n";
    assert_eq!(
        machine.exec("clone", "cat /seen"),
        format!("{before}{after}")
    );
    assert_eq!(record["hooks"].as_array().unwrap().len(), 2, "{record}");
    assert!(record["phases_us"]["hooks"].is_u64(), "{record}");
    machine.end("clone");

    add_hook(machine, "restore.d/15-bad", "exit 3");
    let bad: PathBuf = machine.snapshot("vm", "bad", &[]);
    let failed = run(&mut machine.restore_command(&bad, "broken"));
    let failed = failed.exits(7);
    assert_eq!(failed.json()["phase"], "hooks", "{failed}");
    failed.complains("the hook 15-bad ended with exit code 3");
    let ignored = run(machine
        .restore_command(&bad, "ignored")
        .arg("--ignore-hooks"));
    ignored.exits(0).complains("15-bad");
    assert!(machine.exec("ignored", "cat /seen").ends_with("20-b\n"));
    machine.end("ignored");

    add_hook(machine, "snapshot.d/30-no", "exit 1");
    let refused = machine.tool([
        "snapshot",
        "--name",
        "vm",
        "--timeout",
        TIMEOUT,
        "--out",
        machine.path("refused").to_str().unwrap(),
    ]);
    refused.exits(7).complains("30-no");
    assert!(!machine.path("refused").exists());
    assert_eq!(machine.exec("vm", "echo ok"), "ok\n");
    machine.end("vm");
    machine.is_clean();
}
