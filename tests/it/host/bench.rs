//! Goal: `host-tool bench` measures a guest part by part and names what it could not measure, also
//! by its exit code. Method: the agent on a Unix socket. Restores are measured in the lab.

use std::path::Path;

use serde_json::json;
use tests::agent::Agent;

#[test]
fn every_part_has_its_figures() {
    let agent = Agent::start();
    let args = ["bench", "--json", "--runs", "20", "--size", "1M"];
    let report = agent.host_tool(args, []).exits(0).json();
    assert_eq!(report["event"], "done");
    assert_eq!(report["failures"], json!({}));
    let exec = report["exec"].as_array().unwrap();
    let runs = exec
        .iter()
        .map(|part| (&part["parallel"], &part["succeeded"]));
    let expected = [(1, 20), (10, 20), (100, 100)].map(|(a, b)| (json!(a), json!(b)));
    assert!(runs.eq(expected.iter().map(|(a, b)| (a, b))), "{report}");
    for stream in ["stdout", "stdin"] {
        let part = &report[stream];
        assert_eq!(part["bytes"], 1024 * 1024, "{report}");
        assert!(part["mib_per_second"].as_f64() > Some(0.0), "{report}");
    }
    assert!(report["guest"]["kernel"].is_string(), "{report}");
    assert!(report.get("restore").is_none(), "{report}");
}

#[test]
fn people_get_a_table() {
    let agent = Agent::start();
    let args = ["bench", "--runs", "10", "--size", "0"];
    let ended = agent.host_tool(args, ["true"]).exits(0);
    let out = ended.out();
    for line in [
        "guest-agent ",
        "MS ",
        "exec, 1 at once ",
        "exec, 100 at once ",
    ] {
        let found = out.lines().any(|found| found.starts_with(line));
        assert!(found, "no line {line:?}: {ended}");
    }
    assert!(!out.contains("stdout"), "{ended}");
}

#[test]
fn a_part_that_fails_costs_no_other() {
    let agent = Agent::start();
    let args = ["bench", "--json", "--runs", "5", "--size", "1M"];
    let ended = agent.host_tool(args, ["false"]).exits(6);
    let report = ended.json();
    assert_eq!(report["exit"], 6);
    let failures = report["failures"].as_object().unwrap();
    let names: Vec<_> = failures.keys().collect();
    assert_eq!(
        names,
        ["exec, 1 at once", "exec, 10 at once", "exec, 100 at once"]
    );
    assert!(report["stdin"]["mib_per_second"].is_number(), "{report}");
    ended.complains("3 parts failed, the first of them is exec, 1 at once");
}

#[test]
fn an_artifact_that_is_none_is_named() {
    let agent = Agent::start();
    let artifact = agent.folder().join("none");
    let tool = |args: &[&str]| {
        let mut command = agent.host_tool_command(["bench"], []);
        command.args(args);
        tests::process::run(&mut command)
    };
    let artifact = artifact.to_str().unwrap();
    let ended = tool(&[
        "--json",
        "--size",
        "0",
        "--runs",
        "1",
        "--artifact",
        artifact,
    ]);
    let ended = ended.exits(3).complains("restore failed: artifact failed");
    assert_eq!(ended.json()["exec"][0]["succeeded"], 1);
    assert!(!Path::new(artifact).exists());
    tool(&["--runs", "0"]).exits(2).complains("--runs");
    tool(&["--size", "1"]).exits(2).complains("neither 0 nor");
    let mut command = std::process::Command::new(tests::program("host-tool"));
    let ended = tests::process::run(command.arg("bench"));
    ended.exits(2).complains("--artifact");
}
