//! SESSIONS, page by page, and the commands of `host-tool` that list sessions and use the list.

use shared::message::{ExitStatus, SessionState};
use tests::agent::Agent;
use tests::client::{exec_numbered, generation, rebind, shell};
use tests::fifo::Fifo;

#[test]
fn a_session_is_listed_with_all_that_is_known_of_it() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    agent.greet().ask(&rebind(1));
    let mut owner = agent.greet();
    let script = format!("printf 123; printf 12 >&2; cat {}", fifo.path());
    let started = owner.start(&shell(1, &script));
    let _held = fifo.hold();
    let (sessions, pages) = agent.greet().sessions();
    let [session] = &sessions[..] else {
        panic!("{sessions:?}")
    };
    assert_eq!(pages, 1);
    assert_eq!(
        (session.session, session.pid),
        (started.session, started.pid)
    );
    assert_eq!(session.id, started.id);
    assert_eq!(session.state, SessionState::Running);
    assert_eq!(session.generation, Some(generation(1)));
    assert!(session.command.starts_with("sh -c printf"), "{session:?}");
    assert_eq!(
        (session.tty, session.detached, session.attached),
        (false, false, 1)
    );
    assert_eq!((session.stdout_end, session.stderr_end), (3, 2));
    assert_eq!((session.restarts, session.exited), (0, None));
}

#[test]
fn an_ended_session_is_listed_with_its_end() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let started = client.start(&shell(1, "exit 9"));
    let exited = client.follow(&started).exited;
    let (sessions, _) = client.sessions();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].state, SessionState::Exited);
    assert_eq!(sessions[0].exited, Some(exited));
}

#[test]
fn more_sessions_than_fit_a_frame_come_in_pages() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let long = "x".repeat(200);
    // More than the number of results that are kept.
    for number in 1..=300 {
        let code = (number % 256).to_string();
        let argv = ["sh", "-c", "exit $0", &code, &long];
        let started = client.start(&exec_numbered(number, &argv));
        client.follow(&started);
    }
    let (sessions, pages) = client.sessions();
    assert!(pages > 1, "{} sessions on one page", sessions.len());
    assert_eq!(sessions.len(), 256);
    for session in sessions {
        let code = ExitStatus::Code(u8::try_from(session.session % 256).unwrap());
        assert_eq!(
            session.exited.map(|it| it.status),
            Some(code),
            "{}",
            session.session
        );
        assert!(session.command.len() <= 128, "{}", session.command);
    }
}

#[test]
fn ps_shows_what_runs_and_all_with_a() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    agent
        .host_tool(["exec", "--id", &"1".repeat(32)], ["true"])
        .exits(0);
    let argv = ["cat", fifo.path()];
    agent
        .host_tool(["exec", "-d", "--id", &"2".repeat(32)], argv)
        .exits(0);
    let running = agent.host_tool(["ps"], []).exits(0).out();
    assert!(
        running.contains("cat ") && !running.contains("true"),
        "{running}"
    );
    let all = agent.host_tool(["ps", "-a"], []).exits(0).out();
    assert!(all.contains("cat ") && all.contains("true"), "{all}");
    let json = agent.host_tool(["ps", "-a", "--json"], []).exits(0).json();
    let listed = json["sessions"].as_array().map(Vec::len);
    assert_eq!(listed, Some(2), "{json}");
    fifo.release();
    agent.host_tool(["wait", &"2".repeat(32)], []).exits(0);
}

#[test]
fn attach_observe_gets_a_copy_while_the_owner_goes_on() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let id = "3".repeat(32);
    let script = format!("echo one; cat {}; echo two; exit 4", fifo.path());
    let mut owner = agent.run(["exec", "--id", &id], ["sh", "-c", &script]);
    assert_eq!(owner.read_line(), "one");
    let observer = agent.run(["attach", &id, "--observe", "--from", "0"], []);
    let mut asking = agent.greet();
    let started = std::time::Instant::now();
    while asking.sessions().0[0].attached < 2 {
        assert!(
            started.elapsed() < tests::DEADLINE,
            "the observer does not attach"
        );
    }
    fifo.release();
    assert_eq!(owner.finish().exits(4).out(), "two\n");
    let observed = observer.finish().exits(4);
    // The owner has acknowledged the first line, so the observer may get a gap instead.
    assert!(observed.out().ends_with("two\n"), "{observed}");
}

#[test]
fn the_commands_about_a_session_that_is_not_there_say_so() {
    let agent = Agent::start();
    for (command, code) in [("attach", 125), ("wait", 125), ("kill", 6)] {
        let ended = agent.host_tool([command, "4711"], []).complains("4711");
        assert_eq!(ended.code(), code, "{command}: {ended}");
    }
}
