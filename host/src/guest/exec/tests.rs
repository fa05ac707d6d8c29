//! The client against a scripted guest: what it makes of slowness, refusals and lost connections.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use shared::frame::Decoder;
use shared::id::ExecId;
use shared::message::{ByteString, Chunk, ExitStatus, Fail, ResourceUsage, Role, Sever};
use shared::version::SUPPORTED;

use super::*;
use crate::exit::Exit;
use crate::vmm::GuestAddress;
use crate::vmm::testing::TempDir;

/// Reads HELLO and EXEC.
fn read_exec(peer: &mut UnixStream) -> Exec {
    let mut decoder = Decoder::new();
    let mut bytes = [0; 4096];
    loop {
        while let Some(frame) = decoder.poll_frame().unwrap() {
            match Message::parse(frame, Role::Host).unwrap() {
                Message::Exec(exec) => return exec,
                other => assert!(matches!(other, Message::Hello(_)), "{other:?}"),
            }
        }
        let len = peer.read(&mut bytes).unwrap();
        assert!(len > 0, "the host closed");
        decoder.push(&bytes[..len]);
    }
}

fn say(peer: &mut UnixStream, messages: &[Message]) {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode_into(&mut bytes);
    }
    peer.write_all(&bytes).unwrap();
}

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: SUPPORTED,
        role: Role::Guest,
        version: "0".to_owned(),
        boot_id: None,
        generation: None,
    })
}

fn started(stdout_from: u64) -> Message {
    Message::Started(Started {
        session: 1,
        id: None,
        tty: false,
        stdin: shared::message::Window {
            received: 0,
            limit: 0,
            is_closed: true,
        },
        pid: 2,
        fresh: stdout_from == 0,
        stdout_from,
        stderr_from: 0,
    })
}

fn stdout(offset: u64, bytes: &[u8]) -> Message {
    let bytes = bytes.to_vec();
    Message::Stdout(Chunk { offset, bytes })
}

fn exited(stdout_end: u64) -> Message {
    Message::Exited(Exited {
        session: 1,
        status: ExitStatus::Code(3),
        stdout_end,
        stderr_end: 0,
        writers_alive: false,
        timed_out: false,
        usage: ResourceUsage::default(),
    })
}

fn fail(code: FailCode) -> Message {
    Message::Fail(Fail::new(code, "no"))
}

/// Runs a command in a guest that treats its connections as `guest` does. Gives the outcome and
/// the standard output.
fn exec(
    may_attach: bool,
    timeout: Duration,
    guest: impl FnOnce(&UnixListener) + Send,
) -> (Result<Exited, ExecError>, Vec<u8>) {
    let temp = TempDir::new("exec");
    let path = temp.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let endpoint = Endpoint {
        address: GuestAddress::Unix { path },
        port: 0,
    };
    let argv = vec![ByteString::new("true").unwrap()];
    let exec = Exec::new(ExecId::from_bytes([1; 16]), argv);
    let watch = Watch::until(Instant::now() + timeout);
    let request = Request {
        endpoint: &endpoint,
        exec: &exec,
        may_attach,
        start: watch,
        end: watch,
    };
    let mut output = Vec::new();
    let result = thread::scope(|scope| {
        scope.spawn(|| guest(&listener));
        run(&request, &mut |_, bytes| output.write_all(bytes))
    });
    (result, output)
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn output_and_end_are_handed_on() {
    let (result, output) = exec(false, LONG, |listener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        say(
            &mut peer,
            &[hello(), started(0), stdout(0, b"ab"), exited(2)],
        );
    });
    assert_eq!(result.unwrap().status, ExitStatus::Code(3));
    assert_eq!(output, b"ab");
}

