//! Goal: at each limit everything works; one past it there is a refusal with a text or
//! back-pressure, and no other client notices. Method: raw connections that go exactly there.

use shared::frame::FrameKind;
use shared::limits::{EXEC_BYTES_MAX, EXEC_PAYLOAD_LEN_MAX, EXEC_STRINGS_MAX, PAYLOAD_LEN_MAX};
use shared::message::{ByteString, Exec, ExitStatus, FailCode, Hello, Message, Ping, Stream};
use tests::agent::Agent;
use tests::client::{Client, exec_id, exec_numbered, frame, header, shell};
use tests::fifo::Fifo;

/// Most connections and most running sessions (`docs/agent.md`).
const CONNECTIONS_MAX: usize = 1024;
const SESSIONS_MAX: u64 = 1024;

/// Bytes of one output that are kept without an acknowledgement.
const RING_LEN_MAX: usize = 256 * 1024;

/// A frame whose payload is a JSON object, padded to exactly `len` bytes by an unknown field.
fn padded(kind: FrameKind, fields: &str, len: usize) -> Vec<u8> {
    let start = format!("{{{fields},\"pad\":\"");
    let pad = len - start.len() - "\"}".len();
    let payload = format!("{start}{}\"}}", "x".repeat(pad));
    assert_eq!(payload.len(), len);
    frame(kind, payload)
}

/// A header that announces one byte more than `len`.
fn header_past(kind: FrameKind, len: usize) -> Vec<u8> {
    header(kind, u32::try_from(len + 1).unwrap())
}

#[test]
fn connections() {
    let agent = Agent::start();
    let _fds = agent.settled_fd_count();
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| agent.greet()).collect();
    // All of them are served.
    for client in [0, CONNECTIONS_MAX / 2, CONNECTIONS_MAX - 1] {
        let ping = Ping { nonce: 1 };
        assert_eq!(
            clients[client].ask(&Message::Ping(ping)),
            Message::Pong(ping)
        );
    }
    let mut one_more = agent.connect();
    one_more.try_send(&Message::Hello(Hello::host("test")).encode());
    let fail = one_more.is_refused(FailCode::Limit);
    assert!(fail.text.contains("1024"), "{fail:?}");
    // The client tries again until there is room.
    let waiting = agent.run(["exec"], ["echo", "hi"]);
    drop(clients.split_off(CONNECTIONS_MAX - 10));
    assert_eq!(waiting.finish().exits(0).out(), "hi\n");
    let ping = Ping { nonce: 2 };
    assert_eq!(clients[0].ask(&Message::Ping(ping)), Message::Pong(ping));
}

#[test]
fn sessions() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut request = exec_numbered(0, &["cat", fifo.path()]);
    request.detached = true;
    for number in 1..=SESSIONS_MAX {
        request.id = exec_id(number);
        agent.greet().start(&request);
    }
    request.id = exec_id(SESSIONS_MAX + 1);
    let mut client = agent.greet();
    let fail = client.ask_in_vain(&Message::Exec(request.clone()), FailCode::Limit);
    assert!(fail.text.contains("1024"), "{fail:?}");
    // Killed one by one. Opening the pipe would release only the commands that have come to it.
    for number in 1..=SESSIONS_MAX {
        let kill = shared::message::Signal {
            session: Some(shared::message::SessionRef::Exec(exec_id(number))),
            number: 9,
        };
        assert_eq!(client.ask(&Message::Signal(kill)), Message::Ok);
    }
    // The refused command did not run, so it may be asked for again.
    drop((fifo, client));
    let _fds = agent.idle_fd_count();
    request.argv.truncate(1);
    let mut client = agent.greet();
    assert!(client.start(&request).fresh);
    assert_eq!(client.hear_exited().status, ExitStatus::Code(0));
    agent.reaps_all();
}

#[test]
fn frames() {
    let agent = Agent::start();
    let mut client = agent.greet();
    client.send(&padded(FrameKind::Ping, "\"nonce\":5", PAYLOAD_LEN_MAX));
    assert_eq!(client.hear(), Message::Pong(Ping { nonce: 5 }));
    client.send(&header_past(FrameKind::Ping, PAYLOAD_LEN_MAX));
    client.is_refused(FailCode::Protocol);

    let mut client = agent.greet();
    let fields = format!("\"argv\":[\"true\"],\"env\":[],\"id\":\"{}\"", exec_id(1));
    client.send(&padded(FrameKind::Exec, &fields, EXEC_PAYLOAD_LEN_MAX));
    let started = client.hear();
    assert!(matches!(started, Message::Started(_)), "{started:?}");
    client.hear_exited();
    client.send(&header_past(FrameKind::Exec, EXEC_PAYLOAD_LEN_MAX));
    client.is_refused(FailCode::Protocol);
}

