//! Goal: an end that begins on the client's side is told to the command and to the user: an input
//! that cannot be read, an output that cannot be written, a terminal that is closed, a second
//! signal. Method: the built programs, descriptors that fail, and a pseudo-terminal whose other
//! side is closed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use shared::message::{AttachMode, SessionRef};
use tests::agent::Agent;
use tests::await_true;
use tests::client::{attach, killed_by};
use tests::fifo::Fifo;
use tests::process::{Finished, Running, redirected, run};

/// `host-tool exec -i`, with this standard input.
fn with_input(agent: &Agent, input: impl Into<Stdio>, script: &str) -> Finished {
    let mut tool = agent.host_tool_command(["exec", "-i"], ["sh", "-c", script]);
    tool.stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::start_as_it_is(&mut tool).finish()
}

/// A socket for the client's input, and one that resets it when it is dropped.
fn resettable() -> (UnixStream, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // Closing a socket with unread bytes resets the connection.
    ours.write_all(b"unread").unwrap();
    (ours, theirs)
}

/// Starts a script that prints `ready`. Then its input is `hello` and an error.
fn cut_after_hello(agent: &Agent, script: &str) -> Running {
    let (ours, mut theirs) = resettable();
    let mut tool = agent.host_tool_command(["exec", "-i"], ["sh", "-c", script]);
    tool.stdin(OwnedFd::from(ours))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running::start_as_it_is(&mut tool);
    drop(tool);
    assert_eq!(running.read_line(), "ready");
    theirs.write_all(b"hello").unwrap();
    running
}

/// Whether a command that counts its input would have been told the truth.
#[test]
fn an_input_that_cannot_be_read_is_not_passed_off_as_whole() {
    let agent = Agent::start();
    let write_only = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let (reset, mut theirs) = resettable();
    theirs.write_all(b"hello").unwrap();
    drop(theirs);
    let inputs: [(OwnedFd, &str); 4] = [
        (File::open("/tmp").unwrap().into(), "0: Is a directory"),
        (
            File::open("/proc/self/mem").unwrap().into(),
            "0: Input/output error",
        ),
        (write_only.into(), "0: Bad file descriptor"),
        (reset.into(), "5: Connection reset"),
    ];
    for (input, reason) in inputs {
        let ended = with_input(&agent, input, "wc -c");
        let ended = ended
            .exits(125)
            .complains(&format!("standard input was cut at byte {reason}"));
        assert_eq!(ended.out(), "", "{ended}");
    }
}

/// What came before the error arrives, and so does all output of the command.
#[test]
fn a_command_whose_input_was_cut_is_told_to_end_and_heard_out() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    // The reader of the input does not hear the TERM that may overtake it.
    let script = format!(
        "trap 'echo told; exit 9' TERM; (trap '' TERM; echo ready; exec head -c 5); cat {} & wait",
        fifo.path()
    );
    let ended = cut_after_hello(&agent, &script).finish().exits(125);
    assert_eq!(ended.out(), "hellotold\n");
    ended
        .complains("told to end (9)")
        .complains("cut at byte 5: Connection reset");
}

#[test]
fn a_command_that_does_not_heed_the_cut_of_its_input_is_killed() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("trap '' TERM; echo ready; cat {}", fifo.path());
    let ended = cut_after_hello(&agent, &script).finish();
    ended.exits(125).complains("told to end (137)");
}

#[test]
fn an_input_that_nobody_reads_does_no_harm() {
    let agent = Agent::start();
    let mut tool = agent.host_tool_command(["exec"], ["echo", "hi"]);
    tool.stdin(File::open("/tmp").unwrap());
    tool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = Running::start_as_it_is(&mut tool).finish().exits(0);
    assert_eq!(ended.out(), "hi\n");
    let tool = agent.host_tool_command(["exec"], ["echo", "hi"]);
    assert_eq!(run(&mut redirected(&tool, "<&-")).exits(0).out(), "hi\n");
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    for redirection in [">&-", ">/dev/full", "1</dev/null"] {
        let script = format!("echo hi; exec cat {}", fifo.path());
        let tool = agent.host_tool_command(["exec"], ["sh", "-c", &script]);
        let ended = run(&mut redirected(&tool, redirection));
        ended
            .exits(125)
            .complains("cannot write the command's output");
        // Nothing to write is nothing lost.
        let tool = agent.host_tool_command(["exec"], ["sh", "-c", "exit 3"]);
        run(&mut redirected(&tool, redirection)).exits(3);
    }
    // The command was told to end.
    let mut client = agent.greet();
    await_true("all sessions have ended", || client.info().sessions == 0);
}

/// The command runs on and its standard output is whole, but its exit code would hide the loss.
#[test]
fn a_standard_error_that_cannot_be_written_is_an_error() {
    let agent = Agent::start();
    let script = "echo lost >&2; echo out; exit 3";
    for redirection in ["2>&-", "2>/dev/full"] {
        let tool = agent.host_tool_command(["exec"], ["sh", "-c", script]);
        let ended = run(&mut redirected(&tool, redirection)).exits(125);
        assert_eq!(ended.out(), "out\n", "{redirection}");
        let tool = agent.host_tool_command(["exec"], ["sh", "-c", "echo out; exit 3"]);
        run(&mut redirected(&tool, redirection)).exits(3);
    }
}

