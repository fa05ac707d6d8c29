//! Goal: no flood of frames from a guest takes more memory than its buffers, holds a command beyond
//! its deadline, or falsifies its result. Method: a guest that repeats one frame without end, for
//! every command; and one that repeats some frames very often while the kernel counts the command's
//! memory.

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

/// Every command that talks to a guest, with a short time limit and the exit codes for a failure.
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

/// Most virtual memory of a command, in KiB: several times of what it needs without a guest.
const MAPPED_KIB_MAX: u64 = 256 * 1024;

/// Most growth of a command in a flood, in KiB: its buffers, and as much again for the allocator.
const GROWTH_KIB_MAX: u64 = 3 * 1024;

/// Frames in a long flood. With a few dozen bytes kept for each, growth would be twice the limit.
const FRAMES: u64 = 200_000;

/// A frame of this kind as a guest might send it, or else with an empty object.
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

/// The same command with limited memory; it ends by SIGABRT when it wants more.
pub(super) fn limited(command: &Command) -> Command {
    through_shell(command, &format!("ulimit -v {MAPPED_KIB_MAX}"))
}

/// The same command, from a shell that runs `first` before.
pub(super) fn through_shell(command: &Command, first: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    let script = format!("{first}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program());
    shell.args(command.get_args());
    let variables = command.get_envs();
    shell.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// What a guest's texts make a command print is short and has no control characters.
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
        for (args, codes) in COMMANDS {
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
                    let ended = run(&mut limited(&guest.command(args)));
                    // The first frame was the answer; what follows it belongs to no request.
                    let is_answer = matches!(
                        (args[0], kind),
                        ("ps", FrameKind::Sessions) | ("kill", FrameKind::Ok)
                    );
                    let is_right = codes.contains(&ended.code());
                    let is_right = is_right || (is_answer && ended.code() == 0);
                    assert!(is_right, "{args:?}, {kind}: {ended}");
                    is_harmless(&ended);
                }
            });
        }
    });
}

/// A guest with one running command. It continues when the test says so, and reports when it has.
struct Flood {
    _guest: Guest,
    running: Running,
    release: Sender<()>,
    done: Receiver<()>,
}

impl Flood {
    /// `frames` appends frame N of the flood; `ends` are the lengths of both outputs after it.
    fn start(
        frames: impl Fn(u64, &mut Vec<u8>) + Send + 'static,
        ends: (u64, u64),
        args: &[&str],
    ) -> Self {
        let (release, released) = channel::<()>();
        let (has_done, done) = channel::<()>();
        let guest = Guest::asked(move |stream, _| {
            say(stream, &[started(), stdout(0, b"x")]);
            let _ = released.recv();
            let mut block = Vec::new();
            for number in 0..FRAMES {
                frames(number, &mut block);
                if block.len() >= 64 * 1024 || number + 1 == FRAMES {
                    let _ = stream.write_all(&block);
                    block.clear();
                }
            }
            let _ = has_done.send(());
            let _ = released.recv();
            say(stream, &[exited(ends.0, ends.1)]);
        });
        let mut command = guest.command(&["exec", "-q"]);
        command.args(args).args(["--", "true"]);
        let mut running = Running::start(&mut command);
        assert_eq!(running.read(1), b"x");
        Self {
            _guest: guest,
            running,
            release,
            done,
        }
    }

    /// Lets the flood come, `output_len` bytes of which are output. Fails when the command grows
    /// with it, or does not end as the guest says.
    #[track_caller]
    fn check(mut self, output_len: u64) {
        let before = self.running.status("VmHWM");
        self.release.send(()).unwrap();
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
        self.release.send(()).unwrap();
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

/// The guest ignores credit, and the reader of the command's output is slow.
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

/// Each piece deserves an acknowledgement; the guest reads none.
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

/// Credit, SEVER, and answers that were not asked for.
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

/// The warnings about gaps are limited, too.
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

/// The reader of the command's output has closed it: the command ends, and the guest is told.
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
