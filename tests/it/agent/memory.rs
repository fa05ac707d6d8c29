//! Goal: an agent that gets no more memory refuses requests by name, lives, and serves again once
//! memory has come back. Method: a real limit of the kernel on a running agent, below what its
//! budget would let it take, commands that fill their rings, and long requests.

use std::process::Command;

use shared::message::{ByteString, Fail, FailCode, Hello, Message, Ping};
use tests::agent::Agent;
use tests::client::{Client, exec_numbered};
use tests::process::run;

/// Commands that flood their output.
const FLOODS: u64 = 40;

/// Long requests: argument and environment bytes of each.
const LONG: u64 = 12;
const LONG_LEN: usize = 700 * 1024;

/// Limits the agent's memory to what it takes now and so many KiB more. `prlimit(1)` names the
/// limit and `/proc/PID/status` what it counts.
fn limit(agent: &Agent, (option, counts): (&str, &str), more_kib: u64) {
    let len = (agent.status(counts) + more_kib) * 1024;
    let mut command = Command::new("prlimit");
    command.arg(format!("--pid={}", agent.pid()));
    run(command.arg(format!("--{option}={len}:{len}"))).exits(0);
}

/// Asks over a fresh connection. `None`: there was no memory to accept it.
fn ask(agent: &Agent, message: &Message) -> Option<(Client, Message)> {
    let mut client = agent.connect();
    let mut bytes = Message::Hello(Hello::host("test")).encode();
    message.encode_into(&mut bytes);
    client.try_send(&bytes);
    loop {
        match client.hear_or_end()? {
            Message::Hello(_) => {}
            answer => return Some((client, answer)),
        }
    }
}

#[track_caller]
fn is_without_memory(fail: &Fail) {
    let is_named = fail.text.contains("no memory") || fail.text.contains("cannot create");
    assert!(fail.code == FailCode::Limit && is_named, "{fail:?}");
}

/// Returns how many of the requests were refused.
fn flood(agent: &Agent) -> usize {
    let mut clients = Vec::new();
    let mut refused = 0;
    let long = |number| {
        let mut request = exec_numbered(number, &["true"]);
        let words = LONG_LEN / (100 * 1024);
        let word = ByteString::new("x".repeat(100 * 1024)).unwrap();
        request.argv.resize(1 + words, word);
        request
    };
    let floods = (1..=FLOODS).map(|number| exec_numbered(number, &["yes"]));
    let longs = (FLOODS + 1..=FLOODS + LONG).map(long);
    for request in floods.chain(longs) {
        match ask(agent, &Message::Exec(request)) {
            // It reads nothing more, so that a ring is filled.
            Some((client, Message::Started(_))) => clients.push(client),
            Some((_, Message::Fail(fail))) => {
                is_without_memory(&fail);
                refused += 1;
            }
            Some((_, other)) => panic!("{other:?}"),
            None => refused += 1,
        }
        let ping = Ping { nonce: 5 };
        let answer = ask(agent, &Message::Ping(ping)).map(|it| it.1);
        assert_eq!(answer, Some(Message::Pong(ping)));
    }
    refused
}

fn check(kind: (&str, &str), more_kib: u64) {
    let agent = Agent::start();
    agent.exec(["true"]).exits(0);
    limit(&agent, kind, more_kib);
    let refused = flood(&agent);
    assert!(refused > 0, "{kind:?} and {more_kib} KiB hold everything");
    // The clients are gone, so the commands end.
    let _fds = agent.idle_fd_count();
    agent.reaps_all();
    assert_eq!(agent.exec(["echo", "hi"]).exits(0).out(), "hi\n");
}

#[test]
fn a_limit_on_its_address_space_does_not_end_the_agent() {
    check(("as", "VmSize"), 1024);
    check(("as", "VmSize"), 4 * 1024);
}

#[test]
fn a_limit_on_its_data_does_not_end_the_agent() {
    check(("data", "VmData"), 256);
    check(("data", "VmData"), 2 * 1024);
}
