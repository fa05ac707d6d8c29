//! Clones differ where they must, answer at once, and can be measured.

use std::time::SystemTime;

use tests::process::Running;

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("two_clones_at_once", two_clones_at_once),
    ("a_hostname_of_its_own", a_hostname_of_its_own),
    (
        "clones_that_are_measured_are_taken_away",
        clones_that_are_measured_are_taken_away,
    ),
];

fn two_clones_at_once(machine: &Machine) {
    let artifact = machine.artifact();
    let [one, two] =
        ["one", "two"].map(|name| Running::start(&mut machine.restore_command(&artifact, name)));
    let [one, two] = [one, two].map(|restore| {
        let record = restore.finish().exits(0).json();
        record["generation"].as_str().unwrap().to_owned()
    });
    assert_ne!(one, two, "each clone has a name of its own");
    let random = |name| machine.exec(name, "head -c 16 /dev/urandom | od -An -tx1");
    let (one, two) = (random("one"), random("two"));
    assert_eq!(one.split_whitespace().count(), 16, "{one}");
    assert_ne!(one, two, "clones share no random bytes");
    for name in ["one", "two"] {
        let before = unix_seconds();
        let inside: f64 = machine.exec(name, "date +%s").trim().parse().unwrap();
        let after = unix_seconds();
        // `date` prints whole seconds, and the agent promises 1 s either way.
        let is_right = (before - 2.0..=after + 1.0).contains(&inside);
        assert!(
            is_right,
            "{name} has {inside}, and it was {before} to {after}"
        );
        machine.end(name);
    }
    machine.is_clean();
}

fn unix_seconds() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64()
}

fn a_hostname_of_its_own(machine: &Machine) {
    let artifact = machine.artifact();
    let mut command = machine.restore_command(&artifact, "clone");
    tests::process::run(command.args(["--hostname", "clone-7"])).exits(0);
    assert_eq!(machine.exec("clone", "hostname"), "clone-7\n");
    machine.end("clone");
    machine.is_clean();
}

fn clones_that_are_measured_are_taken_away(machine: &Machine) {
    let artifact = machine.artifact();
    let args = ["bench", "--json", "--restores", "2", "--timeout", TIMEOUT];
    let mut command = machine.command(args);
    let ended = tests::process::run(command.arg("--artifact").arg(&artifact)).exits(0);
    let restore = &ended.json()["restore"];
    assert_eq!(restore["runs"], 2, "{ended}");
    for phase in ["spawn", "load", "rebind", "probe"] {
        let us = restore["phases_us"][phase]["p50"].as_u64();
        assert!(us > Some(0), "{phase}: {ended}");
    }
    assert!(restore["steps_us"]["clock"].is_object(), "{ended}");
    assert!(restore["memory_kib"].as_u64() > Some(1024), "{ended}");
    machine.is_clean();
}
