//! What the agent keeps of commands that have ended, for how long, and how it answers retries.

use shared::message::{Attach, AttachMode, ExitStatus, FailCode, Message, SessionRef, Stream};
use tests::agent::Agent;
use tests::client::{Client, attach, exec_id, exec_numbered, shell};

/// How many results are kept (`docs/protocol.md`, EXITED).
const RESULTS_MAX: u64 = 256;

/// How much output all ended sessions keep together.
const ENDED_OUTPUT_LEN_MAX: u64 = 4 * 1024 * 1024;

/// Output of one session: one byte less than a ring. A full ring would stop the reading before the
/// end of file is found.
const OUTPUT_LEN: u64 = 256 * 1024 - 1;

/// Runs a command to its end and acknowledges the end.
#[track_caller]
fn run(client: &mut Client, number: u64) {
    let started = client.start(&exec_numbered(number, &["true"]));
    assert!(started.fresh);
    assert_eq!(client.follow(&started).exited.status, ExitStatus::Code(0));
}

#[test]
fn a_retry_after_the_end_gets_all_of_it_again() {
    let agent = Agent::start();
    let request = shell(1, "echo out; echo err >&2; exit 7");
    let mut client = agent.greet();
    let started = client.start(&request);
    let first = client.observe(&started);
    for _ in 0..2 {
        let mut client = agent.greet();
        let started = client.start(&request);
        assert!(!started.fresh);
        assert_eq!(client.observe(&started), first);
    }
}

#[test]
fn an_acknowledged_end_frees_the_output_and_keeps_the_result() {
    let agent = Agent::start();
    let request = shell(1, "echo out; exit 7");
    let mut client = agent.greet();
    let started = client.start(&request);
    let first = client.follow(&started);
    // Answers come in order, so the agent has seen the EXIT_ACK.
    client.info();
    let mut again = agent.greet();
    let started = again.start(&request);
    let second = again.observe(&started);
    assert!(!started.fresh);
    assert_eq!(second.stdout.bytes, b"");
    assert_eq!(second.exited, first.exited);
}

#[test]
fn the_257th_result_pushes_the_first_one_out() {
    let agent = Agent::start();
    let mut client = agent.greet();
    for number in 1..=RESULTS_MAX {
        run(&mut client, number);
    }
    let is_known = |number| {
        !agent
            .greet()
            .start(&exec_numbered(number, &["false"]))
            .fresh
    };
    assert!(is_known(1), "at the limit");
    run(&mut client, RESULTS_MAX + 1);
    assert!(is_known(2));
    assert!(is_known(RESULTS_MAX + 1));
    let forgotten = attach(SessionRef::Exec(exec_id(1)), AttachMode::Wait);
    agent.refuses(&Message::Attach(forgotten), FailCode::NoSession);
}

/// Once a client has output of a command, the command must never run again, even when the agent has
/// forgotten it.
#[test]
fn an_unknown_id_with_an_offset_is_refused_and_runs_nothing() {
    let agent = Agent::start();
    let file = agent.folder().join("ran");
    let script = format!("touch {}", file.display());
    for (stdout_from, stderr_from) in [(1, 0), (0, 1)] {
        let mut request = shell(1, &script);
        (request.stdout_from, request.stderr_from) = (stdout_from, stderr_from);
        agent.refuses(&Message::Exec(request), FailCode::NoSession);
    }
    // The same id without an offset is a new request.
    let mut client = agent.greet();
    assert!(!file.exists());
    let started = client.start(&shell(1, &script));
    assert!(started.fresh);
    client.follow(&started);
    assert!(file.exists());
}

#[test]
fn a_command_that_could_not_be_run_may_be_asked_for_again() {
    let agent = Agent::start();
    let path = agent.folder().join("program");
    let argv = [path.to_str().unwrap()];
    let request = exec_numbered(1, &argv);
    agent.refuses(&Message::Exec(request.clone()), FailCode::NotFound);
    std::os::unix::fs::symlink("/bin/true", &path).unwrap();
    let mut client = agent.greet();
    assert!(client.start(&request).fresh);
    assert_eq!(client.hear_exited().status, ExitStatus::Code(0));
}

#[test]
fn ended_sessions_keep_their_output_within_a_limit_the_oldest_loses_first() {
    let agent = Agent::start();
    let count = ENDED_OUTPUT_LEN_MAX / OUTPUT_LEN + 2;
    for number in 1..=count {
        let len = OUTPUT_LEN.to_string();
        let mut client = agent.greet();
        client.start(&exec_numbered(number, &["head", "-c", &len, "/dev/zero"]));
        assert_eq!(client.hear_exited().stdout_end, OUTPUT_LEN);
    }
    let left_of = |number| {
        let mut client = agent.greet();
        let request = Attach {
            stdout_from: Some(0),
            ..attach(SessionRef::Exec(exec_id(number)), AttachMode::Observe)
        };
        let attached = client.attach(request);
        let observed = client.observe(&attached).stdout;
        let missing = observed.missing();
        assert_eq!(missing + observed.bytes.len() as u64, OUTPUT_LEN);
        observed.bytes.len() as u64
    };
    assert_eq!(left_of(1), 0, "the oldest gave way");
    assert_eq!(left_of(count), OUTPUT_LEN, "the newest is whole");
    let all: u64 = (1..=count).map(left_of).sum();
    assert!(all <= ENDED_OUTPUT_LEN_MAX, "{all} bytes are kept");
}

#[test]
fn an_acknowledgement_of_all_output_leaves_only_the_end() {
    let agent = Agent::start();
    let request = shell(1, "printf 12345; exit 2");
    let mut client = agent.greet();
    client.start(&request);
    assert_eq!(client.hear_stdout(5), b"12345");
    client.ack(Stream::Stdout, 5);
    let exited = client.hear_exited();
    drop(client);
    let mut again = agent.greet();
    let mut request = request;
    request.stdout_from = 5;
    let started = again.start(&request);
    assert_eq!(started.stdout_from, 5);
    assert_eq!(again.hear(), Message::Exited(exited));
}
