//! Owners that close their connections, time limits, and cuts that the guest makes itself.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use shared::message::{
    self as request, AttachMode, ExitStatus, InheritedSessions, Message, Policy, Rebind, SessionRef,
};
use tests::DEADLINE;
use tests::agent::Agent;
use tests::client::{Client, attach, killed_by, quiesce, rebind, rebind_fields, shell};
use tests::fifo::Fifo;

use super::by_number;

/// How a session ended, asked over a new connection.
#[track_caller]
fn end_of(agent: &Agent, id: shared::id::ExecId) -> shared::message::Exited {
    let mut waiter = agent.greet();
    waiter.attach(attach(SessionRef::Exec(id), AttachMode::Wait));
    waiter.hear_exited()
}

#[test]
fn without_keep_a_command_whose_owner_is_gone_is_told_to_end() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let request = shell(1, &format!("exec cat {}", fifo.path()));
    owner.start(&request);
    let held = fifo.hold();
    drop(owner);
    held.wait_gone();
    let exited = end_of(&agent, request.id);
    assert_eq!(exited.status, killed_by(Signal::SIGTERM));
    assert!(!exited.timed_out);
}

#[test]
fn what_does_not_heed_term_is_killed_with_its_whole_group() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let request = shell(
        1,
        &format!("trap '' TERM; cat {0} & cat {0} | cat", fifo.path()),
    );
    owner.start(&request);
    let held = fifo.hold();
    drop(owner);
    held.wait_gone();
    assert_eq!(
        end_of(&agent, request.id).status,
        killed_by(Signal::SIGKILL)
    );
}

#[test]
fn a_kept_command_waits_for_an_owner_and_then_ends() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = shell(1, &format!("exec cat {}", fifo.path()));
    request.keep_ms = Some(300);
    let mut owner = agent.greet();
    owner.start(&request);
    let held = fifo.hold();
    drop(owner);
    // The command ends when its `keep_ms` is over.
    held.wait_gone();
    assert_eq!(
        end_of(&agent, request.id).status,
        killed_by(Signal::SIGTERM)
    );
}

#[test]
fn an_owner_that_comes_back_in_time_ends_the_countdown() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let other = Fifo::new(agent.folder(), "other");
    let mut request = shell(1, &format!("cat {}; exit 7", fifo.path()));
    // Far longer than a connection takes. The second command below has the same time.
    request.keep_ms = Some(2_000);
    let mut owner = agent.greet();
    owner.start(&request);
    let held = fifo.hold();
    drop(owner);
    let mut again = agent.greet();
    let started = again.start(&request);
    // This command's owner does not come back. Its end shows that the time of the first one is
    // over.
    let mut measure = shell(2, &format!("exec cat {}", other.path()));
    measure.keep_ms = Some(2_000);
    agent.greet().start(&measure);
    let measured = end_of(&agent, measure.id);
    assert_eq!(measured.status, killed_by(Signal::SIGTERM));
    assert!(held.is_read(), "the owner is back");
    drop(held);
    assert_eq!(again.follow(&started).exited.status, ExitStatus::Code(7));
}

#[test]
fn a_detached_command_needs_nobody() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = shell(1, &format!("cat {}; echo done; exit 7", fifo.path()));
    request.detached = true;
    let mut starter = agent.greet();
    starter.start(&request);
    let held = fifo.hold();
    drop(starter);
    // After this turn of the loop the agent knows that the connection is closed.
    let _fds = agent.settled_fd_count();
    assert!(held.is_read());
    drop(held);
    assert_eq!(end_of(&agent, request.id).status, ExitStatus::Code(7));
    let mut late = agent.greet();
    let attached = late.attach(attach(SessionRef::Exec(request.id), AttachMode::Own));
    assert_eq!(late.follow(&attached).stdout.bytes, b"done\n");
}

