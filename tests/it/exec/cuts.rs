//! Goal: wherever a connection breaks, a command runs at most once, and what `host-tool exec`
//! reports in the end is right, or that it does not know. Method: a proxy between the built
//! programs that closes a connection after exactly N bytes, for every N.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use shared::message::Message;
use tests::agent::Agent;
use tests::process::{Finished, Running, run_with_input};
use tests::program;
use tests::proxy::{Closed, Cut, Direction, Length, Proxy};

/// An agent behind a proxy.
struct Fixture {
    // Dropped before the agent, in whose folder its socket lies.
    proxy: Proxy,
    agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let proxy = Proxy::start(agent.folder().join("proxy.sock"), &agent.socket());
        Self { proxy, agent }
    }

    /// `host-tool exec OPTIONS -- sh -c SCRIPT` through the proxy.
    fn exec(&self, options: &[&str], script: &str) -> Command {
        let mut tool = Command::new(program("host-tool"));
        tool.args(["exec", "--timeout", "60s", "--unix"]);
        tool.arg(self.proxy.socket()).args(options);
        tool.args(["--", "sh", "-c", script]);
        tool
    }

    fn file(&self) -> PathBuf {
        self.agent.folder().join("ran")
    }

    /// A whole conversation: input, both outputs, an exit code, and a file that shows that the
    /// command ran.
    fn converse(&self) -> Finished {
        drop(std::fs::remove_file(self.file()));
        let script = format!(
            "echo ran >>{}; cat; echo err >&2; exit 7",
            self.file().display()
        );
        // `--keep` is longer than the client takes to notice a silent guest.
        let options = ["-i", "--keep", "60s"];
        run_with_input(&mut self.exec(&options, &script), b"hello\n")
    }

    /// What kind of answer this is, or why it is wrong.
    fn answer(&self, ended: &Finished) -> Result<Answer, String> {
        let ran = std::fs::read_to_string(self.file()).unwrap_or_default();
        let err = ended.err();
        let is_known = ended.code() == 7 && ended.stdout == b"hello\n" && err == "err\n";
        let is_unknown = ended.code() == 125 && b"hello\n".starts_with(&ended.stdout);
        match &ran[..] {
            "ran\n" if is_known => Ok(Answer::Right),
            "" | "ran\n" if is_unknown && err.contains("unknown") => Ok(Answer::Unknown),
            "" if is_unknown && err.contains("did not run") => Ok(Answer::Unknown),
            _ => Err(format!("ran: {ran:?}; {ended}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Right,
    Unknown,
}

/// Runs the conversation once for each cut, on four agents at once.
#[track_caller]
fn check(cuts: &[Cut]) {
    let next = AtomicU64::new(0);
    let (wrong, unknown) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let done = AtomicU64::new(0);
    let work = || {
        let fixture = Fixture::new();
        loop {
            let index = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
            let Some(&cut) = cuts.get(index) else {
                done.fetch_add(fixture.proxy.cut_count(), Ordering::SeqCst);
                break;
            };
            fixture.proxy.cut_next(cut);
            let ended = fixture.converse();
            fixture.proxy.reset();
            match fixture.answer(&ended) {
                Ok(Answer::Right) => {}
                Ok(Answer::Unknown) => unknown.lock().unwrap().push(format!("{cut:?}: {ended}")),
                Err(why) => wrong.lock().unwrap().push(format!("{cut:?}: {why}")),
            }
        }
        fixture.agent.reaps_all();
    };
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(work)));
    });
    tests::assert_none("wrong", &wrong.into_inner().unwrap());
    // After a single cut nothing stays unknown: the client may ask again, and gets the answer.
    tests::assert_none("unknown", &unknown.into_inner().unwrap());
    let done = done.into_inner();
    let most = cuts.len() as u64 * 9 / 10;
    assert!(
        done >= most,
        "only {done} of {} cuts came to pass",
        cuts.len()
    );
}

/// A cut at each byte of a conversation, in this direction.
fn at_each_byte(direction: Direction, closed: Closed) -> Vec<Cut> {
    let fixture = Fixture::new();
    let ended = fixture.converse();
    assert_eq!(fixture.answer(&ended), Ok(Answer::Right), "without a cut");
    let whole = fixture.proxy.passed(direction);
    assert!(whole > 400, "a conversation of {whole} bytes");
    let cut = |count| Cut {
        direction,
        length: Length::Bytes(count),
        closed,
    };
    (0..=whole).map(cut).collect()
}

#[test]
fn a_cut_at_each_byte_to_the_guest() {
    check(&at_each_byte(Direction::ToGuest, Closed::Both));
}

#[test]
fn a_cut_at_each_byte_to_the_host() {
    check(&at_each_byte(Direction::ToHost, Closed::Both));
}

/// The agent does not notice, and must still give the session to the new connection.
#[test]
fn a_cut_at_each_byte_that_only_the_host_sees() {
    let mut cuts = at_each_byte(Direction::ToHost, Closed::ForHost);
    cuts.extend(at_each_byte(Direction::ToGuest, Closed::ForHost));
    check(&cuts);
}

