//! Goal: a result that could not be printed is not a success. Method: every command that prints
//! one, with a standard output that is closed, full, or not open for writing.

use std::process::Command;

use tests::agent::Agent;
use tests::host::TestHost;
use tests::process::{redirected, run};
use tests::program;

const OUTPUTS: [&str; 3] = [">&-", ">/dev/full", "1</dev/null"];

/// Runs a command with each output. Fails unless it complains.
#[track_caller]
fn complains(command: &Command, code: i32) {
    for output in OUTPUTS {
        let ended = run(&mut redirected(command, output));
        let ended = ended.complains("standard output");
        assert_eq!(ended.code(), code, "{command:?} {output}: {ended}");
    }
}

#[test]
fn a_result_about_a_guest_that_cannot_be_printed_is_an_error() {
    let agent = Agent::start();
    let started = agent.host_tool(["exec", "-d"], ["true"]).exits(0);
    let id = started.out().trim().to_owned();
    for (command, code) in [
        ("ps", 1),
        ("ps --json", 1),
        ("probe", 2),
        ("probe --json", 2),
        ("wait --json ID", 125),
        ("kill --json ID", 1),
        ("stress --total 1", 1),
    ] {
        let command = command.replace("ID", &id);
        let none: [&str; 0] = [];
        complains(&agent.host_tool_command(command.split(' '), none), code);
    }
    // Its id would be lost, so the message has it.
    let tool = agent.host_tool_command(["exec", "-d"], ["true"]);
    complains(&tool, 125);
    let ended = run(&mut redirected(&tool, ">&-"));
    ended.complains("the command was started; it runs as session");
}

#[test]
fn a_result_about_this_host_that_cannot_be_printed_is_an_error() {
    let agent = Agent::start();
    let host = TestHost::new(&agent);
    let artifact = host.artifact();
    let artifact = artifact.to_str().unwrap();
    for (name, output) in ["a", "b", "c"].iter().zip(OUTPUTS) {
        let restore = host.tool(["restore", artifact, "--name", name]);
        let ended = run(&mut redirected(&restore, output)).exits(1);
        ended.complains("standard output");
    }
    let boot = [
        "boot", "--name", "vm", "--kernel", "kernel", "--initrd", "initrd",
    ];
    let [kernel, initrd] = ["kernel", "initrd"].map(|name| host.path(name));
    let boot = boot.map(|argument| match argument {
        "kernel" => kernel.to_str().unwrap(),
        "initrd" => initrd.to_str().unwrap(),
        other => other,
    });
    host.run(boot).exits(0);
    for command in [
        "ls",
        "ls --json",
        "inspect vm",
        "inspect vm --json",
        "snapshots ls",
        "snapshots ls --json",
    ] {
        complains(&host.tool(command.split(' ')), 1);
    }
    complains(&host.tool(["snapshots", "inspect", artifact]), 1);
    // The agent ends with its machine.
    let mut stop = redirected(&host.tool(["stop", "--json", "vm"]), ">&-");
    run(&mut stop).exits(1).complains("standard output");
}

#[test]
fn help_that_cannot_be_printed_is_an_error() {
    for arguments in ["--help", "--version", "exec --help"] {
        let mut tool = Command::new(program("host-tool"));
        complains(tool.args(arguments.split(' ')), 1);
    }
}
