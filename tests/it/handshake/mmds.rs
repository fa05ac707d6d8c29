//! Goal: a new restore epoch in the metadata wakes the agent and shows in its counters; whatever
//! the metadata service does, the agent keeps working. Method: a scripted HTTP server in place of
//! the service, and the agent's counters.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use shared::message::{Depth, Info};
use tests::DEADLINE;
use tests::agent::Agent;
use tests::client::{generation, probe, rebind};

/// What the server does with a request.
#[derive(Debug)]
enum Reply {
    /// Sends this at once.
    Whole(String),
    /// Sends this a byte at a time.
    Pieces(String),
    /// Sends this again and again until the client closes the connection.
    Endless(String),
    /// Sends nothing until the client closes the connection.
    Silence,
    /// Closes the connection.
    Close,
    /// Sends this when the test says so.
    Later(String, Receiver<()>),
}

/// An answer with this status and body.
fn answer(status: &str, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\nServer: x\r\nContent-Length: {len}\r\n\r\n{body}")
}

fn ok(body: &str) -> Reply {
    Reply::Whole(answer("200 OK", body))
}

fn epoch(byte: u8) -> Reply {
    ok(&generation(byte).to_string())
}

/// A server that gives one reply after another, each on a connection of its own, and then answers
/// as the real service does.
struct Server {
    address: SocketAddr,
    /// The requests, each before its reply.
    questions: Receiver<String>,
    /// One message for each reply that is complete.
    given: Receiver<()>,
}

impl Server {
    /// Starts it with these replies; after them it serves this epoch.
    fn start(replies: Vec<Reply>, last: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, questions) = mpsc::channel();
        let (end, given) = mpsc::channel();
        thread::spawn(move || {
            let mut replies = replies.into_iter();
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let asked = question(&mut stream);
                let reply = replies.next();
                let reply = reply.unwrap_or_else(|| match asked.starts_with("PUT") {
                    true => ok("token"),
                    false => epoch(last),
                });
                // The test has ended.
                if tell.send(asked).is_err() {
                    return;
                }
                give(reply, &mut stream);
                let _ = end.send(());
            }
        });
        Self {
            address,
            questions,
            given,
        }
    }

    /// An agent that uses this server.
    fn watched(&self) -> Agent {
        let agent = Agent::start_with(&["--mmds", &self.address.to_string()]);
        bind(&agent, 6);
        agent
    }

    /// The next request.
    #[track_caller]
    fn asked(&self) -> String {
        self.questions.recv_timeout(DEADLINE).expect("a question")
    }

    #[track_caller]
    fn is_asked_for_a_token(&self) {
        let asked = self.asked();
        assert!(asked.starts_with("PUT /latest/api/token HTTP/1.1\r\n"));
        assert!(asked.contains("\r\nX-metadata-token-ttl-seconds: 21600\r\n"));
    }

    #[track_caller]
    fn is_asked_for_the_epoch(&self, token: &str) {
        let asked = self.asked();
        let line = "GET /latest/host-tool/restore_epoch HTTP/1.1\r\n";
        assert!(asked.starts_with(line), "{asked}");
        let header = format!("\r\nX-metadata-token: {token}\r\n");
        assert!(asked.contains(&header), "{asked}");
    }
}

/// Reads a request up to its empty line.
fn question(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            break;
        }
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Some replies are about a client that closes the connection early, so write errors are ignored.
fn give(reply: Reply, stream: &mut TcpStream) {
    stream.set_nodelay(true).unwrap();
    match reply {
        Reply::Whole(text) => drop(stream.write_all(text.as_bytes())),
        Reply::Pieces(text) => {
            for byte in text.bytes() {
                drop(stream.write_all(&[byte]));
            }
        }
        Reply::Endless(text) => {
            // With one byte more in the same segment, because a complete answer by itself would be
            // accepted.
            drop(stream.write_all(format!("{text}x").as_bytes()));
            while stream.write_all(&[b'x'; 1024]).is_ok() {}
        }
        Reply::Silence => drop(stream.read(&mut [0])),
        Reply::Close => {}
        Reply::Later(text, opened) => {
            let _ = opened.recv();
            drop(stream.write_all(text.as_bytes()));
        }
    }
}

/// Asks the agent until its counters match. With each answer its loop completes a turn.
#[track_caller]
fn await_info(agent: &Agent, is_met: impl Fn(&Info) -> bool) -> Info {
    let started_at = std::time::Instant::now();
    let mut client = agent.greet();
    loop {
        let info = client.info();
        if is_met(&info) {
            return info;
        }
        assert!(started_at.elapsed() < DEADLINE, "{info:?}");
    }
}

/// Rebinds the guest, which makes the agent look at the metadata soon.
fn bind(agent: &Agent, byte: u8) {
    agent.greet().rebound(&rebind(byte));
    agent.greet().probed(&probe(byte, Depth::Listener));
}

