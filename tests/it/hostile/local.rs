//! Goal: a program in the guest can connect to a socket of the agent that is open to all users. It
//! can use up the places of programs and nothing else. Method: an agent with a local socket, and
//! raw connections that send what none of our programs would.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use shared::frame::{Decoder, FrameKind};
use shared::message::{CheckpointRequest, FailCode, Hello, Message, Ping, Role};
use tests::DEADLINE;
use tests::client::{exec, frame, header};

use crate::handshake::checkpoints::Guest;

/// How many programs are served at once (`docs/agent.md`).
const CONNECTIONS_MAX: usize = 64;

/// Most growth of the agent, in KiB, whatever programs send.
const GROWTH_KIB_MAX: u64 = 8 * 1024;

impl Guest {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.local("agent.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// A connection of a program that has sent HELLO.
    fn greet(&self) -> UnixStream {
        let mut stream = self.connect();
        let hello = Message::Hello(Hello::of(Role::Local, "test"));
        stream.write_all(&hello.encode()).unwrap();
        stream
    }

    /// Checks that hosts are served as if no program were there.
    #[track_caller]
    fn serves_hosts(&self) {
        assert_eq!(self.agent.exec(["echo", "hi"]).exits(0).out(), "hi\n");
        self.agent.host_tool(["probe"], []).exits(0);
    }
}

/// Everything that the agent sends until it closes.
fn heard(stream: &mut UnixStream) -> Vec<Message> {
    let mut decoder = Decoder::new();
    let (mut messages, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(frame) = decoder.poll_frame().unwrap() {
            messages.push(Message::from_guest_to_local(frame).unwrap());
        }
        match stream.read(&mut bytes) {
            Ok(0) => return messages,
            Ok(len) => decoder.push(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return messages,
            Err(error) => panic!("it stays open: {error}"),
        }
    }
}

/// Sends bytes, and expects a FAIL with this code and the end of the connection.
#[track_caller]
fn is_refused(mut stream: UnixStream, bytes: &[u8], code: FailCode) {
    let _ = stream.write_all(bytes);
    let messages = heard(&mut stream);
    let Some(Message::Fail(fail)) = messages.last() else {
        panic!("no FAIL: {messages:?}")
    };
    assert_eq!(fail.code, code, "{fail:?}");
}

#[test]
fn programs_that_say_nothing_take_the_places_of_programs_only() {
    let guest = Guest::start();
    let before = guest.agent.greet().info();
    let silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| guest.connect()).collect();
    // The agent accepts connections in their order.
    is_refused(guest.connect(), b"", FailCode::Limit);
    guest.serves_hosts();
    let info = guest.agent.greet().info();
    let refused = |info: &shared::message::Info| info.counters["peers_refused"];
    assert_eq!(refused(&info), refused(&before) + 1, "{info:?}");
    // Their places are free once they are closed.
    drop(silent);
    let _fds = guest.agent.settled_fd_count();
    let mut program = guest.greet();
    program
        .write_all(&Message::Ping(Ping { nonce: 4 }).encode())
        .unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    let pong = heard(&mut program).pop();
    assert_eq!(pong, Some(Message::Pong(Ping { nonce: 4 })));
}

/// Everything that a host may ask for: to run a command, to end the guest, to rebind it.
#[test]
fn what_is_the_hosts_to_ask_is_refused_to_programs() {
    let guest = Guest::start();
    let file = guest.local("ran");
    let command = Message::Exec(exec(1, &["touch", file.to_str().unwrap()])).encode();
    is_refused(guest.greet(), &command, FailCode::Protocol);
    for &kind in FrameKind::ALL {
        let is_theirs = matches!(
            kind,
            FrameKind::Ping | FrameKind::Pong | FrameKind::Checkpoint | FrameKind::Generation
        );
        if is_theirs {
            continue;
        }
        is_refused(guest.greet(), &frame(kind, "{}"), FailCode::Protocol);
    }
    // A program cannot pass as a host, and hosts are not served as programs.
    let hello = |role| Message::Hello(Hello::of(role, "test")).encode();
    is_refused(guest.connect(), &hello(Role::Host), FailCode::Protocol);
    is_refused(guest.connect(), &hello(Role::Guest), FailCode::Protocol);
    let mut client = guest.agent.connect();
    client.send(&hello(Role::Local));
    client.is_refused(FailCode::Protocol);
    assert!(!file.exists(), "a program had a command run");
    guest.serves_hosts();
}

#[test]
fn nonsense_of_a_program_ends_its_connection() {
    let guest = Guest::start();
    let checkpoint = |payload: &str| frame(FrameKind::Checkpoint, payload);
    let tag = |tag: &str| checkpoint(&serde_json::json!({ "tag": tag }).to_string());
    let rows = [
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // A length that no frame has; the agent allocates nothing for it.
        header(FrameKind::Checkpoint, u32::MAX),
        checkpoint(""),
        checkpoint(&"[".repeat(60_000)),
        tag(""),
        tag("a b"),
        tag("\u{1b}[2J"),
        tag(&"x".repeat(257)),
        checkpoint(r#"{"timeout_ms":-1}"#),
        frame(FrameKind::Generation, r#"{"from":"x"}"#),
    ];
    for bytes in rows {
        is_refused(guest.greet(), &bytes, FailCode::Protocol);
    }
    // A wait with an endless time limit is accepted.
    let forever = CheckpointRequest {
        tag: None,
        timeout_ms: Some(u64::MAX),
    };
    let mut waiting = guest.greet();
    let forever = Message::CheckpointRequest(forever).encode();
    waiting.write_all(&forever).unwrap();
    // But only one at a time.
    waiting.write_all(&forever).unwrap();
    waiting.shutdown(Shutdown::Write).unwrap();
    let messages = heard(&mut waiting);
    let fail = messages.iter().find_map(|message| match message {
        Message::Fail(fail) => Some(fail.code),
        _ => None,
    });
    assert_eq!(fail, Some(FailCode::Limit), "{messages:?}");
    guest.serves_hosts();
}

/// Each program sends requests without end and reads no answer.
#[test]
fn programs_that_ask_and_do_not_read_take_no_memory() {
    let guest = Guest::start();
    guest.serves_hosts();
    let before = guest.agent.status("VmHWM");
    let mut ping = Vec::new();
    while ping.len() < 64 * 1024 {
        Message::Ping(Ping { nonce: u64::MAX }).encode_into(&mut ping);
    }
    let flood = |_| {
        let mut stream = guest.greet();
        stream.set_nonblocking(true).unwrap();
        // Until the agent reads no more.
        let mut len = 0;
        while let Ok(count) = stream.write(&ping[len % ping.len()..]) {
            len += count;
        }
        stream
    };
    let flooding: Vec<_> = (0..CONNECTIONS_MAX / 2).map(flood).collect();
    guest.serves_hosts();
    let growth = guest.agent.status("VmHWM") - before;
    assert!(growth < GROWTH_KIB_MAX, "the agent grew by {growth} KiB");
    drop(flooding);
    let _fds = guest.agent.settled_fd_count();
}
