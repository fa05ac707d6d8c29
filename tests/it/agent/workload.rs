//! Goal: the program that the image names starts with the agent, is restarted as its policy says,
//! and is a session like any other. Method: an agent with an `agent.json`, and raw connections.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use shared::message::{Attach, AttachMode, ExitStatus, SessionRef, SessionState};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::client::{Followed, attach};
use tests::fifo::Fifo;
use tests::process::run;

/// A folder that outlives the agent, since the workload uses it.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn config(&self, workload: &Value) -> PathBuf {
        let path = self.folder.path().join("agent.json");
        std::fs::write(&path, json!({ "workload": workload }).to_string()).unwrap();
        path
    }

    /// Starts an agent with a shell script as its workload, and more fields of `agent.json`.
    fn start(&self, script: &str, more: &[(&str, &str)]) -> Agent {
        let mut workload = json!({ "argv": ["sh", "-c", script] });
        for (name, value) in more {
            workload[name] = (*value).into();
        }
        let path = self.config(&workload);
        Agent::start_with(&["--config", path.to_str().unwrap()])
    }

    /// A script that counts its runs in a file and then executes `ending`, with the count in `$n`.
    fn counting(&self, ending: &str) -> String {
        let file = self.folder.path().join("runs");
        let file = file.display();
        format!("echo x >>{file}; n=$(wc -l <{file}); echo run $n; {ending}")
    }
}

/// The workload's output from its first byte, and its end.
fn observe(agent: &Agent) -> Followed {
    let mut client = agent.greet();
    let started = client.attach(Attach {
        stdout_from: Some(0),
        ..attach(SessionRef::Workload, AttachMode::Observe)
    });
    client.observe(&started)
}

#[test]
fn it_starts_with_the_agent_and_is_listed() {
    let fixture = Fixture::new();
    let fifo = Fifo::new(fixture.folder.path(), "fifo");
    let agent = fixture.start(&format!("echo up; exec cat {}", fifo.path()), &[]);
    let held = fifo.hold();
    let (sessions, _) = agent.greet().sessions();
    let [session] = &sessions[..] else {
        panic!("{sessions:?}")
    };
    assert_eq!((session.id, session.state), (None, SessionState::Running));
    drop(held);
    let followed = observe(&agent);
    assert_eq!(followed.stdout.bytes, b"up\n");
    assert_eq!(followed.exited.status, ExitStatus::Code(0));
}

#[test]
fn a_failure_starts_it_again_and_success_does_not() {
    let fixture = Fixture::new();
    let script = fixture.counting("[ $n = 3 ]");
    let agent = fixture.start(&script, &[("restart", "on-failure")]);
    // It is one session, and its offsets continue.
    let followed = observe(&agent);
    assert_eq!(followed.stdout.bytes, b"run 1\nrun 2\nrun 3\n");
    assert_eq!(followed.exited.status, ExitStatus::Code(0));
    let (sessions, _) = agent.greet().sessions();
    assert_eq!((sessions.len(), sessions[0].restarts), (1, 2));
}

#[test]
fn without_a_policy_a_failure_is_the_end() {
    let fixture = Fixture::new();
    let agent = fixture.start(&fixture.counting("exit 9"), &[]);
    let followed = observe(&agent);
    assert_eq!(followed.stdout.bytes, b"run 1\n");
    assert_eq!(followed.exited.status, ExitStatus::Code(9));
    assert_eq!(agent.host_tool(["wait", "workload"], []).code(), 9);
}

#[test]
fn a_signal_is_a_failure_too() {
    let fixture = Fixture::new();
    let fifo = Fifo::new(fixture.folder.path(), "fifo");
    let ending = format!("[ $n = 1 ] && exec cat {}; exit 0", fifo.path());
    let agent = fixture.start(&fixture.counting(&ending), &[("restart", "on-failure")]);
    let held = fifo.hold();
    agent
        .host_tool(["kill", "workload", "-s", "KILL"], [])
        .exits(0);
    held.wait_gone();
    assert_eq!(observe(&agent).stdout.bytes, b"run 1\nrun 2\n");
}

#[test]
fn it_never_waits_for_a_reader() {
    let fixture = Fixture::new();
    let agent = fixture.start("head -c 5000000 /dev/zero; echo end", &[]);
    agent.host_tool(["wait", "workload"], []).exits(0);
    let stdout = observe(&agent).stdout;
    let missing = stdout.missing();
    assert_eq!(missing + stdout.bytes.len() as u64, 5_000_004);
    assert!(missing > 0 && stdout.bytes.ends_with(b"end\n"));
}

#[test]
fn it_gets_the_place_and_the_environment_that_are_named() {
    let fixture = Fixture::new();
    let workload = json!({
        "argv": ["sh", "-c", "echo \"$A|$PWD|$HOME\"; cat"], "env": ["A=1 2"], "cwd": "/usr",
    });
    let path = fixture.config(&workload);
    let agent = Agent::start_with(&["--config", path.to_str().unwrap()]);
    // Its standard input is empty, so that `cat` ends.
    assert_eq!(observe(&agent).stdout.bytes, b"1 2|/usr|/root\n");
}

#[test]
fn its_end_can_be_the_agents_end() {
    let fixture = Fixture::new();
    let fifo = Fifo::new(fixture.folder.path(), "fifo");
    let script = format!("cat {}", fifo.path());
    let mut agent = fixture.start(&script, &[("at_end", "poweroff")]);
    agent.exec(["true"]).exits(0);
    fifo.release();
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn the_agent_ends_it_when_it_ends_itself() {
    let fixture = Fixture::new();
    let fifo = Fifo::new(fixture.folder.path(), "fifo");
    let script = format!("exec cat {}", fifo.path());
    let mut agent = fixture.start(&script, &[("restart", "on-failure")]);
    let held = fifo.hold();
    agent.signal(Signal::SIGTERM);
    held.wait_gone();
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn a_program_that_is_not_there_ends_as_127() {
    let fixture = Fixture::new();
    let path = fixture.config(&json!({ "argv": ["/no/such/program"] }));
    let agent = Agent::start_with(&["--config", path.to_str().unwrap()]);
    assert_eq!(observe(&agent).exited.status, ExitStatus::Code(127));
}

#[test]
fn a_file_that_means_nothing_keeps_a_service_from_starting() {
    let fixture = Fixture::new();
    let cases = [
        json!({}),
        json!({ "argv": [] }),
        json!({ "argv": "true" }),
        json!({ "argv": ["true"], "restart": "always" }),
        json!({ "argv": ["true"], "at_end": 1 }),
    ];
    for workload in cases {
        let path = fixture.config(&workload);
        let mut agent = std::process::Command::new(tests::program("guest-agent"));
        let listen = format!("unix:{}", fixture.folder.path().join("sock").display());
        agent.args(["--listen", &listen, "--unprivileged", "--config"]);
        let ended = run(agent.arg(&path)).exits(2);
        assert!(ended.err().contains("agent.json"), "{workload}: {ended}");
    }
}