#[test]
fn a_new_epoch_wakes_the_listener_and_decides_nothing() {
    let (open, opened) = mpsc::channel();
    let second = answer("200 OK", &generation(2).to_string());
    let replies = vec![
        ok("token"),
        epoch(1),
        epoch(1),
        Reply::Later(second, opened),
    ];
    let server = Server::start(replies, 2);
    let agent = server.watched();
    server.is_asked_for_a_token();
    server.is_asked_for_the_epoch("token");
    await_info(&agent, |info| info.counters["mmds_reads"] == 1);
    bind(&agent, 7);
    server.is_asked_for_the_epoch("token");
    // With nothing else to do, the slow timer makes the agent look again.
    server.is_asked_for_the_epoch("token");
    let before = agent.greet().info();
    assert_eq!(before.counters["mmds_reads"], 2);
    assert_eq!(
        before.counters["mmds_epochs"], 0,
        "the first one is not new"
    );
    open.send(()).unwrap();
    let after = await_info(&agent, |info| info.counters["mmds_epochs"] == 1);
    let by = |name: &str| after.counters[name] - before.counters[name];
    assert_eq!(
        (by("rearms"), by("listener_serial"), by("resets")),
        (1, 1, 0)
    );
    assert_eq!(
        (after.generation, &after.state),
        (before.generation, &before.state)
    );
    assert_eq!(after.generation, Some(generation(7)));
    let probed = agent.host_tool(["probe", "--timeout", "60s"], []);
    probed.exits(0);
    let shown = agent.host_tool(["ps", "--json"], []).exits(0).json();
    assert_eq!(shown["guest"]["counters"]["mmds_epochs"], 1, "{shown}");
    assert_eq!(agent.exec(["true"]).code(), 0);
}

#[test]
fn a_token_of_another_vmm_is_replaced() {
    let refusal = answer("401 Unauthorized", "MMDS token not valid.");
    let replies = vec![
        Reply::Pieces(answer("200 OK", "one")),
        Reply::Pieces(answer("200 OK", &generation(1).to_string())),
        Reply::Whole(refusal),
        ok("two"),
    ];
    let server = Server::start(replies, 2);
    let agent = server.watched();
    server.is_asked_for_a_token();
    server.is_asked_for_the_epoch("one");
    await_info(&agent, |info| info.counters["mmds_reads"] == 1);
    bind(&agent, 7);
    server.is_asked_for_the_epoch("one");
    server.is_asked_for_a_token();
    server.is_asked_for_the_epoch("two");
    await_info(&agent, |info| info.counters["mmds_epochs"] == 1);
}

/// Each of these is one failure, a pause without requests, and then a normal look.
#[test]
fn a_service_that_does_not_serve_is_asked_again_later() {
    let long = "x".repeat(10_000);
    let refused = || Reply::Whole(answer("401 Unauthorized", ""));
    let cases: Vec<(&str, Vec<Reply>)> = vec![
        ("never", vec![Reply::Silence]),
        ("closed", vec![Reply::Close]),
        (
            "garbage",
            vec![Reply::Whole("SSH-2.0-OpenSSH_9.2\r\n".to_owned())],
        ),
        (
            "half",
            vec![Reply::Whole(answer("200 OK", "token")[..30].to_owned())],
        ),
        ("announced too long", vec![ok(&long)]),
        (
            "endless head",
            vec![Reply::Endless("HTTP/1.1 200 OK\r\nX: ".to_owned())],
        ),
        ("endless", vec![Reply::Endless(answer("200 OK", "token"))]),
        (
            "no token",
            vec![Reply::Whole(answer("404 Not Found", "token"))],
        ),
        ("no header line", vec![ok("a\r\nX: y")]),
        (
            "no such key",
            vec![ok("t"), Reply::Whole(answer("404 Not Found", ""))],
        ),
        ("no epoch", vec![ok("t"), ok("yesterday")]),
        ("refused", vec![ok("t"), refused()]),
    ];
    // All at once, since they mostly wait.
    let watches = cases.into_iter().map(|(case, replies)| {
        let count = replies.len();
        let server = Server::start(replies, 1);
        let agent = server.watched();
        (case, count, server, agent)
    });
    let watches: Vec<_> = watches.collect();
    for (case, count, server, agent) in &watches {
        for _ in 0..*count {
            server.given.recv_timeout(DEADLINE).expect(case);
        }
        await_info(agent, |info| info.counters["mmds_failures"] > 0);
        assert_eq!(agent.exec(["true"]).code(), 0, "{case}");
        bind(agent, 7);
    }
    for (case, _, server, agent) in &watches {
        // The agent asks for the token again, or for the epoch alone.
        server.given.recv_timeout(DEADLINE).expect(case);
        let info = await_info(agent, |info| info.counters["mmds_reads"] > 0);
        assert_eq!(info.counters["mmds_epochs"], 0, "{case}");
    }
}

#[test]
fn nobody_at_the_address_is_a_failure_and_no_descriptor_stays() {
    // Nothing listens at this address of the loopback.
    let agent = Agent::start_with(&["--mmds", "127.0.0.77:9"]);
    bind(&agent, 6);
    let before = agent.settled_fd_count();
    await_info(&agent, |info| info.counters["mmds_failures"] > 0);
    assert_eq!(agent.settled_fd_count(), before);
}

#[test]
fn where_the_service_is_has_to_be_said_in_numbers() {
    let command = std::process::Command::new(tests::program("guest-agent"))
        .args([
            "--unprivileged",
            "--listen",
            "unix:/nowhere/a",
            "--mmds",
            "localhost:80",
        ])
        .output()
        .unwrap();
    assert_eq!(command.status.code(), Some(2));
    let said = String::from_utf8(command.stderr).unwrap();
    let expected = "bad value \"localhost:80\" for --mmds: expected 0, 1 or ADDRESS:PORT";
    assert!(said.contains(expected), "{said}");
}
