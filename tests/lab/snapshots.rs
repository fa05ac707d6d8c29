//! A snapshot leaves its source unchanged, and can be restored.

use std::collections::HashSet;

use tests::process::{Running, run};

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    (
        "a_source_answers_after_each_of_its_snapshots",
        a_source_answers_after_each_of_its_snapshots,
    ),
    (
        "open_connections_do_not_survive_and_do_no_harm",
        open_connections_do_no_harm,
    ),
    (
        "a_client_that_connects_during_the_pause",
        a_client_that_connects_during_the_pause,
    ),
    ("restore_five_times", restore_five_times),
    ("three_generations_deep", three_generations_deep),
];

fn a_source_answers_after_each_of_its_snapshots(machine: &Machine) {
    let first = machine.boot("vm")["generation"].clone();
    let mut generations = HashSet::from([first.to_string()]);
    machine.exec("vm", "echo kept > /tmp/file");
    for round in 0..3 {
        machine.snapshot("vm", &format!("artifact-{round}"), &[]);
        assert_eq!(
            machine.exec("vm", "cat /tmp/file"),
            "kept\n",
            "round {round}"
        );
        let probe = machine.tool(["probe", "--name", "vm", "--json", "--timeout", TIMEOUT]);
        generations.insert(probe.exits(0).json()["generation"].to_string());
    }
    assert_eq!(
        generations.len(),
        4,
        "every resume has a name of its own: {generations:?}"
    );
    machine.end("vm");
    machine.is_clean();
}

fn open_connections_do_no_harm(machine: &Machine) {
    machine.boot("vm");
    machine.exec("vm", "mkfifo /tmp/fifo");
    // Keeps a connection open through the snapshot.
    let running = Running::start(&mut machine.shell("vm", "echo; cat /tmp/fifo"));
    machine.exec("vm", "until pidof cat >/dev/null; do :; done");
    let artifact = machine.snapshot("vm", "artifact", &[]);
    // The connection is cut. The command runs on, and its client attaches again.
    machine.exec("vm", "echo more > /tmp/fifo");
    let ended = running.finish().exits(0);
    assert_eq!(ended.out(), "\nmore\n");
    assert_eq!(machine.exec("vm", "echo source"), "source\n");
    machine.restore(&artifact, "clone");
    assert_eq!(machine.exec("clone", "echo clone"), "clone\n");
    machine.end("clone");
    machine.end("vm");
    machine.is_clean();
}

fn a_client_that_connects_during_the_pause(machine: &Machine) {
    machine.boot("vm");
    let artifact = machine.path("artifact");
    let line = format!("snapshot --name vm --timeout {TIMEOUT} --json --out");
    let mut snapshot = machine.line(&line);
    let mut snapshot = Running::start(snapshot.arg(&artifact));
    let mut answered = 0;
    // One client after another, so that one of them meets the pause.
    while !snapshot.is_over() {
        let line = "probe --name vm --depth listener --timeout 5s";
        let probe = run(&mut machine.line(line));
        answered += i32::from(probe.code() == 0);
    }
    snapshot.finish().exits(0);
    for round in 0..5 {
        assert_eq!(
            machine.exec("vm", "echo source"),
            "source\n",
            "{round}, {answered} answered"
        );
    }
    machine.restore(&artifact, "clone");
    assert_eq!(machine.exec("clone", "echo clone"), "clone\n");
    machine.end("clone");
    machine.end("vm");
    machine.is_clean();
}

fn restore_five_times(machine: &Machine) {
    let artifact = machine.artifact();
    let mut generations = HashSet::new();
    for round in 0..5 {
        let record = machine.restore(&artifact, "clone");
        assert!(
            generations.insert(record["generation"].to_string()),
            "{record}"
        );
        for phase in ["artifact", "version", "spawn", "load", "rebind", "probe"] {
            assert!(
                record["phases_us"][phase].is_u64(),
                "no {phase} in {record}"
            );
        }
        let steps = record["guest"]["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 5, "{record}");
        assert_eq!(
            machine.exec("clone", "echo hello"),
            "hello\n",
            "round {round}"
        );
        machine.end("clone");
    }
    machine.is_clean();
}

fn three_generations_deep(machine: &Machine) {
    let mut artifact = machine.artifact();
    for depth in 0..3 {
        let name = format!("clone-{depth}");
        let record = machine.restore(&artifact, &name);
        let line = format!("echo {depth} >> /tmp/depth; cat /tmp/depth | wc -l");
        assert_eq!(
            machine.exec(&name, &line).trim(),
            (depth + 1).to_string(),
            "{record}"
        );
        artifact = machine.snapshot(&name, &format!("artifact-{depth}"), &[]);
        assert_eq!(
            machine.exec(&name, "wc -l < /tmp/depth").trim(),
            (depth + 1).to_string()
        );
        machine.end(&name);
    }
    machine.is_clean();
}
