//! Goal: no flood of a guest, of whatever frames, takes more memory than what passes it on, holds a
//! command beyond its deadline or falsifies its result. Method: a guest that repeats a frame for as
//! long as it is let, before every command; and one that repeats some of them very often while the
//! kernel counts the memory of the command.

use std::io::Write;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use shared::frame::FrameKind;
use shared::id::{Generation, Token};
use shared::message::{
    Busy, Chunk, Fail, FailCode, Gap, Message, Ping, Progress, Rebound, Sessions, Sever,
    SeverReason, Stream, Window,
};
use shared::version::SUPPORTED;
use tests::process::{Finished, Running, run};

use super::guest::{Ear, Guest, exited, hello, probed, say, started, stdout};

/// Every command that talks to a guest, in little time, and the codes that it fails with.
const COMMANDS: [(&[&str], &[i32]); 8] = [
    (&["probe", "--timeout", "200ms"], &[1, 2]),
    (&["ps", "--timeout", "200ms"], &[6, 124]),
    (&["kill", "--timeout", "200ms", "1"], &[6, 124]),
    (&["exec", "--timeout", "200ms", "--", "true"], &[124, 125]),
    (
        &["attach", "--no-stdin", "--timeout", "200ms", "1"],
        &[124, 125],
    ),
    (&["wait", "--timeout", "200ms", "1"], &[124, 125]),
    (&["logs", "--timeout", "200ms"], &[6, 124]),
    (&["stress", "--total", "1", "--timeout", "200ms"], &[6, 124]),
];

/// What a command may map, in KiB: several times of what it has without a guest.
const MAPPED_KIB_MAX: u64 = 256 * 1024;

/// What a command may grow by in a flood, in KiB: its limits, and as much again for an allocator.
const GROWTH_KIB_MAX: u64 = 3 * 1024;

/// Frames of a long flood: kept or answered, each with a few dozen bytes, they would be twice that.
const FRAMES: u64 = 200_000;

/// A frame of this kind that a guest might send, or one with nothing in it.
fn frame(kind: FrameKind) -> Vec<u8> {
    let session = |started| match started {
        Message::Started(started) => started,
        other => panic!("{other:?}"),
    };
    let message = match kind {
        FrameKind::Fail => Message::Fail(Fail::new(FailCode::Refusing, "not now")),
        FrameKind::Ping => Message::Ping(Ping { nonce: u64::MAX }),
        FrameKind::Pong => Message::Pong(Ping { nonce: 1 }),
        FrameKind::Progress => Message::Progress(Progress {
            step: "any day now".to_owned(),
        }),
        FrameKind::Busy => Message::Busy(Busy {
            token: Token::from_bytes([1; 16]),
            sessions: vec![1; 1024],
        }),
        FrameKind::Rebound => Message::Rebound(Rebound {
            generation: Generation::from_bytes([1; 16]),
            steps: Vec::new(),
            clock_step_ns: 0,
            entropy_credited: true,
            listener_serial: 1,
            connections_dropped: 0,
            sessions_dropped: 0,
        }),
        FrameKind::Probed => Message::Probed(probed()),
        FrameKind::Quiesced => Message::Quiesced(Token::from_bytes([1; 16])),
        FrameKind::Sever => Message::Sever(Sever {
            reason: SeverReason::Quiesce,
        }),
        FrameKind::Started => started(),
        FrameKind::Attached => Message::Attached(session(started())),
        FrameKind::Stdout => stdout(0, &[b'x'; 1000]),
        FrameKind::Exited => exited(0, 0),
        FrameKind::Sessions => Message::Sessions(Sessions {
            sessions: Vec::new(),
            more: true,
        }),
        kind => return tests::client::frame(kind, "{}"),
    };
    message.encode()
}

/// The same command, which ends by SIGABRT where it wants more memory than it may.
pub(super) fn limited(command: &Command) -> Command {
    through_shell(command, &format!("ulimit -v {MAPPED_KIB_MAX}"))
}

