//! System calls of the agent that fail: for a command's streams, and for the news of its end.
//! `GUEST_AGENT_FAILPOINTS` makes them fail.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;
use shared::message::{ByteString, ExitStatus, FailCode, Fault, FaultPart, Message};
use tests::agent::Agent;
use tests::client::{exec, killed_by};
use tests::{skip, within_deadline};

/// A user without rights.
const USER: u32 = 65534;

/// The agent is started without a child, so that the first call of each kind is a test's own.
fn agent_with(faults: &str) -> Agent {
    let variables = [("GUEST_AGENT_FAILPOINTS", faults)];
    Agent::start_unproven(&[], &variables)
}

fn reason(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// Input that cannot be written, at its first byte, after some, and while it waits for room.
#[test]
fn an_input_that_cannot_be_written_is_not_called_whole() {
    for (faults, errno) in [
        ("input:eio", libc::EIO),
        ("input:enomem", libc::ENOMEM),
        ("poll_input:enomem", libc::ENOMEM),
    ] {
        let agent = agent_with(faults);
        // `cat` would print what it got, and exit with 0 if it took the cut for the end.
        let mut tool = agent.run(["exec", "-i"], ["cat"]);
        tool.say(b"some input");
        let text = format!("the guest cut standard input at byte 0: {}", reason(errno));
        let finished = tool.finish_with_open_input().exits(125).complains(&text);
        assert_eq!(finished.out(), "", "{faults}");
    }
}

/// The agent waits for room in the pipe, and cannot be told of it.
#[test]
fn an_input_that_cannot_be_waited_for_is_cut_where_it_was() {
    let agent = agent_with("poll_input:enomem@2");
    let mut request = exec(1, &["sleep", "600"]);
    request.stdin = true;
    let mut client = agent.greet();
    let mut window = client.start(&request).stdin;
    let mut sent = 0;
    while !window.is_closed {
        let room = window.limit - sent;
        client.feed(sent, &vec![b'x'; usize::try_from(room).unwrap()]);
        sent += room;
        window = match client.hear() {
            Message::Window(window) => window,
            other => panic!("no WINDOW but {other:?}"),
        };
    }
    let exited = client.hear_exited();
    let fault = exited.fault.unwrap();
    assert_eq!((fault.part, fault.errno), (FaultPart::Stdin, libc::ENOMEM));
    // What was written fills a pipe.
    assert!((64 * 1024..=sent).contains(&fault.offset), "{fault:?}");
    assert_eq!(exited.status, killed_by(Signal::SIGTERM));
}

#[test]
fn an_output_that_cannot_be_read_is_not_called_whole() {
    for (faults, stream, part, errno) in [
        ("output:eio", "output", FaultPart::Stdout, libc::EIO),
        ("output:eio@2", "error", FaultPart::Stderr, libc::EIO),
        (
            "poll_output:enomem",
            "output",
            FaultPart::Stdout,
            libc::ENOMEM,
        ),
        (
            "poll_output:enomem@2",
            "error",
            FaultPart::Stderr,
            libc::ENOMEM,
        ),
    ] {
        let agent = agent_with(faults);
        // The command would run on unseen.
        let id = "a".repeat(32);
        let finished = agent.host_tool(["exec", "--timeout", "60s", "--id", &id], ["sleep", "600"]);
        let reason = reason(errno);
        let text = format!("the guest lost standard {stream} from byte 0 on: {reason}");
        finished.exits(125).complains(&text);
        // Its result says so to every other client.
        let waited = agent.host_tool(["wait", &id, "--json"], []);
        let record = waited.exits(125).json();
        assert_eq!(record["exit"], 125, "{record}");
        assert_eq!(record["fault"]["part"], part.as_str(), "{record}");
        assert_eq!(record["fault"]["errno"], errno, "{record}");
        let listed = agent.host_tool(["ps", "-a"], []).exits(0);
        assert!(listed.out().contains("exited(125)"), "{listed}");
    }
}

/// One failed call costs no command its end.
#[test]
fn an_end_that_is_not_told_is_found() {
    for faults in [
        "signals:eio",
        "signals:enomem",
        // The event brings nothing.
        "signals:eagain",
        // Nor does the look that follows at once.
        "signals:eagain,wait:eio",
        "signals:eio,signals:eio@2,signals:eio@3,wait:enomem",
        "wait:eio",
        "wait:echild",
    ] {
        let agent = agent_with(faults);
        let mut client = agent.greet();
        let started = client.start(&exec(1, &["true"]));
        let followed = client.follow(&started);
        assert_eq!(followed.exited.status, ExitStatus::Code(0), "{faults}");
        assert_eq!(followed.exited.fault, None, "{faults}");
        assert_eq!(agent.exec(["true"]).code(), 0, "{faults}");
        agent.reaps_all();
    }
}

/// A signal to the agent that one failed read would lose.
#[test]
fn a_signal_is_heard_after_a_failed_read() {
    for faults in ["signals:eio", "signals:eagain"] {
        let mut agent = agent_with(faults);
        agent.signal(Signal::SIGTERM);
        let status = within_deadline("the agent's end", move || agent.wait());
        assert!(status.success(), "{faults}");
    }
}

/// The kernel says twice that there is no child, as when another part of the machine has reaped it.
#[test]
fn a_process_that_is_lost_is_told() {
    let agent = agent_with("wait:echild,wait:echild@2");
    let mut client = agent.greet();
    let started = client.start(&exec(1, &["true"]));
    let followed = client.follow(&started);
    let fault = Fault {
        part: FaultPart::Process,
        offset: 0,
        errno: libc::ECHILD,
    };
    assert_eq!(followed.exited.fault, Some(fault));
    assert_eq!(agent.exec(["true"]).code(), 0);
    agent.reaps_all();
}

/// `execve` of a user that has as many processes as it may have.
#[test]
fn a_shortage_at_the_exec_is_not_a_program_that_cannot_be_run() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a shortage at the exec", "it takes an agent that is root");
    }
    // The limit counts the processes that the user has before.
    let mut other = Command::new("sleep").arg("600").uid(USER).spawn().unwrap();
    let mut limited = Command::new("prlimit");
    limited.arg("--nproc=0").arg(tests::program("guest-agent"));
    let agent = Agent::start_through(limited, &[]);
    let mut request = exec(1, &["true"]);
    request.user = ByteString::new(format!("{USER}:{USER}"));
    let fail = agent.refuses(&Message::Exec(request), FailCode::Limit);
    assert_eq!(fail.errno, Some(libc::EAGAIN), "{fail:?}");
    assert_eq!(fail.phase.as_deref(), Some("exec"), "{fail:?}");
    // The caller asks again until its time is over, and hears the reason.
    let user = USER.to_string();
    let finished = agent.host_tool(["exec", "-u", &user, "--timeout", "1s"], ["true"]);
    finished.exits(125).complains("the guest refused (limit)");
    other.kill().unwrap();
    other.wait().unwrap();
}