/// A process that the leader left behind still writes, so the session runs on. But the number of
/// the leader's group may belong to another group by now, so the agent must not signal it.
#[test]
fn a_group_whose_leader_was_reaped_is_not_signalled() {
    // With a cgroup the agent knows the session's processes without that number.
    let agent = Agent::start_with(&["--cgroups", "0"]);
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let script = format!("(head -c 1000000 /dev/zero; echo alive >{}) &", fifo.path());
    let started = owner.start(&shell(1, &script));
    let mut other = agent.greet();
    let began = Instant::now();
    while Path::new(&format!("/proc/{}", started.pid)).exists() {
        // With each answer the agent's loop completes a turn, in which it reaps ended children.
        other.info();
        assert!(began.elapsed() < DEADLINE, "it is not reaped");
    }
    let signal = request::Signal {
        session: Some(SessionRef::Number(started.session)),
        number: Signal::SIGKILL as u8,
    };
    assert_eq!(other.ask(&Message::Signal(signal)), Message::Ok);
    let followed = owner.follow(&started);
    assert_eq!(followed.exited.status, ExitStatus::Code(0));
    assert_eq!(fifo.read(), "alive\n");
}

/// The leader has ended and standard output is closed. The rest of standard error is still in its
/// pipe, because the ring has no room until the owner reads.
#[test]
fn the_end_comes_after_the_last_byte_of_each_output() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let script = "head -c 300000 /dev/zero >&2; exec 2>&-; echo written";
    let started = owner.start(&shell(1, &format!("({script} >{}) >&- &", fifo.path())));
    assert_eq!(fifo.read(), "written\n");
    let followed = owner.follow(&started);
    assert_eq!(followed.stderr.bytes.len(), 300_000);
    assert!(!followed.exited.writers_alive, "{:?}", followed.exited);
}

#[test]
fn a_time_limit_ends_the_group_and_says_so() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = shell(1, &format!("cat {0} & cat {0}", fifo.path()));
    request.timeout_ms = Some(300);
    let mut owner = agent.greet();
    owner.start(&request);
    fifo.hold().wait_gone();
    let exited = owner.hear_exited();
    assert!(exited.timed_out);
    assert_eq!(exited.status, killed_by(Signal::SIGTERM));
}

#[test]
fn a_time_limit_holds_without_any_client() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = shell(1, &format!("exec cat {}", fifo.path()));
    (request.timeout_ms, request.detached) = (Some(300), true);
    agent.greet().start(&request);
    let exited = end_of(&agent, request.id);
    assert_eq!(
        (exited.timed_out, exited.status),
        (true, killed_by(Signal::SIGTERM))
    );
}

#[test]
fn a_command_in_time_did_not_time_out() {
    let agent = Agent::start();
    let mut request = shell(1, "exit 4");
    request.timeout_ms = Some(60_000);
    let mut owner = agent.greet();
    let started = owner.start(&request);
    let exited = owner.follow(&started).exited;
    assert_eq!(
        (exited.timed_out, exited.status),
        (false, ExitStatus::Code(4))
    );
}

/// At a snapshot the guest closes the connection itself. Therefore it keeps the command although
/// the client did not ask for that, and the command runs on under the next generation.
#[test]
fn a_session_outlives_the_cut_of_a_snapshot_and_the_rebind() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    agent.greet().rebound(&rebind(1));
    let mut owner = agent.greet();
    let mut request = shell(
        1,
        &format!("echo one; cat {}; echo two; exit 5", fifo.path()),
    );
    owner.start(&request);
    assert_eq!(owner.hear_stdout(4), b"one\n");
    let mut control = agent.greet();
    control.quiesced(&quiesce(1, Policy::Keep));
    assert!(matches!(owner.hear(), Message::Sever(_)));
    assert_eq!(owner.hear_or_end(), None);
    drop(control);
    agent.greet().rebound(&rebind(2));
    request.stdout_from = 4;
    let mut again = agent.greet();
    let started = again.start(&request);
    assert!(!started.fresh);
    fifo.release();
    let followed = again.follow(&started);
    assert_eq!(followed.stdout.bytes, b"two\n");
    assert_eq!(followed.exited.status, ExitStatus::Code(5));
}

