//! Goal: programs in the guest learn whether their machine was snapshotted or restored. Method: a
//! real agent with a local socket, `guest-agent checkpoint` and `guest-agent generation` as
//! ordinary processes, and a client that plays the host.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use shared::message::{AwaitCheckpoint, Cause, Depth, Message, Policy, Rebind};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::client::{generation, probe, quiesce, rebind_fields};
use tests::process::{Finished, finish, run, signal};
use tests::{DEADLINE, program};

/// An agent with a local socket.
pub(crate) struct Guest {
    pub(crate) agent: Agent,
    folder: TempDir,
}

impl Guest {
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("local/agent.sock");
        let agent = Agent::start_with(&["--local", socket.to_str().unwrap()]);
        Self { agent, folder }
    }

    /// A file in the folder of its local socket, `agent.sock`.
    pub(crate) fn local(&self, name: &str) -> PathBuf {
        self.folder.path().join("local").join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("guest-agent"));
        command.args(args).arg("--local");
        command.arg(self.local("agent.sock"));
        command
    }

    /// Starts a command that waits, with pipes for its streams.
    fn wait(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until a program is at this checkpoint.
    fn await_checkpoint(&self, tag: &str) {
        let tag = Some(tag.to_owned());
        let wanted = Message::AwaitCheckpoint(AwaitCheckpoint { tag: tag.clone() });
        match self.agent.greet().ask(&wanted) {
            Message::Checkpoint(checkpoint) => assert_eq!(checkpoint.tag, tag),
            other => panic!("{other:?}"),
        }
    }

    /// Quiesces and rebinds the guest, as a host does around a snapshot.
    fn cut(&self, byte: u8, cause: Cause) {
        let mut control = self.agent.greet();
        control.quiesced(&quiesce(byte, Policy::Keep));
        self.rebind(byte, cause);
    }

    fn rebind(&self, byte: u8, cause: Cause) {
        let rebind = Rebind {
            cause,
            entropy: Some([byte; 32]),
            ..rebind_fields(byte)
        };
        self.agent.greet().rebound(&Message::Rebind(rebind));
        self.agent.greet().probed(&probe(byte, Depth::Listener));
        // The agent completes what follows PROBED before it accepts another connection.
        drop(self.agent.greet());
    }
}

fn end_of(child: Child) -> Finished {
    finish(child, Vec::new(), "a wait", DEADLINE)
}

#[test]
fn a_checkpoint_ends_with_what_the_host_did() {
    let guest = Guest::start();
    guest.rebind(1, Cause::Boot);
    for (byte, cause) in [(2, Cause::Resume), (3, Cause::Restore)] {
        let waiting = guest.wait(&["checkpoint", "--tag", "sha256:1", "--timeout", "1h"]);
        guest.await_checkpoint("sha256:1");
        guest.cut(byte, cause);
        let expected = match cause {
            Cause::Restore => format!("clone {}\n", generation(byte)),
            Cause::Boot | Cause::Resume => "source\n".to_owned(),
        };
        assert_eq!(end_of(waiting).exits(0).out(), expected);
    }
    let cold = run(&mut guest.command(&["checkpoint", "--timeout", "1ms"])).exits(0);
    assert_eq!(cold.out(), "cold\n");
}

#[test]
fn several_wait_and_one_of_them_dies() {
    let guest = Guest::start();
    guest.rebind(1, Cause::Boot);
    let tags = ["a", "b", "c"];
    let mut waiting: Vec<_> = tags
        .iter()
        .map(|tag| guest.wait(&["checkpoint", "--tag", tag]))
        .collect();
    tags.iter().for_each(|tag| guest.await_checkpoint(tag));
    let dead = waiting.remove(1);
    signal(dead.id(), Signal::SIGKILL);
    assert_eq!(end_of(dead).code(), 137);
    guest.cut(2, Cause::Resume);
    for child in waiting {
        assert_eq!(end_of(child).exits(0).out(), "source\n");
    }
    assert_eq!(guest.agent.exec(["true"]).code(), 0);
}

#[test]
fn the_generation_is_in_a_file_and_can_be_waited_for() {
    let guest = Guest::start();
    let print = || run(&mut guest.command(&["generation"]));
    print().exits(1).complains("no host has given");
    guest.rebind(1, Cause::Boot);
    let first = format!("{}\n", generation(1));
    assert_eq!(print().exits(0).out(), first);
    let file = guest.local("generation");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), first);
    for (name, mode) in [("generation", 0o644), ("agent.sock", 0o666)] {
        let found = std::fs::metadata(guest.local(name)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{name}");
    }

    let late = ["generation", "--wait", "--timeout", "1ms"];
    assert_eq!(run(&mut guest.command(&late)).code(), 124);
    let waiting = guest.wait(&["generation", "--wait", "--from", first.trim_end()]);
    guest.cut(2, Cause::Restore);
    let second = format!("{}\n", generation(2));
    assert_eq!(end_of(waiting).exits(0).out(), second);
    let at_once = ["generation", "--wait", "--from", first.trim_end()];
    let at_once = run(&mut guest.command(&at_once)).exits(0);
    assert_eq!(at_once.out(), second);
}

#[test]
fn without_an_agent_there_is_no_verdict() {
    let folder = TempDir::new().unwrap();
    for args in [&["checkpoint"][..], &["generation", "--wait"]] {
        let mut command = Command::new(program("guest-agent"));
        command.args(args).arg("--local");
        command.arg(folder.path().join("none"));
        run(&mut command)
            .exits(1)
            .complains("cannot reach the agent");
    }
    for args in [
        &["checkpoint", "--tag", "a b"][..],
        &["checkpoint", "--timeout", "soon"],
    ] {
        let mut command = Command::new(program("guest-agent"));
        assert_eq!(run(command.args(args)).code(), 2, "{args:?}");
    }
    let help = run(Command::new(program("guest-agent")).args(["checkpoint", "--help"]));
    assert!(help.exits(0).out().contains("source"));
}