/// The same command, from a shell that has run `first`.
pub(super) fn through_shell(command: &Command, first: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    let script = format!("{first}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program());
    shell.args(command.get_args());
    let variables = command.get_envs();
    shell.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// What a guest makes a command say is short, and steers no terminal.
#[track_caller]
pub(super) fn is_harmless(ended: &Finished) {
    let is_plain = |&byte: &u8| byte == b'\n' || !byte.is_ascii_control();
    assert!(ended.stderr.iter().all(is_plain), "{ended}");
    assert!(
        !ended.err().chars().any(|c| c.is_control() && c != '\n'),
        "{ended}"
    );
    assert!(
        ended.stderr.len() < 64 * 1024,
        "{} bytes",
        ended.stderr.len()
    );
}

#[test]
fn a_frame_without_end_ends_no_command_well() {
    thread::scope(|scope| {
        for (words, codes) in COMMANDS {
            scope.spawn(move || {
                for &kind in FrameKind::ALL {
                    let mut block = Vec::new();
                    while block.len() < 64 * 1024 {
                        block.extend(frame(kind));
                    }
                    let guest = Guest::new(move |stream| {
                        let _ = stream.write_all(&hello(SUPPORTED));
                        while stream.write_all(&block).is_ok() {}
                    });
                    let ended = run(&mut limited(&guest.command(words)));
                    // The first of them was the answer, and what comes behind it is nobody's.
                    let is_answer = matches!(
                        (words[0], kind),
                        ("ps", FrameKind::Sessions) | ("kill", FrameKind::Ok)
                    );
                    let is_right = codes.contains(&ended.code());
                    let is_right = is_right || (is_answer && ended.code() == 0);
                    assert!(is_right, "{words:?}, {kind}: {ended}");
                    is_harmless(&ended);
                }
            });
        }
    });
}

/// A guest with one command, which goes on when the test says so, and says when it has.
struct Flood {
    _guest: Guest,
    running: Running,
    go_on: Sender<()>,
    done: Receiver<()>,
}

impl Flood {
    /// Frame `n` of the flood and the ends of both outputs behind it are the test's.
    fn start(
        frames: impl Fn(u64, &mut Vec<u8>) + Send + 'static,
        ends: (u64, u64),
        words: &[&str],
    ) -> Self {
        let (go_on, gone_on) = channel::<()>();
        let (has_done, done) = channel::<()>();
        let guest = Guest::asked(move |stream, _| {
            say(stream, &[started(), stdout(0, b"x")]);
            let _ = gone_on.recv();
            let mut block = Vec::new();
            for number in 0..FRAMES {
                frames(number, &mut block);
                if block.len() >= 64 * 1024 || number + 1 == FRAMES {
                    let _ = stream.write_all(&block);
                    block.clear();
                }
            }
            let _ = has_done.send(());
            let _ = gone_on.recv();
            say(stream, &[exited(ends.0, ends.1)]);
        });
        let mut command = guest.command(&["exec", "-q"]);
        command.args(words).args(["--", "true"]);
        let mut running = Running::start(&mut command);
        assert_eq!(running.read(1), b"x");
        Self {
            _guest: guest,
            running,
            go_on,
            done,
        }
    }

    /// Lets the flood come, of which `output_len` bytes are output, and fails when the command
    /// grows with it or does not end as the guest says.
    #[track_caller]
    fn check(mut self, output_len: u64) {
        let before = self.running.status("VmHWM");
        self.go_on.send(()).unwrap();
        let mut left = usize::try_from(output_len).unwrap();
        let mut piece = [0; 4096];
        while left > 0 {
            let len = self.running.read_some(&mut piece);
            assert!(len > 0, "{left} bytes are missing");
            left -= len;
        }
        self.done.recv_timeout(tests::DEADLINE).unwrap();
        let growth = self.running.status("VmHWM") - before;
        assert!(growth < GROWTH_KIB_MAX, "it grew by {growth} KiB");
        self.go_on.send(()).unwrap();
        assert!(self.running.finish().exits(7).stdout.is_empty());
    }
}

#[test]
fn hundreds_of_thousands_of_tiny_frames_of_output_take_no_memory() {
    let frames = |number, block: &mut Vec<u8>| {
        Chunk::encode(FrameKind::Stdout, 1 + number, b"x", block);
        Chunk::encode(FrameKind::Stdout, 2 + number, b"", block);
        Chunk::encode(FrameKind::Stderr, 0, b"", block);
    };
    Flood::start(frames, (1 + FRAMES, 0), &[]).check(FRAMES);
}

/// The guest pays no heed to credit, and the reader takes little at a time.
#[test]
fn output_that_is_read_slowly_is_left_with_the_guest() {
    const LEN: usize = 400;
    let frames = |number, block: &mut Vec<u8>| {
        let offset = 1 + number * LEN as u64;
        Chunk::encode(FrameKind::Stdout, offset, &[b'x'; LEN], block);
    };
    let len = FRAMES * LEN as u64;
    Flood::start(frames, (1 + len, 0), &[]).check(len);
}

/// The guest reads none of the answers.
#[test]
fn questions_without_end_get_no_answers_without_end() {
    let frames = |_, block: &mut Vec<u8>| {
        Message::Ping(Ping { nonce: u64::MAX }).encode_into(block);
    };
    Flood::start(frames, (1, 0), &[]).check(0);
}

/// Each piece is worth an acknowledgement, of which the guest reads none.
#[test]
fn gaps_without_end_take_no_memory() {
    const STEP: u64 = 100_000;
    let frames = |number, block: &mut Vec<u8>| {
        let gap = Gap {
            stream: Stream::Stdout,
            from: 1 + number * STEP,
            to: (1 + number) * STEP,
        };
        Message::Gap(gap).encode_into(block);
        Chunk::encode(FrameKind::Stdout, gap.to, b"x", block);
    };
    Flood::start(frames, (1 + FRAMES * STEP, 0), &[]).check(FRAMES);
}

/// Credit, farewells and answers to what nobody asked.
#[test]
fn notices_without_end_take_no_memory() {
    let frames = |number, block: &mut Vec<u8>| match number % 3 {
        0 => Message::Pong(Ping { nonce: number }).encode_into(block),
        1 => Message::Sever(Sever {
            reason: SeverReason::Rebind,
        })
        .encode_into(block),
        _ => Message::Window(Window {
            received: 0,
            limit: number,
            is_closed: number > FRAMES / 2,
        })
        .encode_into(block),
    };
    Flood::start(frames, (1, 0), &["-i"]).check(0);
}

/// Nobody reads the warnings either: what is said of a flood of gaps has an end.
#[test]
fn gaps_are_announced_but_not_without_end() {
    let guest = Guest::asked(|stream, _| {
        let mut messages = vec![started()];
        for number in 0..100_000 {
            messages.push(Message::Gap(Gap {
                stream: Stream::Stderr,
                from: number,
                to: number + 1,
            }));
        }
        messages.push(exited(0, 100_000));
        say(stream, &messages);
    });
    let ended = guest.tool(&["exec", "--", "true"]).exits(7);
    let ended = ended.complains("1 bytes of stderr are lost, from offset 0 to 1");
    let ended = ended.complains("bytes of output are lost in 99936 more places");
    assert_eq!(ended.err().lines().count(), 65, "{ended}");
}

/// Whoever wanted the output is gone: the command ends, and the guest is told.
#[test]
fn a_flood_that_nobody_reads_any_more_ends_the_command() {
    let (told, heard) = channel();
    let guest = Guest::asked(move |stream, _| {
        let mut offset = 0;
        let bytes = [b'x'; 4096];
        say(stream, &[started()]);
        let mut write = |stream: &mut std::os::unix::net::UnixStream| {
            let mut block = Vec::new();
            Chunk::encode(FrameKind::Stdout, offset, &bytes, &mut block);
            offset += bytes.len() as u64;
            stream.write_all(&block).is_ok()
        };
        while write(stream) {}
        let mut ear = Ear::default();
        while let Some(message) = ear.hear(stream) {
            if let Message::Signal(signal) = message {
                let _ = told.send(signal.number);
            }
        }
    });
    let mut running = Running::start(&mut guest.command(&["exec", "--", "true"]));
    assert_eq!(running.read(3), b"xxx");
    running.close_output();
    running.finish().exits(141);
    assert_eq!(heard.recv_timeout(tests::DEADLINE).unwrap(), 15);
}
