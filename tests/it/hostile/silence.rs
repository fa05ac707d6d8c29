//! Goal: `--timeout` limits a whole command, whatever the guest leaves unanswered. Method: guests
//! that stop answering at different points, and a command with a longer limit, which must be the
//! last to end.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::fifo::Fifo;
use tests::process::Running;
use tests::program;

use super::guest::{Guest, after_hello, drain, started};

/// Commands with their exit codes after the time limit.
const COMMANDS: [(&str, i32); 15] = [
    ("exec -- true", 124),
    ("exec -i -- true", 124),
    ("exec -d -- true", 124),
    ("exec --id 77777777777777777777777777777777 -- true", 124),
    ("attach 1", 124),
    ("attach --observe workload", 124),
    ("wait 1", 124),
    ("probe", 2),
    ("probe --watch", 2),
    ("kill 1", 124),
    ("ps --json", 124),
    ("logs", 124),
    ("logs --follow", 124),
    ("stress --total 2", 124),
    ("bench --size 0", 124),
];

/// The limit of the commands that are tested.
const LIMIT: &str = "500ms";

/// The limit of the command that must be the last to end. Without theirs, the others would take
/// longer: 10 s for the guest to answer, or to end the command.
const LATER: &str = "9s";

fn start(command: &str, limit: &str, socket: &Path) -> Running {
    let (options, argv) = command.split_once(" -- ").unwrap_or((command, ""));
    let mut tool = Command::new(program("host-tool"));
    tool.args(options.split(' ')).args(["--timeout", limit]);
    tool.arg("--unix").arg(socket);
    if !argv.is_empty() {
        tool.args(["--", argv]);
    }
    Running::start(&mut tool)
}

/// Runs all commands at once. Fails unless each ends with its code before the later one.
#[track_caller]
fn end_in_time(commands: &[(&str, i32)], socket: &Path) {
    let mut later = start("probe", LATER, socket);
    let all: Vec<_> = commands
        .iter()
        .map(|(command, code)| (start(command, LIMIT, socket), command, *code))
        .collect();
    for (running, command, code) in all {
        let ended = running.finish();
        assert!(!later.is_over(), "{command} took too long: {ended}");
        assert_eq!(ended.code(), code, "{command}: {ended}");
    }
}

#[test]
fn a_guest_that_accepts_and_never_says_a_word() {
    let guest = Guest::new(drain);
    end_in_time(&COMMANDS, &guest.socket());
}

/// A socket whose queue is full: the connections in it are not accepted.
fn full_queue(path: &Path) -> Vec<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = || socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let (listener, address) = (open(), UnixAddr::new(path).unwrap());
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let mut fds = vec![listener];
    loop {
        let fd = open();
        let connected = connect(fd.as_raw_fd(), &address);
        fds.push(fd);
        if connected.is_err() {
            return fds;
        }
    }
}

#[test]
fn a_guest_whose_queue_is_full() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("full.sock");
    let _fds = full_queue(&path);
    end_in_time(&COMMANDS, &path);
}

/// The command runs, as far as the client knows, and the guest has no more to say.
#[test]
fn a_guest_that_is_silent_after_the_start() {
    let guest = Guest::new(|stream| {
        let _ = stream.write_all(&after_hello(&[started()]));
        drain(stream);
    });
    let commands = [("exec -- true", 124), ("exec -i -- true", 124)];
    // One at a time, since this guest serves one after the other.
    for command in commands {
        let elsewhere = Guest::new(drain);
        let mut later = start("probe", LATER, &elsewhere.socket());
        let ended = start(command.0, LIMIT, &guest.socket()).finish();
        assert!(!later.is_over(), "{} took too long: {ended}", command.0);
        let ended = ended.exits(command.1);
        ended.complains("the command was started; how it ended is unknown");
    }
}

/// A real guest that stops in the middle, once with and once without output on its way.
#[test]
fn a_guest_that_is_stopped_while_the_command_runs() {
    for script in ["echo go; cat FIFO", "echo go; exec cat /dev/zero"] {
        let agent = Agent::start();
        let fifo = Fifo::new(agent.folder(), "fifo");
        let script = script.replace("FIFO", fifo.path());
        let elsewhere = Guest::new(drain);
        let mut later = start("probe", LATER, &elsewhere.socket());
        let mut running = agent.run(["exec", "--timeout", "2s"], ["sh", "-c", &script]);
        running.read(3);
        agent.signal(Signal::SIGSTOP);
        let ended = running.finish();
        assert!(!later.is_over(), "it took too long");
        agent.signal(Signal::SIGCONT);
        assert_eq!(ended.code(), 124, "{}", ended.err());
    }
}

/// Without `--timeout` nothing has timed out: the guest failed to answer.
#[test]
fn a_guest_that_does_not_answer_is_no_time_limit() {
    let guest = Guest::new(drain);
    let mut tool = guest.command(&["exec", "--", "true"]);
    let ended = Running::start(&mut tool).finish();
    ended.exits(125).complains("did not answer in time");
}
