//! Goal: a session that is told to end leaves no process, wherever that has gone to; one that ends
//! by itself leaves what it has left. Method: the machine's cgroup v2, where the agent may use it,
//! and processes that have left their process group.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use shared::message::{
    self as request, Exec, InheritedSessions, Message, Rebind, SessionRef, Started,
};
use tests::agent::Agent;
use tests::await_true;
use tests::client::{Client, rebind_fields, shell};
use tests::fifo::Fifo;

/// An agent whose sessions have cgroups.
fn agent(test: &str) -> Option<Agent> {
    let agent = Agent::start();
    if agent.greet().info().cgroup {
        return Some(agent);
    }
    tests::skip(test, "needs cgroup v2 and the right to use it");
    None
}

/// The folder of the cgroup that a process is in.
fn cgroup_of(pid: u32) -> PathBuf {
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let own = read(format!("/proc/{pid}/cgroup"));
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = read(format!("/proc/{pid}/mounts"));
    let mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut mounts = mounts.filter(|fields| fields[2] == "cgroup2");
    PathBuf::from(mounts.next().unwrap()[1]).join(own.unwrap())
}

fn signal(started: &Started, number: Signal) -> Message {
    Message::Signal(request::Signal {
        session: Some(SessionRef::Number(started.session)),
        number: number as u8,
    })
}

/// Starts a command of which one process has left the process group, and has it end. That process
/// must be gone, too, and the cgroup.
fn check_end(
    name: &str,
    prepare: impl FnOnce(&mut Exec),
    end: impl FnOnce(&mut Agent, Client, &Started),
) {
    let Some(mut agent) = agent(name) else {
        return;
    };
    let (far, near) = (
        Fifo::new(agent.folder(), "far"),
        Fifo::new(agent.folder(), "near"),
    );
    let mut exec = shell(
        1,
        &format!("setsid cat {} & cat {}", far.path(), near.path()),
    );
    prepare(&mut exec);
    let mut owner = agent.greet();
    let started = owner.start(&exec);
    let (far, near) = (far.hold(), near.hold());
    let cgroup = cgroup_of(started.pid);
    assert!(cgroup.ends_with(started.session.to_string()), "{cgroup:?}");
    end(&mut agent, owner, &started);
    near.wait_gone();
    far.wait_gone();
    await_true("the cgroup is removed", || !cgroup.exists());
}

#[test]
fn a_time_limit_leaves_no_process() {
    let limit = |exec: &mut Exec| exec.timeout_ms = Some(2_000);
    check_end(
        "a_time_limit_leaves_no_process",
        limit,
        |_, mut owner, _| {
            assert!(owner.hear_exited().timed_out);
        },
    );
}

#[test]
fn kill_leaves_no_process() {
    check_end(
        "kill_leaves_no_process",
        |_| {},
        |agent, _owner, started| {
            let answer = agent.greet().ask(&signal(started, Signal::SIGKILL));
            assert_eq!(answer, Message::Ok);
        },
    );
}

#[test]
fn an_owner_that_leaves_leaves_no_process() {
    let name = "an_owner_that_leaves_leaves_no_process";
    check_end(name, |_| {}, |_, owner, _| drop(owner));
}

#[test]
fn a_rebind_that_kills_leaves_no_process() {
    check_end(
        "a_rebind_that_kills_leaves_no_process",
        |_| {},
        |agent, _owner, _| {
            let rebind = Rebind {
                sessions: InheritedSessions::Kill,
                ..rebind_fields(1)
            };
            agent.greet().rebound(&Message::Rebind(rebind));
        },
    );
}

#[test]
fn an_agent_that_ends_leaves_no_process() {
    check_end(
        "an_agent_that_ends_leaves_no_process",
        |_| {},
        |agent, _owner, started| {
            let folder = cgroup_of(started.pid).parent().unwrap().to_path_buf();
            agent.signal(Signal::SIGTERM);
            assert_eq!(agent.wait().code(), Some(0));
            assert!(!folder.exists(), "the agent removes its folder");
        },
    );
}

/// A client on whose terms the process is to end: the exit code of `timeout(1)`.
#[test]
fn a_process_of_its_own_session_does_not_escape_the_clients_time_limit() {
    let Some(agent) = agent("a_process_of_its_own_session_does_not_escape_the_clients_time_limit")
    else {
        return;
    };
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("setsid cat {} >/dev/null 2>&1 & cat {0}", fifo.path());
    let tool = agent.run(["exec", "--timeout", "2s"], ["sh", "-c", &script]);
    let held = fifo.hold();
    tool.finish().exits(124);
    held.wait_gone();
}

