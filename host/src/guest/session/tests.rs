//! The driver against a scripted guest: what it makes of slowness, refusals, lost connections, and
//! of readers and writers on this side that are slow or gone.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use shared::frame::Decoder;
use shared::id::{ExecId, Instance};
use shared::message::{
    Attach, ByteString, Chunk, Exec, ExitStatus, Fail, FailCode, Gap, Hello, Message,
    ResourceUsage, Role, Sever, Window,
};
use shared::version::SUPPORTED;

use super::*;
use crate::exit::Exit;
use crate::guest::address::GuestAddress;
use crate::testing::TempDir;

/// One connection, as the guest has it.
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
}

impl Peer {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    /// The next frame of the host; `None` at the end of the connection.
    fn hear(&mut self) -> Option<Message> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.poll_frame().unwrap() {
                return Some(Message::parse(frame, Role::Host).unwrap());
            }
            match self.stream.read(&mut bytes).unwrap_or(0) {
                0 => return None,
                len => self.decoder.push(&bytes[..len]),
            }
        }
    }

    /// Reads HELLO, says HELLO, and reads EXEC.
    fn hear_exec(&mut self) -> Exec {
        assert!(matches!(self.hear(), Some(Message::Hello(_))));
        self.say(&[hello()]);
        match self.hear() {
            Some(Message::Exec(exec)) => exec,
            other => panic!("{other:?}"),
        }
    }

    /// Reads HELLO and ATTACH.
    fn hear_attach(&mut self) -> Attach {
        assert!(matches!(self.hear(), Some(Message::Hello(_))));
        match self.hear() {
            Some(Message::Attach(attach)) => attach,
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, messages: &[Message]) {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        self.stream.write_all(&bytes).unwrap();
    }

    /// Reads until the host is done with the connection, and gives what it said.
    fn hear_all(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.hear()).collect()
    }
}

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: SUPPORTED,
        role: Role::Guest,
        version: "0".to_owned(),
        boot_id: None,
        generation: None,
        instance: Some(Instance::from_bytes([7; 16])),
        sessions_begun: 3,
    })
}

fn started(stdout_from: u64, fresh: bool) -> Message {
    Message::Started(attachment(stdout_from, fresh))
}

fn attached(stdout_from: u64) -> Message {
    Message::Attached(attachment(stdout_from, false))
}

fn attachment(stdout_from: u64, fresh: bool) -> Started {
    Started {
        session: 1,
        id: None,
        tty: false,
        stdin: Window {
            received: 0,
            limit: 1024 * 1024,
            is_closed: false,
        },
        pid: 2,
        fresh,
        stdout_from,
        stderr_from: 0,
    }
}

fn stdout(offset: u64, bytes: &[u8]) -> Message {
    let bytes = bytes.to_vec();
    Message::Stdout(Chunk { offset, bytes })
}

fn stderr(offset: u64, bytes: &[u8]) -> Message {
    let bytes = bytes.to_vec();
    Message::Stderr(Chunk { offset, bytes })
}

fn exited(stdout_end: u64, stderr_end: u64) -> Message {
    Message::Exited(Exited {
        session: 1,
        status: ExitStatus::Code(3),
        stdout_end,
        stderr_end,
        writers_alive: false,
        timed_out: false,
        fault: None,
        usage: ResourceUsage::default(),
    })
}

fn fail(code: FailCode) -> Message {
    Message::Fail(Fail::new(code, "no"))
}

/// How the client is set up.
struct Setup<'a> {
    stdin: Option<BorrowedFd<'a>>,
    /// Where standard output goes; into a file if missing.
    stdout: Option<BorrowedFd<'a>>,
    stderr: Option<BorrowedFd<'a>>,
    timeout: Duration,
    may_be_known: bool,
    is_done_when_started: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            stdin: None,
            stdout: None,
            stderr: None,
            timeout: Duration::from_secs(30),
            may_be_known: false,
            is_done_when_started: false,
        }
    }
}

/// Runs a command in a guest that treats its connections as `guest` does. Gives the outcome and
/// what the file got.
fn exec(
    setup: Setup<'_>,
    guest: impl FnOnce(&UnixListener) + Send,
) -> (Result<Exited, ClientError>, Vec<u8>) {
    let temp = TempDir::new("session");
    let path = temp.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let endpoint = Endpoint {
        address: GuestAddress::Unix { path },
        port: 0,
    };
    let exec = Exec {
        stdin: setup.stdin.is_some(),
        ..Exec::new(
            ExecId::from_bytes([1; 16]),
            vec![ByteString::new("true").unwrap()],
        )
    };
    let end = Instant::now() + setup.timeout;
    let session = Session {
        endpoint: &endpoint,
        request: Request::Exec {
            exec: Box::new(exec),
            may_be_known: setup.may_be_known,
        },
        deadlines: Deadlines {
            start: Some(end),
            absence_max: Some(Duration::from_secs(30)),
            end: Some(end),
        },
        watch: Watch::until(end),
        is_awaited: false,
        end_grace: Duration::ZERO,
        is_done_when_started: setup.is_done_when_started,
    };
    let output = temp.path().join("output");
    let file = File::create(&output).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let local = Local {
        stdin: setup.stdin,
        stdout: setup.stdout.unwrap_or_else(|| file.as_fd()),
        stderr: setup.stderr.unwrap_or_else(|| null.as_fd()),
        signals: None,
        terminal: None,
    };
    let result = thread::scope(|scope| {
        scope.spawn(|| guest(&listener));
        run(session, local)
    });
    let result = result.map(|outcome| match outcome {
        Outcome::Exited(exited) => exited,
        Outcome::Started(started) => panic!("{started:?}"),
    });
    (result, fs::read(&output).unwrap())
}