#[test]
fn the_same_request_is_sent_again_until_it_is_answered() {
    let (result, _) = exec(false, LONG, |listener| {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (mut peer, _) = listener.accept().unwrap();
            ids.push(read_exec(&mut peer).id);
            say(&mut peer, &[hello(), fail(FailCode::Refusing)]);
        }
        let (mut peer, _) = listener.accept().unwrap();
        ids.push(read_exec(&mut peer).id);
        assert_eq!(ids, [ids[0]; 3]);
        say(&mut peer, &[hello(), started(0), exited(0)]);
    });
    result.unwrap();
}

/// What a slow guest sent on the first connection, before it read the second one, is not lost.
#[test]
fn output_on_an_earlier_connection_is_taken_from_there() {
    let (result, output) = exec(false, LONG, |listener| {
        let (mut first, _) = listener.accept().unwrap();
        read_exec(&mut first);
        let (mut second, _) = listener.accept().unwrap();
        read_exec(&mut second);
        say(&mut first, &[hello(), started(0), stdout(0, b"ab")]);
        say(&mut first, &[fail(FailCode::Superseded)]);
        drop(first);
        say(
            &mut second,
            &[hello(), started(2), stdout(2, b"c"), exited(3)],
        );
    });
    result.unwrap();
    assert_eq!(output, b"abc");
}

#[test]
fn output_that_is_nowhere_to_be_had_is_reported() {
    let slow = |listener: &UnixListener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        say(
            &mut peer,
            &[hello(), started(2), stdout(2, b"c"), exited(3)],
        );
    };
    let (result, _) = exec(false, LONG, slow);
    let text = "2 bytes of output were lost with an earlier connection; the command was started; \
                how it ended is unknown";
    assert_eq!(result.unwrap_err().to_string(), text);
    // Whoever names the request knows that somebody else may have had the beginning.
    let (result, output) = exec(true, LONG, slow);
    result.unwrap();
    assert_eq!(output, b"c");
}

#[test]
fn a_connection_that_ends_after_the_start_is_neither_success_nor_failure() {
    let (result, output) = exec(false, LONG, |listener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        say(&mut peer, &[hello(), started(0), stdout(0, b"a")]);
    });
    let error = result.unwrap_err();
    assert!(
        error.to_string().ends_with("how it ended is unknown"),
        "{error}"
    );
    assert_eq!((error.exit(), output), (Exit::Guest, b"a".to_vec()));

    let (result, _) = exec(false, LONG, |listener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        let reason = SeverReason::Quiesce;
        say(
            &mut peer,
            &[hello(), started(0), Message::Sever(Sever { reason })],
        );
    });
    let error = result.unwrap_err().to_string();
    assert!(
        error.starts_with("the guest cut the connection for a snapshot of it"),
        "{error}"
    );
}

#[test]
fn refusals_for_good_have_the_shells_codes() {
    for (code, exit) in [
        (FailCode::NotFound, Exit::NotFound),
        (FailCode::NotRunnable, Exit::NotRunnable),
        (FailCode::NoSession, Exit::Guest),
        (FailCode::Stale, Exit::Guest),
    ] {
        let (result, _) = exec(false, LONG, move |listener| {
            let (mut peer, _) = listener.accept().unwrap();
            read_exec(&mut peer);
            say(&mut peer, &[hello(), fail(code)]);
        });
        assert_eq!(result.unwrap_err().exit(), exit, "{code}");
    }
}

#[test]
fn the_deadline_says_what_is_known() {
    let (result, _) = exec(false, Duration::from_millis(50), |listener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        say(&mut peer, &[hello(), started(0)]);
        // Held open until the host gives up.
        let _ = peer.read(&mut [0; 1]);
    });
    assert!(
        matches!(result, Err(ExecError::Deadline(Fate::Started))),
        "{result:?}"
    );
    let (result, _) = exec(false, Duration::from_millis(50), |listener| {
        let (mut peer, _) = listener.accept().unwrap();
        read_exec(&mut peer);
        let _ = peer.read(&mut [0; 1]);
    });
    assert!(
        matches!(result, Err(ExecError::Deadline(Fate::Unknown))),
        "{result:?}"
    );
}