#[test]
fn what_a_command_leaves_behind_runs_on_until_it_is_killed() {
    let Some(agent) = agent("what_a_command_leaves_behind_runs_on_until_it_is_killed") else {
        return;
    };
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let script = format!("setsid cat {} >/dev/null 2>&1 & echo $!", fifo.path());
    let started = owner.start(&shell(1, &script));
    let held = fifo.hold();
    let followed = owner.follow(&started);
    let pid = String::from_utf8(followed.stdout.bytes).unwrap();
    let cgroup = cgroup_of(pid.trim().parse().unwrap());
    assert!(held.is_read() && cgroup.exists());
    assert_eq!(
        agent.greet().ask(&signal(&started, Signal::SIGTERM)),
        Message::Ok
    );
    assert!(held.is_read(), "TERM is for the process group");
    assert_eq!(
        agent.greet().ask(&signal(&started, Signal::SIGKILL)),
        Message::Ok
    );
    held.wait_gone();
    await_true("the cgroup is removed", || !cgroup.exists());
}

#[test]
fn the_list_says_whether_sessions_have_cgroups() {
    for (arguments, is_possible) in [(&[][..], true), (&["--cgroups", "0"], false)] {
        let agent = Agent::start_with(arguments);
        let has_cgroups = agent.greet().info().cgroup;
        assert!(is_possible || !has_cgroups);
        let fifo = Fifo::new(agent.folder(), "fifo");
        let mut owner = agent.greet();
        let started = owner.start(&shell(1, &format!("exec cat {}", fifo.path())));
        let list = agent.host_tool(["ps", "--json"], []).exits(0).json();
        assert_eq!(list["guest"]["cgroup"], has_cgroups);
        assert_eq!(list["sessions"][0]["cgroup"], has_cgroups);
        let is_apart = cgroup_of(started.pid) != cgroup_of(agent.pid());
        assert_eq!(is_apart, has_cgroups);
        fifo.release();
    }
}

/// By its cgroup, or without one by the record beside its socket. Agents at other addresses keep
/// their commands.
#[test]
fn what_a_killed_agent_has_left_is_ended_by_the_next_one() {
    let other = Agent::start_with(&["--cgroups", "0"]);
    let other_fifo = Fifo::new(other.folder(), "fifo");
    let mut other_owner = other.greet();
    other_owner.start(&shell(1, &format!("cat {}", other_fifo.path())));
    let others = other_fifo.hold();
    for cgroups in ["1", "0"] {
        let mut agent = Agent::start_with(&["--cgroups", cgroups]);
        let fifo = Fifo::new(agent.folder(), "fifo");
        let mut exec = shell(1, &format!("cat {}", fifo.path()));
        exec.detached = true;
        agent.greet().start(&exec);
        let held = fifo.hold();
        agent.signal(Signal::SIGKILL);
        agent.wait();
        assert!(held.is_read(), "a command outlives its agent");

        let log = agent.folder().join("log of the next one");
        let mut next = std::process::Command::new(tests::program("guest-agent"))
            .args(["--unprivileged", "--cgroups", cgroups, "--listen"])
            .arg(format!("unix:{}", agent.socket().display()))
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        held.wait_gone();
        let connect = || std::os::unix::net::UnixStream::connect(agent.socket());
        await_true("the next agent listens", || connect().is_ok());
        let counters = agent.greet().info().counters;
        assert!(counters["left_behind"] >= 1, "{counters:?}");
        tests::process::signal(next.id(), Signal::SIGTERM);
        assert_eq!(next.wait().unwrap().code(), Some(0));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("an earlier agent has left"), "{log}");
        let record = agent.folder().join("agent.sock.commands");
        assert!(!record.exists(), "an agent that ends removes its record");
    }
    assert!(others.is_read());
}

/// A guest without controllers for memory and processes, as here, does not run a command without
/// the limits that it was asked for.
#[test]
fn limits_that_cannot_be_held_are_refused() {
    let agent = Agent::start_with(&["--cgroups", "0"]);
    assert!(!agent.greet().info().limits);
    for option in [["--pids-max", "10"], ["--memory-max", "64M"]] {
        let refused = agent.host_tool(["exec", option[0], option[1]], ["echo", "ran"]);
        let refused = refused
            .exits(125)
            .complains("this guest cannot limit commands");
        assert_eq!(refused.out(), "");
    }
}