fn simply(guest: impl FnOnce(&UnixListener) + Send) -> (Result<Exited, ClientError>, Vec<u8>) {
    exec(Setup::default(), guest)
}

#[test]
fn output_and_end_are_handed_on_and_thanked_for() {
    let (result, output) = simply(|listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        let output = [stdout(0, b"ab"), stderr(0, b"x")];
        peer.say(&[started(0, true)]);
        peer.say(&output);
        peer.say(&[exited(2, 1)]);
        let said = peer.hear_all();
        assert!(matches!(said[..], [Message::ExitAck(_)]), "{said:?}");
    });
    assert_eq!(result.unwrap().status, ExitStatus::Code(3));
    assert_eq!(output, b"ab");
}

#[test]
fn the_same_request_is_sent_again_until_it_is_answered() {
    let (result, _) = simply(|listener| {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let mut peer = Peer::accept(listener);
            ids.push(peer.hear_exec().id);
            peer.say(&[fail(FailCode::Refusing)]);
        }
        drop(Peer::accept(listener));
        let mut peer = Peer::accept(listener);
        ids.push(peer.hear_exec().id);
        assert_eq!(ids, [ids[0]; 3]);
        peer.say(&[started(0, true), exited(0, 0)]);
    });
    result.unwrap();
}

#[test]
fn a_cut_is_bridged_and_the_output_goes_on_at_its_byte() {
    let (result, output) = simply(|listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        let reason = SeverReason::Quiesce;
        peer.say(&[started(0, true), stdout(0, b"ab")]);
        peer.say(&[Message::Sever(Sever { reason })]);
        drop(peer);
        drop(Peer::accept(listener));
        let mut peer = Peer::accept(listener);
        assert_eq!(peer.hear_attach().stdout_from, Some(2));
        peer.say(&[hello(), attached(2), stdout(2, b"c"), exited(3, 0)]);
    });
    result.unwrap();
    assert_eq!(output, b"abc");
}

#[test]
fn output_that_is_nowhere_to_be_had_is_announced_or_an_error() {
    let gap = Message::Gap(Gap {
        stream: Stream::Stdout,
        from: 0,
        to: 2,
    });
    let (result, output) = exec(
        Setup {
            may_be_known: true,
            ..Setup::default()
        },
        |listener| {
            let mut peer = Peer::accept(listener);
            peer.hear_exec();
            peer.say(&[started(0, false), gap, stdout(2, b"c")]);
            peer.say(&[exited(3, 0)]);
        },
    );
    result.unwrap();
    assert_eq!(output, b"c");
    let (result, _) = simply(|listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.say(&[started(2, true), stdout(2, b"c"), exited(3, 0)]);
    });
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("STDOUT at offset 2 where 0 was expected"),
        "{text}"
    );
}

#[test]
fn a_guest_that_ends_leaves_an_unknown_outcome() {
    let (result, output) = simply(|listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        let reason = SeverReason::Shutdown;
        peer.say(&[started(0, true), stdout(0, b"a")]);
        peer.say(&[Message::Sever(Sever { reason })]);
    });
    let error = result.unwrap_err();
    assert!(
        error.to_string().ends_with("how it ended is unknown"),
        "{error}"
    );
    assert_eq!((error.exit(), output), (Exit::Guest, b"a".to_vec()));
}

#[test]
fn refusals_for_good_have_the_shells_codes() {
    for (code, exit) in [
        (FailCode::NotFound, Exit::NotFound),
        (FailCode::NotRunnable, Exit::NotRunnable),
        (FailCode::NoSession, Exit::Guest),
        (FailCode::Stale, Exit::Guest),
    ] {
        let (result, _) = simply(move |listener| {
            let mut peer = Peer::accept(listener);
            peer.hear_exec();
            peer.say(&[fail(code)]);
        });
        assert_eq!(result.unwrap_err().exit(), exit, "{code}");
    }
}

#[test]
fn the_deadline_says_what_is_known() {
    let soon = || Setup {
        timeout: Duration::from_millis(50),
        ..Setup::default()
    };
    let (result, _) = exec(soon(), |listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.say(&[started(0, true)]);
        // Held open until the host gives up.
        peer.hear_all();
    });
    let error = result.unwrap_err();
    assert_eq!(error.exit(), Exit::Deadline);
    assert!(
        error.to_string().contains("the command was started"),
        "{error}"
    );
    let (result, _) = exec(soon(), |listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.hear_all();
    });
    let error = result.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("whether the command ran is unknown"),
        "{error}"
    );
}