/// A request whose strings, each with its NUL, have this many bytes. Each string is short enough
/// for Linux.
fn request_of(number: u64, len: usize) -> Exec {
    let script = ["sh", "-c", "echo $#"];
    let fixed: usize = script.iter().map(|word| word.len() + 1).sum();
    let mut rest = len - fixed;
    let mut request = exec_numbered(number, &script);
    while rest > 0 {
        let part = rest.min(100 * 1024);
        request
            .argv
            .push(ByteString::new("x".repeat(part - 1)).unwrap());
        rest -= part;
    }
    request
}

#[test]
fn argument_bytes() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let started = client.start(&request_of(1, EXEC_BYTES_MAX));
    assert_eq!(client.follow(&started).exited.status, ExitStatus::Code(0));
    let too_much = request_of(2, EXEC_BYTES_MAX + 1);
    assert!(too_much.limit_exceeded().is_some());
    let fail = client.ask_in_vain(&Message::Exec(too_much), FailCode::Limit);
    assert!(fail.text.contains("exceed"), "{fail:?}");
}

#[test]
fn argument_strings() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let request = |number, count| {
        let script = ["sh", "-c", "echo $#", "sh"];
        let mut request = exec_numbered(number, &script);
        let word = ByteString::new("x").unwrap();
        request.argv.resize(count, word);
        request
    };
    let started = client.start(&request(1, EXEC_STRINGS_MAX));
    let expected = format!("{}\n", EXEC_STRINGS_MAX - 4);
    assert_eq!(client.follow(&started).stdout.bytes, expected.into_bytes());
    client.say(&Message::Exec(request(2, EXEC_STRINGS_MAX + 1)));
    let Message::Fail(fail) = client.hear() else {
        panic!("no FAIL")
    };
    let is_clear = matches!(fail.code, FailCode::Protocol | FailCode::Limit);
    assert!(is_clear && fail.text.contains("argv"), "{fail:?}");
}

/// Starts a command that writes `len` bytes, and reads a ring's length without an ACK.
fn unacknowledged(client: &mut Client, number: u64, len: usize) -> usize {
    let len = len.to_string();
    client.start(&exec_numbered(number, &["head", "-c", &len, "/dev/zero"]));
    client.hear_stdout(RING_LEN_MAX).len()
}

#[test]
fn ring() {
    let agent = Agent::start();
    let mut client = agent.greet();
    // A whole ring comes without an acknowledgement.
    unacknowledged(&mut client, 1, RING_LEN_MAX);
    client.ack(Stream::Stdout, RING_LEN_MAX as u64);
    let exited = client.hear_exited();
    assert_eq!(exited.stdout_end, RING_LEN_MAX as u64);
    client.ack_exit(&exited);
    // One byte more is held back: the next message is an answer to something else.
    let mut client = agent.greet();
    unacknowledged(&mut client, 2, RING_LEN_MAX + 1);
    agent.exec(["seq", "100000"]).exits(0);
    let ping = Ping { nonce: 3 };
    assert_eq!(client.ask(&Message::Ping(ping)), Message::Pong(ping));
    client.ack(Stream::Stdout, RING_LEN_MAX as u64);
    assert_eq!(client.hear_stdout(1), [0]);
    assert_eq!(client.hear_exited().stdout_end, RING_LEN_MAX as u64 + 1);
}

/// Each stream has a ring of its own; a full one does not stop the other.
#[test]
fn a_ring_for_each_stream() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let script = format!(
        "(head -c {} /dev/zero &) ; wait; echo other >&2",
        RING_LEN_MAX + 1
    );
    client.start(&shell(1, &script));
    let (mut stdout, mut stderr) = (0, Vec::new());
    while stdout < RING_LEN_MAX || stderr.len() < 6 {
        match client.hear() {
            Message::Stdout(chunk) => stdout += chunk.bytes.len(),
            Message::Stderr(chunk) => stderr.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((stdout, &stderr[..]), (RING_LEN_MAX, &b"other\n"[..]));
}
