//! Goal: every command that talks to a guest works over hybrid vsock, whatever the transport does
//! to its connections. Method: the built programs and a vsock device between them that loses,
//! splits, holds and reorders.

use tests::agent::Agent;
use tests::muxer::{Muxer, Treatment};
use tests::process::{Finished, Running, run};
use tests::program;
use tests::proxy::{Closed, Direction};

use std::process::Command;

struct Fixture {
    // Dropped before the agent, in whose folder its socket lies.
    muxer: Muxer,
    agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let muxer = Muxer::start(agent.folder().join("vsock.sock"), &agent.socket());
        Self { muxer, agent }
    }

    /// `host-tool COMMAND --uds SOCKET ARGS…`
    fn tool(&self, command: &str, args: &[&str]) -> Command {
        let mut tool = Command::new(program("host-tool"));
        tool.arg(command).arg("--uds").arg(self.muxer.socket());
        tool.args(["--timeout", "60s"]).args(args);
        tool
    }

    #[track_caller]
    fn run(&self, command: &str, args: &[&str]) -> Finished {
        run(&mut self.tool(command, args))
    }
}

/// The session's number, as `exec --detach` prints it.
fn session(detached: &Finished) -> String {
    detached.out().trim().to_owned()
}

#[test]
fn every_command_takes_what_comes_byte_by_byte() {
    let fixture = Fixture::new();
    fixture.muxer.treat_all(Treatment::Bytewise);
    fixture.run("probe", &[]).exits(0);
    let script = "read x; echo out $x; echo err >&2; exit 7";
    let mut exec = fixture.tool("exec", &["-i", "--", "sh", "-c", script]);
    let ended = tests::process::run_with_input(&mut exec, b"in\n").exits(7);
    assert_eq!(
        (ended.out(), ended.err()),
        ("out in\n".into(), "err\n".into())
    );
    let detached = fixture.run("exec", &["-d", "--", "sh", "-c", "echo kept; exit 5"]);
    let id = session(&detached.exits(0));
    assert_eq!(fixture.run("attach", &[&id]).exits(5).out(), "kept\n");
    fixture.run("wait", &[&id]).exits(5);
    fixture.run("ps", &[]).exits(0);
    assert_eq!(fixture.muxer.malformed_count(), 0);
}

/// The first request of each command never arrives, or arrives after its repetition was answered.
#[test]
fn every_command_asks_again() {
    let fixture = Fixture::new();
    let detached = fixture.run("exec", &["-d", "--", "sh", "-c", "echo kept; exit 5"]);
    let id = session(&detached.exits(0));
    for treatment in [
        Treatment::Refused,
        Treatment::Lost,
        Treatment::Dead,
        Treatment::Held,
    ] {
        let commands: [(&str, &[&str], i32); 5] = [
            ("probe", &[], 0),
            ("exec", &["--", "sh", "-c", "exit 3"], 3),
            ("attach", &[&id], 5),
            ("wait", &[&id], 5),
            ("ps", &[], 0),
        ];
        for (command, args, code) in commands {
            let count = fixture.muxer.count();
            fixture.muxer.plan(&[treatment]);
            let running = Running::start(&mut fixture.tool(command, args));
            fixture.muxer.await_count(count + 2);
            let ended = running.finish();
            assert_eq!(ended.code(), code, "{command} {treatment:?}: {ended}");
            if treatment == Treatment::Held {
                fixture.muxer.release(count);
                fixture.muxer.await_delivery(count);
            }
        }
    }
}

/// The held connection reaches the guest after a later one has started the command. It carries only
/// the HELLO of a client that waits for the guest's, so the command runs once and keeps its client.
#[test]
fn a_request_that_arrives_after_its_repetition_runs_nothing_twice() {
    let fixture = Fixture::new();
    let file = fixture.agent.folder().join("ran");
    let script = format!("echo ran >>{}; echo started; read x", file.display());
    fixture.muxer.plan(&[Treatment::Held]);
    let mut running = Running::start(&mut fixture.tool("exec", &["-i", "--", "sh", "-c", &script]));
    assert_eq!(running.read_line(), "started");
    fixture.muxer.release(0);
    fixture.muxer.await_delivery(0);
    running.end_input();
    running.finish().exits(1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ran\n");
}

/// Many requests at once, which reach the guest in the opposite order.
#[test]
fn commands_that_arrive_backwards_are_each_answered_as_asked() {
    let fixture = Fixture::new();
    fixture.muxer.plan(&[Treatment::Held; 8]);
    let start = |number: i32| {
        let script = format!("echo {number}; exit {number}");
        let running = Running::start(&mut fixture.tool("exec", &["--", "sh", "-c", &script]));
        (number, running)
    };
    let running: Vec<_> = (1..=8).map(start).collect();
    fixture.muxer.await_count(8);
    fixture.muxer.release_backwards();
    for (number, running) in running {
        let ended = running.finish().exits(number);
        assert_eq!(ended.out(), format!("{number}\n"));
    }
}

/// All connections of a guest are closed while output is on its way, for both sides or for one.
#[test]
fn output_goes_on_after_a_reset() {
    let fixture = Fixture::new();
    for closed in [Closed::Both, Closed::ForHost, Closed::ForGuest] {
        fixture.muxer.plan(&[Treatment::Severed {
            direction: Direction::ToHost,
            after: 100_000,
            closed,
        }]);
        let ended = fixture.run("exec", &["--", "seq", "100000"]).exits(0);
        let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
        assert!(
            ended.out() == expected,
            "{closed:?}: {} bytes",
            ended.out().len()
        );
    }
}