#[test]
fn input_is_passed_on_to_its_end() {
    let (reader, mut writer) = io::pipe().unwrap();
    let bytes: Vec<u8> = (0..=255u8).cycle().take(200_000).collect();
    let expected = bytes.clone();
    let setup = Setup {
        stdin: Some(reader.as_fd()),
        ..Setup::default()
    };
    let writing = thread::spawn(move || writer.write_all(&bytes));
    let (result, _) = exec(setup, move |listener| {
        let mut peer = Peer::accept(listener);
        assert!(peer.hear_exec().stdin);
        peer.say(&[started(0, true)]);
        let mut received = Vec::new();
        loop {
            match peer.hear() {
                Some(Message::Stdin(chunk)) => {
                    assert_eq!(chunk.offset, received.len() as u64);
                    received.extend(chunk.bytes);
                    let window = Window {
                        received: received.len() as u64,
                        limit: received.len() as u64 + 10_000,
                        is_closed: false,
                    };
                    peer.say(&[Message::Window(window)]);
                }
                Some(Message::StdinEof(eof)) => break assert_eq!(eof.offset, 200_000),
                other => panic!("{other:?}"),
            }
        }
        assert!(received == expected);
        peer.say(&[exited(0, 0)]);
    });
    result.unwrap();
    writing.join().unwrap().unwrap();
}

/// A slow reader delays nothing else: a PING is answered while the output waits.
#[test]
fn a_reader_that_stopped_holds_nothing_up() {
    let (mut reader, writer) = io::pipe().unwrap();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let reading = thread::spawn(move || {
        may_go_on.recv().unwrap();
        let mut received = Vec::new();
        reader.read_to_end(&mut received).map(|_| received.len())
    });
    let setup = Setup {
        stdout: Some(writer.as_fd()),
        ..Setup::default()
    };
    let (result, _) = exec(setup, |listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.say(&[started(0, true)]);
        for index in 0..4 {
            peer.say(&[stdout(index * 60_000, &[b'x'; 60_000])]);
        }
        let ping = shared::message::Ping { nonce: 5 };
        peer.say(&[Message::Ping(ping)]);
        let pong = loop {
            match peer.hear() {
                Some(Message::Ack(_)) => {}
                other => break other,
            }
        };
        assert_eq!(pong, Some(Message::Pong(ping)));
        peer.say(&[exited(240_000, 0)]);
        go_on.send(()).unwrap();
        peer.hear_all();
    });
    result.unwrap();
    drop(writer);
    assert_eq!(reading.join().unwrap().unwrap(), 240_000);
}

#[test]
fn a_reader_that_is_gone_ends_the_command_and_one_of_complaints_does_not() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let setup = Setup {
        stdout: Some(writer.as_fd()),
        ..Setup::default()
    };
    let (result, _) = exec(setup, |listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.say(&[started(0, true), stdout(0, b"x")]);
        let said = peer.hear_all();
        assert!(
            matches!(said[..], [Message::Signal(signal)] if signal.number == 15),
            "{said:?}"
        );
    });
    assert_eq!(result.unwrap_err().exit(), Exit::OutputClosed);

    let setup = Setup {
        stderr: Some(writer.as_fd()),
        ..Setup::default()
    };
    let (result, output) = exec(setup, |listener| {
        let mut peer = Peer::accept(listener);
        peer.hear_exec();
        peer.say(&[started(0, true), stderr(0, b"x"), stdout(0, b"y")]);
        peer.say(&[stderr(1, b"z"), exited(1, 2)]);
    });
    result.unwrap();
    assert_eq!(output, b"y");
}

#[test]
fn a_guest_whose_vmm_has_ended_is_not_waited_for() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let temp = TempDir::new("session");
    let endpoint = Endpoint {
        address: GuestAddress::Unix {
            path: temp.path().join("none"),
        },
        port: 0,
    };
    // A socket whose peer is gone polls like the pidfd of an ended process.
    drop(theirs);
    let end = Instant::now() + Duration::from_secs(30);
    let argv = vec![ByteString::new("true").unwrap()];
    let session = Session {
        endpoint: &endpoint,
        request: Request::Exec {
            exec: Box::new(Exec::new(ExecId::from_bytes([1; 16]), argv)),
            may_be_known: false,
        },
        deadlines: Deadlines {
            start: Some(end),
            absence_max: None,
            end: None,
        },
        watch: Watch::with_process(end, Some(ours.as_fd())),
        is_awaited: false,
        end_grace: Duration::ZERO,
        is_done_when_started: false,
    };
    let local = Local {
        stdin: None,
        stdout: ours.as_fd(),
        stderr: ours.as_fd(),
        signals: None,
        terminal: None,
    };
    let error = run(session, local).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VMM has ended; the command did not run"
    );
    assert_eq!(error.exit(), Exit::VmmEnded);
}
