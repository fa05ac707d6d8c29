//! Goal: a guest that lies, floods, stalls or speaks nonsense gets `host-tool` to fail with its
//! documented exit code within the deadline, and nothing worse. Method: a scripted guest on a Unix
//! socket, and the built program.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use shared::frame::FrameKind;
use shared::id::Nonce;
use shared::message::{Chunk, Fail, FailCode, Hello, Message, Probed, Progress, Role, Started};
use shared::version::{SUPPORTED, VersionRange};
use tempfile::TempDir;
use tests::process::{Finished, run};
use tests::program;

/// A guest that answers every connection in the same way.
struct Guest {
    folder: TempDir,
}

impl Guest {
    fn new(answer: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let guest = Self {
            folder: TempDir::new().unwrap(),
        };
        let listener = UnixListener::bind(guest.socket()).unwrap();
        // Ends with the test program; a connection that breaks is the point of the exercise.
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&mut stream.unwrap());
            }
        });
        guest
    }

    /// A guest that says these bytes and then waits for the host to go away.
    fn saying(bytes: Vec<u8>) -> Self {
        Self::new(move |stream| {
            let _ = stream.write_all(&bytes);
            drain(stream);
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("guest.sock")
    }

    fn tool(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(program("host-tool"));
        let (command_word, rest) = words.split_first().unwrap();
        command
            .arg(command_word)
            .arg("--unix")
            .arg(self.socket())
            .args(rest);
        run(&mut command)
    }
}

/// Reads until the other side closes.
fn drain(stream: &mut UnixStream) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes), Ok(count) if count > 0) {}
}

fn hello(protocol: VersionRange) -> Vec<u8> {
    let version = "9.9.9".to_owned();
    let hello = Hello {
        protocol,
        role: Role::Guest,
        version,
        boot_id: None,
        generation: None,
    };
    Message::Hello(hello).encode()
}

fn after_hello(messages: &[Message]) -> Vec<u8> {
    let mut bytes = hello(SUPPORTED);
    messages
        .iter()
        .for_each(|message| message.encode_into(&mut bytes));
    bytes
}

fn started() -> Message {
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
        fresh: true,
        stdout_from: 0,
        stderr_from: 0,
    })
}

const PROBE: &[&str] = &["probe", "--timeout", "2s"];
const EXEC: &[&str] = &["exec", "--timeout", "2s", "--", "true"];

#[test]
fn an_agent_of_another_age_is_named() {
    let guest = Guest::saying(hello(VersionRange { min: 7, max: 9 }));
    for words in [PROBE, EXEC] {
        let ended = guest.tool(words).complains("7 to 9").complains("speaks 1");
        assert_ne!(ended.code(), 0);
    }
}

#[test]
fn a_guest_that_never_answers_meets_the_deadline() {
    let guest = Guest::saying(Vec::new());
    drop(guest.tool(PROBE).exits(2));
    drop(guest.tool(EXEC).exits(124));
}

#[test]
fn a_guest_that_always_closes_meets_the_deadline() {
    let guest = Guest::new(|_| {});
    drop(guest.tool(PROBE).exits(2));
    assert!([124, 125].contains(&guest.tool(EXEC).code()));
}

#[test]
fn progress_without_end_is_no_answer() {
    let guest = Guest::new(|stream| {
        let bytes = after_hello(&[Message::Progress(Progress {
            step: "any day now".to_owned(),
        })]);
        let progress = Message::Progress(Progress {
            step: "any day now".to_owned(),
        })
        .encode();
        let _ = stream.write_all(&bytes);
        while stream.write_all(&progress).is_ok() {}
    });
    drop(guest.tool(PROBE).exits(2));
}

#[test]
fn nonsense_is_refused() {
    let header =
        |len: u32, kind: FrameKind| [&len.to_le_bytes()[..], &[kind.code(), 0, 0, 0]].concat();
    let lies = Probed {
        generation: None,
        nonce: Nonce::from_bytes([0; 16]),
        listener_serial: 1,
        accepts_since_rebind: 1,
        exec_us: Some(1),
        hooks: false,
    };
    let flights = [
        vec![0xff; 4096],
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        header(u32::MAX, FrameKind::Hello),
        [hello(SUPPORTED), header(u32::MAX, FrameKind::Info)].concat(),
        after_hello(&[Message::Probed(lies)]),
        after_hello(&[Message::Ok]),
    ];
    for bytes in flights {
        let ended = Guest::saying(bytes.clone()).tool(PROBE);
        assert!([1, 2].contains(&ended.code()), "{bytes:x?}: {ended}");
        let ended = Guest::saying(bytes.clone()).tool(EXEC);
        assert_eq!(ended.code(), 125, "{bytes:x?}: {ended}");
    }
}

#[test]
fn words_of_a_guest_cannot_drive_the_terminal() {
    let fail = Fail::new(FailCode::Internal, "\u{1b}]0;owned\u{7}\u{1b}[2J");
    let guest = Guest::saying(after_hello(&[Message::Fail(fail)]));
    for words in [PROBE, EXEC] {
        let ended = guest.tool(words);
        assert_ne!(ended.code(), 0, "{ended}");
        assert!(
            !ended.stderr.contains(&0x1b) && !ended.stdout.contains(&0x1b),
            "{ended}"
        );
    }
}

#[test]
fn output_that_skips_or_repeats_bytes_is_not_passed_off_as_whole() {
    let chunk = |offset, bytes: &[u8]| {
        Message::Stdout(Chunk {
            offset,
            bytes: bytes.to_vec(),
        })
    };
    for second in [chunk(9, b"x"), chunk(0, b"x")] {
        let flight = after_hello(&[started(), chunk(0, b"abc"), second]);
        let ended = Guest::saying(flight).tool(EXEC).exits(125);
        assert_eq!(ended.stdout, b"abc");
    }
}

#[test]
fn an_end_without_exited_is_unknown_and_never_success() {
    let guest = Guest::new(|stream| {
        let _ = stream.write_all(&after_hello(&[started()]));
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes);
    });
    drop(guest.tool(EXEC).exits(125).complains("unknown"));
}