/// The client notices only when the silent guest does not answer a PING, which takes time. So a few
/// places have to do.
#[test]
fn a_cut_that_only_the_guest_sees() {
    let cut_after = |direction, count| Cut {
        direction,
        length: Length::Bytes(count),
        closed: Closed::ForGuest,
    };
    check(&[
        // Within EXEC, after it, and while STARTED is on its way.
        cut_after(Direction::ToGuest, 150),
        cut_after(Direction::ToGuest, 420),
        cut_after(Direction::ToHost, 200),
        cut_after(Direction::ToHost, 400),
    ]);
}

fn numbered(count: usize) -> String {
    (1..=count)
        .map(|number| format!("line {number}\n"))
        .collect()
}

#[track_caller]
fn check_lines(ended: &Finished, count: usize) {
    let (expected, got) = (numbered(count), ended.out());
    let differs = expected.lines().zip(got.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None, "the first lines that differ");
    assert_eq!(got.len(), expected.len());
}

/// Whatever is on its way when the connection breaks, each line comes once and in order.
#[test]
fn lines_printed_across_a_hundred_cuts() {
    for more in [0, 5, 20] {
        let fixture = Fixture::new();
        fixture.proxy.cut_each(Cut {
            direction: Direction::ToHost,
            length: Length::Lines { count: 100, more },
            closed: Closed::Both,
        });
        let script = "i=0; while [ $i -lt 10000 ]; do i=$((i + 1)); echo line $i; done; exit 7";
        let ended = tests::process::run(&mut fixture.exec(&[], script)).exits(7);
        check_lines(&ended, 10_000);
        let cuts = fixture.proxy.cut_count();
        assert!(cuts >= 3, "only {cuts} cuts");
    }
}

/// Each line answers a question, so no frame holds two lines and the cuts are as many as possible.
/// The cuts also hit the questions.
#[test]
fn questions_and_answers_across_a_cut_every_hundred_lines() {
    let fixture = Fixture::new();
    fixture.proxy.cut_each(Cut {
        direction: Direction::ToHost,
        length: Length::Lines {
            count: 100,
            more: 3,
        },
        closed: Closed::Both,
    });
    let script = "i=0; while read x; do i=$((i + 1)); echo line $i of $x; done; exit 7";
    let mut running = Running::start(&mut fixture.exec(&["-i"], script));
    for number in 1..=2_000 {
        running.say(format!("{number}\n").as_bytes());
        assert_eq!(running.read_line(), format!("line {number} of {number}"));
    }
    running.finish().exits(7);
    let cuts = fixture.proxy.cut_count();
    assert!(cuts >= 19, "only {cuts} cuts");
}

/// An output larger than every buffer, with cuts in the middle.
#[test]
fn a_long_output_across_cuts() {
    let fixture = Fixture::new();
    fixture.proxy.cut_each(Cut {
        direction: Direction::ToHost,
        length: Length::Bytes(1_000_003),
        closed: Closed::Both,
    });
    let ended = tests::process::run(&mut fixture.exec(&[], "seq -f 'line %.0f' 1000000")).exits(0);
    check_lines(&ended, 1_000_000);
    assert!(
        fixture.proxy.cut_count() >= 10,
        "{} cuts",
        fixture.proxy.cut_count()
    );
}

/// The same for an input, which the client has to keep until the guest has it.
#[test]
fn a_long_input_across_cuts() {
    let fixture = Fixture::new();
    fixture.proxy.cut_each(Cut {
        direction: Direction::ToGuest,
        length: Length::Bytes(1_000_003),
        closed: Closed::Both,
    });
    let input = numbered(1_000_000);
    let mut sum = Command::new("cksum");
    let expected = run_with_input(&mut sum, input.as_bytes()).exits(0).out();
    let ended = run_with_input(&mut fixture.exec(&["-i"], "exec cksum"), input.as_bytes());
    assert_eq!(ended.exits(0).out(), expected);
    assert!(
        fixture.proxy.cut_count() >= 10,
        "{} cuts",
        fixture.proxy.cut_count()
    );
}

/// The client waits for a guest that is gone until its time limit, does not report success, and
/// knows whether its request has left.
#[test]
fn a_guest_that_stays_away_leaves_the_outcome_unknown() {
    let fixture = Fixture::new();
    let hello = Message::Hello(fixture.agent.connect().greet()).encode();
    for (len, words) in [
        (0, "the command did not run"),
        (hello.len() as u64, "whether the command ran is unknown"),
    ] {
        fixture.proxy.cut_each(Cut {
            direction: Direction::ToHost,
            length: Length::Bytes(len),
            closed: Closed::Both,
        });
        let mut tool = Command::new(program("host-tool"));
        tool.args(["exec", "--timeout", "2s", "--unix"]);
        tool.arg(fixture.proxy.socket()).args(["--", "true"]);
        let ended = tests::process::run(&mut tool);
        assert!([124, 125].contains(&ended.code()), "{ended}");
        ended.complains(words);
    }
}
