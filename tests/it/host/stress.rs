//! Goal: `host-tool stress` counts results, and its exit code says whether all runs succeeded.
//! Method: the agent on a Unix socket, and commands with a known result.

use std::process::Command;

use serde_json::json;
use tests::agent::Agent;
use tests::process::run;

#[test]
fn every_run_is_counted() {
    let agent = Agent::start();
    let ended = agent.host_tool(
        ["stress", "--json", "--parallel", "20", "--total", "100"],
        [],
    );
    let report = ended.exits(0).json();
    assert_eq!(report["event"], "done");
    assert_eq!(
        (&report["succeeded"], &report["total"]),
        (&json!(100), &json!(100))
    );
    let latency = |name: &str| report["latency_us"][name].as_u64().unwrap();
    let spread = ["min", "p50", "p90", "p99", "max"].map(latency);
    assert!(spread.is_sorted() && spread[0] > 0, "{report}");
    let ended = agent.host_tool(["stress"], []).exits(0);
    assert!(ended.out().starts_with("10 of 10 succeeded"), "{ended}");
}

#[test]
fn failures_are_counted_by_kind() {
    let agent = Agent::start();
    let report = |argv: [&str; 3], code: i32| {
        let ended = agent.host_tool(["stress", "--json", "--total", "4"], argv);
        ended.exits(code).json()["failures"].clone()
    };
    assert_eq!(
        report(["sh", "-c", "exit 3"], 6),
        json!({ "exit code 3": 4 })
    );
    assert_eq!(
        report(["sh", "-c", "kill -9 $$"], 6),
        json!({ "signal 9": 4 })
    );
    assert_eq!(
        report(["no-such-program", "", ""], 6),
        json!({ "not found": 4 })
    );
    let folder = agent.folder().join("once");
    let once = format!("mkdir {} 2>/dev/null || exit 5", folder.display());
    let failures = report(["sh", "-c", &once], 6);
    assert_eq!(failures, json!({ "exit code 5": 3 }));
    let ended = agent.host_tool(
        ["stress", "--total", "2", "--timeout", "200ms"],
        ["cat", "/dev/zero"],
    );
    ended.exits(124).complains("2 of 2 runs failed");
    agent.host_tool(["stress", "--parallel", "0"], []).exits(2);
}

/// The soft limit is usually 1024, a quarter of what 500 runs need.
#[test]
fn limit_of_open_files_is_raised_or_named() {
    let agent = Agent::start();
    let limited = |limit: &str| {
        let parts = ["stress", "--parallel", "100", "--total", "200"];
        let tool = agent.host_tool_command(parts, []);
        let mut shell = Command::new("sh");
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script]).arg(tool.get_program());
        run(shell.args(tool.get_args()))
    };
    let ended = limited("-Sn 64").exits(0);
    assert!(ended.out().starts_with("200 of 200 succeeded"), "{ended}");
    let ended = limited("-n 64").exits(2);
    ended
        .complains("--parallel 100 needs")
        .complains("ulimit -Hn");
}