/// What a client sees of a closed pipe and a closed terminal is that its reader is gone.
#[test]
fn a_standard_error_without_a_reader_is_none() {
    let agent = Agent::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut tool = agent.host_tool_command(["exec"], ["sh", "-c", "echo x >&2; exit 3"]);
    let mut child = tool.stderr(writer).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

/// A second signal ends the client, whatever the command makes of the first.
#[test]
fn a_second_signal_ends_the_client() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    for which in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        // As often as a signal may interrupt it, and not for ever.
        let waits = format!("cat {} & wait; ", fifo.path()).repeat(4);
        let script = format!("trap 'echo got' TERM INT HUP QUIT; echo ready; {waits}");
        let mut running = agent.run(["exec", "--keep", "1ms"], ["sh", "-c", &script]);
        assert_eq!(running.read_line(), "ready");
        running.signal(which);
        assert_eq!(running.read_line(), "got");
        running.signal(which);
        let ended = running.finish_with_open_input().exits(125);
        ended
            .complains("given up at a signal")
            .complains("the command was started; how it ended is unknown");
    }
    // The guest ends the commands, which their clients have left.
    let _fds = agent.idle_fd_count();
}

/// The command's output is full and nobody reads it, so no answer of the guest gets through.
#[test]
fn a_second_signal_ends_a_client_whose_output_is_not_read() {
    let agent = Agent::start();
    let mut running = agent.run(
        ["exec", "--keep", "1ms"],
        ["sh", "-c", "trap '' INT TERM; exec cat /dev/zero"],
    );
    running.read(1);
    running.signal(Signal::SIGINT);
    // The two differ, since a pending signal is not counted twice.
    running.signal(Signal::SIGTERM);
    await_true("the client ends", || running.is_over());
    let _fds = agent.idle_fd_count();
}

/// A client whose standard input, or output, or both are a terminal.
struct InTerminal {
    running: Running,
    master: File,
}

impl InTerminal {
    fn start(mut tool: Command, has_input: bool, has_output: bool) -> Self {
        // No other process may inherit the master.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ptsname_r(&master).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(OFlag::O_NOCTTY.bits());
        let slave = || Stdio::from(options.open(&slave).unwrap());
        let (stdin, stdout) = match (has_input, has_output) {
            (true, true) => (slave(), slave()),
            (true, false) => (slave(), Stdio::piped()),
            (false, _) => (Stdio::null(), slave()),
        };
        tool.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let running = Running::start_as_it_is(&mut tool);
        // With it go this process's copies of the terminal.
        drop(tool);
        Self {
            running,
            master: OwnedFd::from(master).into(),
        }
    }

    /// Closes the window.
    fn hang_up(self) -> Finished {
        drop(self.master);
        self.running.finish_with_open_input()
    }
}

/// The terminal of a client is closed, which the kernel reports to the leader of its session only.
#[test]
fn a_closed_terminal_hangs_the_command_up() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let waits = format!("exec cat {}", fifo.path());
    let prints = format!("exec 3<{}; exec cat /dev/zero", fifo.path());
    let cases: [(&[&str], &str, bool, bool); 5] = [
        (&["exec", "-it"], &waits, true, true),
        (&["exec", "-it"], &prints, true, true),
        (&["exec", "-i"], &waits, true, false),
        (&["exec", "-t"], &prints, false, true),
        (&["exec"], &prints, false, true),
    ];
    for (options, script, has_input, has_output) in cases {
        let options = options.iter().copied().chain(["--keep", "5m"]);
        let tool = agent.host_tool_command(options, ["sh", "-c", script]);
        let client = InTerminal::start(tool, has_input, has_output);
        let held = fifo.hold();
        let ended = client.hang_up().exits(125);
        let ended = ended.complains("the terminal was closed");
        assert!(!ended.err().contains("os error"), "{ended}");
        held.wait_gone();
    }
}

#[test]
fn a_closed_terminal_hangs_up_what_a_client_has_attached_to() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("echo ready; exec cat {}", fifo.path());
    let started = agent.host_tool(["exec", "-d"], ["sh", "-c", &script]);
    let id = started.exits(0).out().trim().to_owned();
    let tool = agent.host_tool_command(["attach", &id], []);
    let mut client = InTerminal::start(tool, true, true);
    let mut seen = [0; 5];
    client.master.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"ready");
    let ended = client.hang_up().exits(125);
    ended.complains("the terminal was closed");
    let mut waiter = agent.greet();
    let session = SessionRef::Exec(id.parse().unwrap());
    waiter.attach(attach(session, AttachMode::Wait));
    assert_eq!(waiter.hear_exited().status, killed_by(Signal::SIGHUP));
}
