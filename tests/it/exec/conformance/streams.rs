//! Standard input, output and error of a command.

use std::process::Stdio;

use tests::process::{Finished, Running};

use super::case::{Case, Fixture, Input, NONE, case};

/// Every byte, four times.
fn all_bytes() -> Vec<u8> {
    (0..=255).cycle().take(1024).collect()
}

/// More bytes than any buffer on the way holds, without a pattern.
fn much(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn input_as_it_is() -> Vec<Case> {
    let megabyte = much(1024 * 1024);
    vec![
        case("without -i a command reads the end at once")
            .piped(b"not for it\n")
            .run(&["cat"]),
        case("without -i the caller's input is left alone")
            .special("-- true, between two reads of a shell", leaves_input)
            .prints("first second\n"),
        case("a pipe")
            .with("-i")
            .piped(b"a\0\xff\r\nb")
            .run(&["cat"])
            .prints(b"a\0\xff\r\nb"),
        case("a file")
            .with("-i")
            .input(Input::File(all_bytes()))
            .run(&["cat"])
            .prints(all_bytes()),
        case("/dev/null").with("-i").run(&["cat"]),
        case("a closed standard input cannot be read")
            .with("-i")
            .input(Input::Closed)
            .run(&["cat"])
            .exits(125)
            .complains(&["standard input was cut at byte 0: Bad file descriptor"])
            .podman("differs: never ends"),
        case("a closed standard input does no harm without -i")
            .input(Input::Closed)
            .run(&["echo", "hi"])
            .prints("hi\n"),
        case("a terminal, line by line until Ctrl-D")
            .with("-i")
            .input(Input::Terminal(b"typed\n\x04".to_vec()))
            .run(&["cat"])
            .prints("typed\n"),
        case("the end at once")
            .with("-i")
            .piped(b"")
            .run(&["wc", "-c"])
            .prints("0\n"),
        case("1 MiB there and back")
            .with("-i")
            .piped(&megabyte)
            .run(&["cat"])
            .prints(&megabyte),
        case("a line without an end")
            .with("-i")
            .piped(b"no newline")
            .run(&["cat"])
            .prints("no newline"),
    ]
}

pub(super) fn unread_input() -> Vec<Case> {
    vec![
        case("a command that never reads 10 MiB of input")
            .with("-i")
            .piped(&vec![0; 10_000_000])
            .run(&["true"]),
        case("a command that reads a little of it")
            .with("-i")
            .piped(&b"yes\n".repeat(1_000_000))
            .run(&["head", "-n", "1"])
            .prints("yes\n"),
        case("a command that closes its input and runs on")
            .with("-i")
            .piped(&vec![b'x'; 1_000_000])
            .sh("exec <&-; echo still here; exit 6")
            .prints("still here\n")
            .exits(6),
        case("the end of the command is not held up by input that is left open")
            .with("-i")
            .input(Input::OpenPipe(b"x\n".to_vec()))
            .run(&["head", "-n", "1"])
            .prints("x\n"),
        case("output that follows the end of input")
            .with("-i")
            .piped(b"b\na\n")
            .run(&["sort"])
            .prints("a\nb\n"),
        case("question and answer, one line at a time")
            .special("-i -- sh -c 'while read x; do echo got $x; done'", dialogue),
    ]
}

pub(super) fn output_as_it_is() -> Vec<Case> {
    let numbered = |letter: char| -> String {
        (1..=2000)
            .map(|number| format!("{letter}{number}\n"))
            .collect()
    };
    vec![
        case("the streams stay apart")
            .sh("echo out; echo err >&2")
            .prints("out\n")
            .errs("err\n"),
        case("no output").run(&["true"]),
        case("output without a newline")
            .run(&["printf", "abc"])
            .prints("abc"),
        case("NUL bytes")
            .run(&["printf", r"a\000b\000"])
            .prints(b"a\0b\0"),
        case("invalid UTF-8")
            .run(&["printf", r"\377\376\300\200"])
            .prints(b"\xff\xfe\xc0\x80"),
        case("CR LF stays CR LF")
            .run(&["printf", r"a\r\nb\r"])
            .prints("a\r\nb\r"),
        case("escape sequences pass through a pipe")
            .run(&["printf", r"\033[2J\007"])
            .prints("\x1b[2J\x07"),
        case("two streams, interleaved")
            .sh("i=1; while [ $i -le 2000 ]; do echo o$i; echo e$i >&2; i=$((i + 1)); done")
            .prints(numbered('o'))
            .errs(numbered('e')),
        case("1 MiB on each stream at once")
            .sh("head -c 1048576 /dev/zero & head -c 1048576 /dev/zero >&2; wait")
            .prints(vec![0; 1 << 20])
            .errs(vec![0; 1 << 20]),
        case("exit while 1 MiB is still in the pipe")
            .run(&["{odd}", "fill-pipe"])
            .prints(vec![b'x'; 1 << 20])
            .ends("1 MiB, no other writer", |it| {
                it.stdout_end == 1 << 20 && !it.writers_alive
            }),
    ]
}

pub(super) fn output_and_its_readers() -> Vec<Case> {
    vec![
        case("standard output closed early")
            .sh("exec >&-; exit 7")
            .exits(7),
        case("standard output closed, standard error still written")
            .sh("exec >&-; echo err >&2; exit 7")
            .exits(7)
            .errs("err\n"),
        case("both outputs closed early, and the command runs on")
            .fifo("go")
            .special(
                "-- sh -c 'exec >&- 2>&-; read x <FIFO; exit 7'",
                closes_both,
            )
            .exits(7),
        case("1 byte a second")
            .sh("for i in 1 2 3; do printf $i; sleep 1; done")
            .prints("123"),
        case("a byte is there before the next one is written").special(
            "-i -- sh -c 'while read x; do printf $x; done'",
            byte_by_byte,
        ),
        case("the reader of host-tool's output closes it")
            .special("-- yes | head -n 1", reader_leaves)
            .exits(141)
            .complains(&["Broken pipe"])
            .podman("same code, without a message"),
        case("the output of host-tool cannot be written")
            .special("-- echo hi > /dev/full", full_disk)
            .exits(125)
            .complains(&["output"])
            .podman("differs: 255"),
        case("a slow reader makes the command wait, and nothing is lost").special(
            "-- seq 2000000, read after it has filled every buffer",
            slow_reader,
        ),
        case("drop-oldest: a slow reader does not, and the gap is reported")
            .special(
                "--output drop-oldest -- seq 2000000, read after its end",
                gap_is_told,
            )
            .complains(&["bytes"])
            .podman(NONE),
    ]
}

/// Two lines on one pipe: a shell reads the first before an exec and the second after it.
fn leaves_input(fixture: &Fixture<'_>) -> Finished {
    let none: [&str; 0] = [];
    let exec = fixture.command(&none[..], &["true"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "read a; \"$@\"; read b; echo $a $b", "sh"]);
    shell.arg(exec.get_program()).args(exec.get_args());
    tests::process::run_with_input(&mut shell, b"first\nsecond\n")
}

fn dialogue(fixture: &Fixture<'_>) -> Finished {
    let mut running = fixture.start(&["-i"], "while read x; do echo got $x; done");
    for number in 0..100 {
        running.say(format!("{number}\n").as_bytes());
        assert_eq!(running.read_line(), format!("got {number}"));
    }
    running.finish()
}

fn byte_by_byte(fixture: &Fixture<'_>) -> Finished {
    let mut running = fixture.start(&["-i"], "while read x; do printf $x; done");
    for byte in *b"abc" {
        running.say(&[byte, b'\n']);
        assert_eq!(running.read(1), [byte]);
    }
    running.finish()
}

fn closes_both(fixture: &Fixture<'_>) -> Finished {
    let fifo = fixture.folder.join("go");
    let script = format!("exec >&- 2>&-; read x <{}; exit 7", fifo.display());
    let running = fixture.start(&[], &script);
    // The shell reads this pipe after it has closed both outputs.
    let path = fifo.clone();
    let open = move || std::fs::OpenOptions::new().write(true).open(path);
    let held = tests::within_deadline("the shell", open).unwrap();
    // The session has not ended, since its process runs.
    assert_eq!(fixture.agent.greet().info().sessions, 1);
    drop(held);
    running.finish()
}

fn reader_leaves(fixture: &Fixture<'_>) -> Finished {
    let none: [&str; 0] = [];
    let mut running = Running::start(&mut fixture.command(&none[..], &["yes"]));
    assert_eq!(running.read(2), b"y\n");
    running.close_output();
    running.finish()
}

fn full_disk(fixture: &Fixture<'_>) -> Finished {
    let none: [&str; 0] = [];
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = fixture.command(&none[..], &["echo", "hi"]);
    let stderr = fixture.folder.join("stderr");
    command.stdin(Stdio::null()).stdout(full);
    command.stderr(std::fs::File::create(&stderr).unwrap());
    let status = command.status().unwrap();
    let stderr = std::fs::read(stderr).unwrap();
    Finished {
        status,
        stdout: Vec::new(),
        stderr,
    }
}

fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

fn slow_reader(fixture: &Fixture<'_>) -> Finished {
    let mut running = fixture.start(&[], "echo; seq 2000000");
    assert_eq!(running.read_line(), "");
    for _ in 0..20 {
        fixture.agent.exec(["true"]).exits(0);
    }
    let all = numbers(2_000_000);
    let (sessions, _) = fixture.agent.greet().sessions();
    let session = sessions
        .iter()
        .find(|it| it.id == Some(fixture.id))
        .unwrap();
    assert!(
        session.stdout_end < all.len() as u64,
        "it did not wait: {session:?}"
    );
    let ended = running.finish();
    assert!(ended.out() == all, "other bytes than were written");
    Finished {
        stdout: Vec::new(),
        ..ended
    }
}

fn gap_is_told(fixture: &Fixture<'_>) -> Finished {
    let options = ["--output", "drop-oldest"];
    let mut running = fixture.start(&options, "echo; seq 2000000");
    assert_eq!(running.read_line(), "");
    // The command ends although its output is not read.
    assert_eq!(
        fixture.exited().status,
        shared::message::ExitStatus::Code(0)
    );
    let ended = running.finish();
    let (all, got) = (numbers(2_000_000), ended.out());
    assert!(got.len() < all.len(), "nothing was dropped");
    assert!(got.ends_with("\n1999999\n2000000\n"), "the end is there");
    Finished {
        stdout: Vec::new(),
        ..ended
    }
}