#[test]
fn a_rebind_can_do_away_with_the_sessions_it_inherits() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let started = owner.start(&shell(1, &format!("exec cat {}", fifo.path())));
    let held = fifo.hold();
    let request = Rebind {
        sessions: InheritedSessions::Kill,
        ..rebind_fields(1)
    };
    let rebound = agent.greet().rebound(&Message::Rebind(request));
    assert_eq!(rebound.sessions_dropped, 1);
    held.wait_gone();
    let attach = Message::Attach(by_number(&started, AttachMode::Wait));
    match agent.greet().ask(&attach) {
        // The end can be asked for, or was dropped together with the generation.
        Message::Attached(_) | Message::Fail(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_agent_that_ends_takes_its_sessions_along() {
    let mut agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = shell(1, &format!("exec cat {}", fifo.path()));
    request.detached = true;
    agent.greet().start(&request);
    let held = fifo.hold();
    agent.signal(Signal::SIGTERM);
    held.wait_gone();
    assert_eq!(agent.wait().code(), Some(0));
}

/// A background process that writes without end keeps its session for the grace, and no longer,
/// although the client takes all of it.
#[test]
fn a_background_writer_does_not_keep_its_session() {
    let agent = Agent::start();
    let pid = agent.folder().join("pid");
    let script = format!("yes & echo $! >{}; exit 3", pid.display());
    let mut tool = agent.host_tool_command(["exec", "-v"], ["sh", "-c", &script]);
    tool.stdout(std::process::Stdio::null());
    let ended = tests::process::run(&mut tool);
    let pid = std::fs::read_to_string(&pid).expect("a process id");
    tests::process::signal(pid.trim().parse().expect("a number"), Signal::SIGKILL);
    ended.exits(3).complains("still holds its output open");
}

/// The command has ended, its client does not read, and only its output is left.
#[test]
fn what_is_left_of_a_command_can_be_ended() {
    let agent = Agent::start();
    for way in [None, Some(Signal::SIGKILL), Some(Signal::SIGTERM)] {
        let number = way.map_or(99, |signal| signal as u8);
        // More than the ring holds, and less than the ring and the widened pipe together.
        let mut request = shell(number, "head -c 400000 /dev/zero");
        request.timeout_ms = way.is_none().then_some(1000);
        let mut owner = agent.greet();
        let started = owner.start(&request);
        assert_eq!(owner.hear_stdout(256 * 1024).len(), 256 * 1024);
        if let Some(signal) = way {
            let mut other = agent.greet();
            await_reaped(&mut other, started.session);
            let session = Some(SessionRef::Number(started.session));
            let number = signal as u8;
            let answer = other.ask(&Message::Signal(request::Signal { session, number }));
            assert_eq!(answer, Message::Ok);
        }
        let exited = end_of(&agent, request.id);
        assert_eq!(exited.status, ExitStatus::Code(0));
        assert_eq!(exited.timed_out, way.is_none());
    }
}

/// Waits until the process of a session was reaped.
#[track_caller]
fn await_reaped(client: &mut Client, session: u64) {
    tests::await_true("its process was reaped", || {
        let (sessions, _) = client.sessions();
        sessions
            .iter()
            .any(|it| it.session == session && it.pid == 0)
    });
}

/// What a command does when it is told to end reaches its client before the agent cuts it.
#[test]
fn an_agent_that_ends_passes_on_the_end_of_its_commands() {
    let mut agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("trap 'echo bye; exit 7' TERM; cat {}", fifo.path());
    let mut running = agent.run(["exec"], ["sh", "-c", &script]);
    let held = fifo.hold();
    agent.signal(Signal::SIGTERM);
    held.wait_gone();
    assert_eq!(running.read_line(), "bye");
    running.finish().exits(7);
    assert_eq!(agent.wait().code(), Some(0));
}
