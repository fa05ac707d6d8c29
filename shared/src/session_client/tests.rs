//! Goal: a session's client retries, resumes and ends as documented. Method: a scripted guest, and
//! a clock that the test moves. In [`cuts`] the guest keeps a real session.

mod cuts;
mod guest;
mod limits;

use guest::{END, attached, exited, hello, started};

use super::sending::{ANSWERS_LEN_MAX, SEND_AHEAD_LEN};
use super::timing::LEAVE_MAX;
use super::*;
use crate::id::{ExecId, Instance};
use crate::message::{
    Ack, Attach, ByteString, Chunk, Exec, ExitAck, ExitStatus, FailCode, Gap, Message, Origin,
    Ping, Role, SessionRef, SeverReason, Signal, Window,
};
use crate::version::{SUPPORTED, VersionRange};

const START: Duration = Duration::from_secs(10);
const ABSENCE: Duration = Duration::from_secs(60);

/// A client and its clock.
struct Script {
    client: SessionClient,
    now: Instant,
    /// The client's events as texts.
    events: Vec<String>,
    /// What the client wrote after a HELLO of the guest.
    asked: Vec<Message>,
}

impl Script {
    fn new(request: Request) -> Self {
        Self::until(request, None)
    }

    fn until(request: Request, end: Option<Duration>) -> Self {
        let now = Instant::now();
        let deadlines = Deadlines {
            start: Some(now + START),
            absence_max: Some(ABSENCE),
            end: end.map(|end| now + end),
        };
        Self {
            client: SessionClient::new(request, "0.1.0", now, deadlines),
            now,
            events: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Opens the connection that must be wanted now. Returns the request that was written to it, or
    /// the HELLO if that was all.
    #[track_caller]
    fn connect(&mut self) -> Message {
        let want = self.client.poll(self.now);
        assert!(matches!(want, Want::Connect { .. }), "{want:?}");
        let flight = decode(&self.client.flight());
        self.client.handle_connected(self.now);
        let Message::Hello(hello) = &flight[0] else {
            panic!("{flight:?}")
        };
        assert_eq!(hello.role, Role::Host);
        assert!(flight.len() <= 2, "{flight:?}");
        flight.into_iter().next_back().expect("a HELLO")
    }

    /// The guest says this, and waits after its HELLO for what the client writes then.
    fn say(&mut self, messages: &[Message]) {
        let (greeting, rest) = match messages {
            [Message::Hello(_), rest @ ..] => (&messages[..1], rest),
            rest => (&[][..], rest),
        };
        if !greeting.is_empty() {
            self.say_at_once(greeting);
            self.asked = self.hear();
        }
        self.say_at_once(rest);
    }

    fn say_at_once(&mut self, messages: &[Message]) {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        self.client.handle_bytes(&bytes, self.now);
        while let Some(event) = self.client.poll_event(self.now) {
            self.events.push(in_words(event));
        }
    }

    /// What the client writes now.
    fn hear(&mut self) -> Vec<Message> {
        let mut bytes = Vec::new();
        loop {
            let piece = self.client.poll_output();
            if piece.is_empty() {
                return decode(&bytes);
            }
            bytes.extend_from_slice(piece);
            let len = piece.len();
            self.client.handle_written(len);
        }
    }

    /// Moves the clock until the client wants something else.
    fn wait(&mut self) -> Duration {
        let until = match self.client.poll(self.now) {
            Want::Connect { until } | Want::Talk { until } | Want::Pause { until } => until,
            Want::Finished => panic!("finished"),
        };
        let waited = until - self.now;
        self.now = until;
        self.client.handle_timeout(self.now);
        waited
    }

    fn cut(&mut self) {
        self.client.handle_closed(self.now);
    }

    #[track_caller]
    fn result(mut self) -> Result<Exited, SessionError> {
        assert_eq!(self.client.poll(self.now), Want::Finished);
        self.client.into_result()
    }

    #[track_caller]
    fn fails(self, text: &str) {
        assert_eq!(self.result().unwrap_err().to_string(), text);
    }
}

fn in_words(event: Event<'_>) -> String {
    match event {
        Event::Started(_) => "started".to_owned(),
        Event::Resumed(_) => "resumed".to_owned(),
        Event::Output { stream, bytes } => {
            format!("{stream} {}", String::from_utf8_lossy(bytes))
        }
        Event::Gap(gap) => format!("gap {} {}-{}", gap.stream, gap.from, gap.to),
        Event::Severed(reason) => format!("severed {reason}"),
        Event::Exited(exited) => format!("exited {}", exited.status.shell_code()),
    }
}

fn decode(bytes: &[u8]) -> Vec<Message> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let mut messages = Vec::new();
    while let Some(frame) = decoder.poll_frame().unwrap() {
        messages.push(Message::parse(frame, Role::Host).unwrap());
    }
    messages
}

fn command() -> Exec {
    let argv = vec![ByteString::new("cat").unwrap()];
    Exec {
        stdin: true,
        keep_ms: Some(10_000),
        ..Exec::new(ExecId::from_bytes([1; 16]), argv)
    }
}

fn exec() -> Request {
    Request::Exec {
        exec: Box::new(command()),
        may_be_known: false,
    }
}

fn attach(mode: AttachMode) -> Request {
    Request::Attach {
        attach: Attach {
            session: SessionRef::Number(1),
            generation: None,
            mode,
            stdout_from: None,
            stderr_from: None,
        },
        stdin: true,
    }
}

fn stdout(offset: u64, bytes: &[u8]) -> Message {
    let bytes = bytes.to_vec();
    Message::Stdout(Chunk { offset, bytes })
}

fn gap(from: u64, to: u64) -> Message {
    let stream = Stream::Stdout;
    Message::Gap(Gap { stream, from, to })
}

fn fail(code: FailCode) -> Message {
    Message::Fail(Fail::new(code, "no"))
}

fn sever(reason: SeverReason) -> Message {
    Message::Sever(crate::message::Sever { reason })
}

/// A client whose command runs.
fn running() -> Script {
    let mut script = Script::new(exec());
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    script
}

#[test]
fn the_end_follows_the_last_byte_that_was_handed_on() {
    let mut script = running();
    script.say(&[stdout(0, b"ab"), stdout(2, b"c"), exited(3, 0)]);
    assert_eq!(
        script.events,
        ["started", "stdout ab", "stdout c", "exited 7"]
    );
    let want = script.client.poll(script.now);
    assert!(matches!(want, Want::Talk { .. }), "{want:?}");
    assert_eq!(script.hear(), []);
    script.client.handle_consumed(Stream::Stdout, 3, script.now);
    let want = script.client.poll(script.now);
    assert!(matches!(want, Want::Talk { .. }), "{want:?}");
    assert_eq!(script.hear(), [Message::ExitAck(ExitAck { session: 1 })]);
    assert_eq!(script.result().unwrap().status, ExitStatus::Code(7));
}

#[test]
fn an_exit_ack_that_cannot_be_written_is_not_waited_for() {
    let mut script = running();
    script.say(&[exited(0, 0)]);
    assert_eq!(script.wait(), LEAVE_MAX);
    script.result().unwrap();
    let mut script = running();
    script.say(&[exited(0, 0)]);
    script.cut();
    script.result().unwrap();
}

/// The command as it is sent after the guest's HELLO.
fn command_at(origin: Option<Origin>) -> Message {
    Message::Exec(Exec {
        origin: origin.map(Box::new),
        ..command()
    })
}

fn origin() -> Option<Origin> {
    let Message::Hello(hello) = hello() else {
        panic!("HELLO")
    };
    hello.origin()
}

#[test]
fn unanswered_requests_go_out_again_and_less_and_less_often() {
    let mut script = Script::new(exec());
    let mut pauses = Vec::new();
    script.connect();
    script.say(&[hello()]);
    assert_eq!(script.asked, [command_at(origin())]);
    script.cut();
    for _ in 0..10 {
        pauses.push(match script.client.poll(script.now) {
            Want::Connect { .. } => 0,
            Want::Pause { .. } => script.wait().as_millis(),
            want => panic!("{want:?}"),
        });
        assert_eq!(script.connect(), command_at(origin()));
        script.cut();
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 64, 64]);
    script.wait();
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    assert_eq!(script.events, ["started"]);
}

#[test]
fn the_first_guest_that_gets_the_request_is_named_by_every_copy() {
    let other = |sessions_begun| {
        let Message::Hello(other) = hello() else {
            panic!("HELLO")
        };
        Message::Hello(Hello {
            instance: Some(Instance::from_bytes([8; 16])),
            sessions_begun,
            ..other
        })
    };
    let mut script = Script::new(exec());
    // No copy was sent, or the guest has refused the only one: the next one is the first.
    script.connect();
    script.cut();
    script.connect();
    script.say(&[other(5), fail(FailCode::Refusing)]);
    script.wait();
    assert!(matches!(script.connect(), Message::Hello(_)));
    script.say(&[hello()]);
    assert_eq!(script.asked, [command_at(origin())]);
    script.cut();
    script.wait();
    assert_eq!(script.connect(), command_at(origin()));
    script.say(&[other(0), fail(FailCode::Unknown)]);
    script.fails("the guest refused (unknown): no; whether the command ran is unknown");
}

#[test]
fn of_a_chosen_id_only_the_instance_is_known() {
    let mut script = Script::new(Request::Exec {
        exec: Box::new(command()),
        may_be_known: true,
    });
    script.connect();
    script.say(&[hello()]);
    let origin = origin().map(|origin| Origin {
        sessions_begun: 0,
        ..origin
    });
    assert_eq!(script.asked, [command_at(origin)]);
    // The caller may know it better.
    let given = Exec {
        origin: Some(Box::new(Origin {
            instance: Instance::from_bytes([9; 16]),
            generation: None,
            sessions_begun: 0,
        })),
        ..command()
    };
    let mut script = Script::new(Request::Exec {
        exec: Box::new(given.clone()),
        may_be_known: true,
    });
    assert_eq!(script.connect(), Message::Exec(given));
}

#[test]
fn a_guest_without_an_instance_gets_no_request() {
    let Message::Hello(hello) = hello() else {
        panic!("HELLO")
    };
    let instance = None;
    let mut script = Script::new(exec());
    script.connect();
    script.say(&[Message::Hello(Hello { instance, ..hello })]);
    script
        .fails("the guest broke the protocol: HELLO without an instance; the command did not run");
}

#[test]
fn silence_is_another_attempt_and_patience_comes_with_an_answer() {
    let mut script = Script::new(exec());
    for seconds in [1, 2] {
        script.connect();
        assert_eq!(script.wait(), Duration::from_secs(seconds));
    }
    script.connect();
    script.say(&[hello()]);
    // The request was sent after HELLO, which is not an answer to it.
    assert_eq!(script.wait(), SILENCE_MAX);
    script.connect();
    script.say(&[hello()]);
    assert_eq!(script.wait(), START - Duration::from_secs(7));
    script.fails("the guest did not answer in time; whether the command ran is unknown");
}

#[test]
fn a_request_that_never_left_is_known_not_to_have_run() {
    let mut script = Script::new(exec());
    while script.client.poll(script.now) != Want::Finished {
        if let Want::Connect { .. } = script.client.poll(script.now) {
            script.cut();
        }
        script.now += Duration::from_secs(1);
    }
    script.fails("the guest did not answer in time; the command did not run");
}

#[test]
fn after_a_cut_the_session_continues_where_it_was() {
    let mut script = running();
    script.say(&[stdout(0, b"ab"), sever(SeverReason::Quiesce)]);
    script.cut();
    let Message::Attach(again) = script.connect() else {
        panic!("an EXEC could start it a second time")
    };
    assert_eq!(
        (again.session, again.stdout_from, again.stderr_from),
        (SessionRef::Exec(command().id), Some(2), Some(0))
    );
    script.say(&[hello(), attached(2), stdout(2, b"c"), exited(3, 0)]);
    let events = [
        "started",
        "stdout ab",
        "severed quiesce",
        "resumed",
        "stdout c",
        "exited 7",
    ];
    assert_eq!(script.events, events);
}

#[test]
fn a_detached_command_is_observed_after_a_cut_as_before_it() {
    let mut exec = command();
    exec.detached = true;
    let exec = Box::new(exec);
    let mut script = Script::new(Request::Exec {
        exec,
        may_be_known: false,
    });
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    script.client.handle_closed(script.now);
    let request = script.connect();
    assert!(
        matches!(&request, Message::Attach(attach) if attach.mode == AttachMode::Observe),
        "{request:?}"
    );
}

#[test]
fn a_guest_that_stays_away_leaves_an_unknown_outcome() {
    let mut script = running();
    script.now += Duration::from_secs(3600);
    script.cut();
    let from = script.now;
    while script.client.poll(script.now) != Want::Finished {
        if let Want::Connect { .. } = script.client.poll(script.now) {
            script.cut();
        } else {
            script.wait();
        }
    }
    assert_eq!(script.now - from, ABSENCE);
    script.fails(
        "the guest could not be reached again; the command was started; how it ended is unknown",
    );
}

#[test]
fn a_guest_that_cuts_every_connection_counts_as_absent() {
    for said in [
        &[hello(), attached(0)][..],
        &[hello(), attached(0), stdout(0, b"")],
    ] {
        let mut script = running();
        let from = script.now;
        let mut attempts = 0;
        while script.client.poll(script.now) != Want::Finished {
            match script.client.poll(script.now) {
                Want::Connect { .. } => {
                    attempts += 1;
                    assert!(attempts < 1000, "{attempts} attempts in a minute");
                    script.connect();
                    script.say(said);
                    script.cut();
                }
                Want::Talk { .. } => script.cut(),
                Want::Pause { .. } => drop(script.wait()),
                Want::Finished => {}
            }
        }
        assert_eq!(script.now - from, ABSENCE);
    }
}

#[test]
fn an_empty_chunk_is_not_output() {
    let mut script = running();
    script.say(&[
        stdout(0, b""),
        stdout(0, b"x"),
        stdout(1, b""),
        exited(1, 0),
    ]);
    assert_eq!(script.events, ["started", "stdout x", "exited 7"]);
}

#[test]
fn temporary_refusals_are_retried_and_final_ones_are_not() {
    for code in [FailCode::Refusing, FailCode::Limit] {
        let mut script = Script::new(exec());
        script.connect();
        script.say(&[hello(), fail(code)]);
        script.connect();
        while script.client.poll(script.now) != Want::Finished {
            script.say(&[hello(), fail(code)]);
            script.wait();
            if let Want::Connect { .. } = script.client.poll(script.now) {
                script.connect();
            }
        }
        script.fails(&format!("the guest refused ({code}): no"));
    }
    for (code, text) in [
        (FailCode::NotFound, "no"),
        (FailCode::NotRunnable, "no"),
        (FailCode::Stale, "the guest refused (stale): no"),
        (FailCode::NoSession, "the guest refused (no_session): no"),
        (FailCode::Internal, "the guest refused (internal): no"),
    ] {
        let mut script = Script::new(exec());
        script.connect();
        script.say(&[hello(), fail(code)]);
        script.fails(text);
    }
}

/// A refusal is about one copy of the request; the guest may have accepted an earlier one.
#[test]
fn a_refusal_says_nothing_about_earlier_attempts() {
    let mut script = Script::new(exec());
    script.connect();
    script.say(&[hello()]);
    script.cut();
    script.connect();
    script.say(&[hello(), fail(FailCode::Stale)]);
    script.fails("the guest refused (stale): no; whether the command ran is unknown");
}

#[test]
fn each_way_to_lose_a_running_session_has_its_error() {
    let unknown = Fate::Started;
    for (code, text) in [
        (
            FailCode::Superseded,
            "another client has taken the session over; this one no longer gets its output"
                .to_owned(),
        ),
        (
            FailCode::NoSession,
            format!("the guest no longer knows the session; {unknown}"),
        ),
        (
            FailCode::Internal,
            format!("the guest refused (internal): no; {unknown}"),
        ),
    ] {
        let mut script = running();
        script.say(&[fail(code)]);
        script.fails(&text);
        let mut script = running();
        script.cut();
        script.connect();
        script.say(&[hello(), fail(code)]);
        script.fails(&text);
    }
    let mut script = running();
    script.say(&[sever(SeverReason::Shutdown)]);
    script.cut();
    script.fails(&format!(
        "the guest cut the connection because it shuts down; {unknown}"
    ));
    let mut script = running();
    script.cut();
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    assert!(matches!(
        script.result(),
        Err(SessionError::Protocol { .. })
    ));
}

#[test]
fn a_quiet_guest_is_asked_for_a_sign_of_life() {
    let mut script = running();
    script.say(&[stdout(0, b"ab")]);
    script.client.handle_consumed(Stream::Stdout, 2, script.now);
    assert_eq!(script.hear(), []);
    assert_eq!(script.wait(), QUIET_MAX);
    let (ping, stream) = (Ping { nonce: 1 }, Stream::Stdout);
    let ack = Ack { stream, offset: 2 };
    assert_eq!(script.hear(), [Message::Ping(ping), Message::Ack(ack)]);
    script.say(&[Message::Pong(ping)]);
    assert_eq!(script.wait(), QUIET_MAX);
    assert_eq!(script.hear(), [Message::Ping(Ping { nonce: 2 })]);
    assert_eq!(script.wait(), QUIET_MAX);
    script.connect();
}

#[test]
fn a_ping_is_answered() {
    let mut script = running();
    script.say(&[Message::Ping(Ping { nonce: 9 })]);
    assert_eq!(script.hear(), [Message::Pong(Ping { nonce: 9 })]);
}

/// A guest with short rings waits for acknowledgements, which do not come by themselves before a
/// quarter of a long ring was passed on.
#[test]
fn after_a_ping_each_piece_of_output_is_acknowledged_at_once() {
    let ack = |offset| {
        let stream = Stream::Stdout;
        Message::Ack(Ack { stream, offset })
    };
    let mut script = running();
    script.say(&[stdout(0, b"ab"), stdout(2, b"c")]);
    script.client.handle_consumed(Stream::Stdout, 2, script.now);
    assert_eq!(script.hear(), []);
    script.say(&[Message::Ping(Ping { nonce: 0 })]);
    assert_eq!(script.hear(), [Message::Pong(Ping { nonce: 0 }), ack(2)]);
    script.client.handle_consumed(Stream::Stdout, 1, script.now);
    assert_eq!(script.hear(), [ack(3)]);
    script.say(&[stdout(3, b"d")]);
    script.client.handle_consumed(Stream::Stdout, 1, script.now);
    assert_eq!(script.hear(), [ack(4)]);
}

#[test]
fn a_full_backlog_stops_reading_and_does_not_count_as_silence_of_the_guest() {
    let mut script = running();
    let chunk = vec![b'x'; 65_528];
    let mut offset = 0;
    while script.client.wants_read() {
        script.say(&[stdout(offset, &chunk)]);
        offset += 65_528;
    }
    assert!(offset > READ_AHEAD_LEN_MAX && offset < READ_AHEAD_LEN_MAX + 2 * 65_528);
    for _ in 0..10 {
        script.wait();
    }
    assert_eq!(script.hear(), []);
    script
        .client
        .handle_consumed(Stream::Stdout, 65_528, script.now);
    assert!(script.client.wants_read());
    assert!(script.hear().is_empty(), "one ACK for each {ACK_LEN} bytes");
    assert_eq!(script.wait(), QUIET_MAX);
}

#[test]
fn acknowledgements_are_few() {
    let mut script = running();
    for index in 0..1000u64 {
        script.say(&[stdout(index * 1000, &[0; 1000])]);
        script
            .client
            .handle_consumed(Stream::Stdout, 1000, script.now);
    }
    let acks = script.hear();
    assert_eq!(acks.len(), 15, "{acks:?}");
    let mut observer = Script::new(attach(AttachMode::Observe));
    observer.connect();
    observer.say(&[
        hello(),
        Message::Attached(guest::attachment(0)),
        stdout(0, &[0; 65_528]),
    ]);
    observer
        .client
        .handle_consumed(Stream::Stdout, 65_528, observer.now);
    assert_eq!(observer.hear(), []);
}

#[test]
fn input_waits_for_credit_and_is_kept_until_the_guest_has_it() {
    let mut script = Script::new(exec());
    assert_eq!(script.client.input_room(), 0);
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    assert_eq!(script.client.input_room(), 65_536);
    script.client.handle_input(b"abc");
    script.client.handle_input_end();
    let sent = script.hear();
    assert!(
        matches!(&sent[0], Message::Stdin(chunk) if chunk.bytes == b"abc"),
        "{sent:?}"
    );
    assert!(
        matches!(&sent[1], Message::StdinEof(eof) if eof.offset == 3),
        "{sent:?}"
    );
    script.cut();
    script.connect();
    let mut again = guest::attachment(0);
    again.stdin.received = 1;
    script.say(&[hello(), Message::Attached(again)]);
    let sent = script.hear();
    assert!(
        matches!(&sent[0], Message::Stdin(chunk) if chunk.offset == 1),
        "{sent:?}"
    );
    assert_eq!(sent.len(), 2);
}

#[test]
fn signals_and_sizes_reach_the_session_across_a_cut() {
    let mut script = Script::new(exec());
    let signal = |number| {
        let session = None;
        Message::Signal(Signal { session, number })
    };
    script.client.handle_signal(1);
    script.connect();
    assert_eq!(script.hear(), []);
    script.say(&[hello(), started(true, 0)]);
    assert_eq!(script.hear(), [signal(1)]);
    script.say(&[Message::Ok]);
    script.client.handle_signal(15);
    let size = TtySize { rows: 1, cols: 2 };
    script.client.handle_resize(size);
    assert_eq!(script.hear(), [signal(15), Message::Resize(size)]);
    script.cut();
    script.client.handle_signal(2);
    script.client.handle_signal(2);
    script.connect();
    script.say(&[hello(), attached(0)]);
    assert_eq!(
        script.hear(),
        [Message::Resize(size), signal(15), signal(2)]
    );
}

#[test]
fn gaps_are_reported_and_holes_are_refused() {
    let mut script = running();
    script.say(&[gap(0, 100), stdout(100, b"x"), exited(101, 0)]);
    assert_eq!(
        script.events,
        ["started", "gap stdout 0-100", "stdout x", "exited 7"]
    );
    for (messages, text) in [
        (
            &[stdout(1, b"x")][..],
            "STDOUT at offset 1 where 0 was expected",
        ),
        (&[gap(1, 2)], "GAP of stdout at 1, not 0"),
        (
            &[exited(1, 0)],
            "EXITED ends stdout at 1 where 0 was expected",
        ),
        (&[hello()], "unexpected HELLO"),
        (&[started(true, 0)], "unexpected STARTED"),
        (&[Message::Ok], "unexpected OK"),
    ] {
        let mut script = running();
        script.say(messages);
        script.fails(&format!(
            "the guest broke the protocol: {text}; {}",
            Fate::Started
        ));
    }
    let mut script = Script::new(exec());
    script.connect();
    script.say(&[started(true, 0)]);
    script.fails(&format!(
        "the guest broke the protocol: unexpected STARTED; {}",
        Fate::NotRun
    ));
}

#[test]
fn attaching_begins_at_the_first_kept_byte_and_continues_by_id() {
    let mut script = Script::new(attach(AttachMode::Own));
    let Message::Attach(first) = script.connect() else {
        panic!("ATTACH")
    };
    assert_eq!(
        (first.session, first.stdout_from),
        (SessionRef::Number(1), None)
    );
    script.say(&[
        hello(),
        Message::Attached(guest::attachment(40)),
        stdout(40, b"x"),
    ]);
    script.cut();
    let Message::Attach(again) = script.connect() else {
        panic!("ATTACH")
    };
    let id = SessionRef::Exec(ExecId::from_bytes([1; 16]));
    assert_eq!(
        (again.session, again.stdout_from, again.stderr_from),
        (id, Some(41), Some(0))
    );
    let mut other = guest::attachment(41);
    other.session = 2;
    script.say(&[hello(), Message::Attached(other)]);
    assert_eq!(script.result(), Err(SessionError::Forgotten));
}

#[test]
fn an_attach_that_fails_says_nothing_of_the_command() {
    let mut script = Script::new(attach(AttachMode::Own));
    script.connect();
    script.say(&[hello(), fail(FailCode::NoSession)]);
    script.fails("the guest refused (no_session): no");
    let mut script = Script::until(attach(AttachMode::Own), Some(Duration::from_millis(500)));
    script.connect();
    script.wait();
    script.fails("the guest did not answer in time");
}

#[test]
fn waiting_takes_the_end_and_nothing_else() {
    let mut script = Script::new(attach(AttachMode::Wait));
    script.connect();
    script.say(&[
        hello(),
        Message::Attached(guest::attachment(40)),
        exited(100, 0),
    ]);
    assert_eq!(script.hear(), []);
    assert_eq!(script.client.input_room(), 0);
    script.result().unwrap();
    let mut script = Script::new(attach(AttachMode::Wait));
    script.connect();
    script.say(&[
        hello(),
        Message::Attached(guest::attachment(0)),
        stdout(0, b"x"),
    ]);
    assert!(matches!(
        script.result(),
        Err(SessionError::Protocol { .. })
    ));
}

/// Answers wait for a guest that does not read, up to a limit; a guest that reads gets all of them.
#[test]
fn answers_to_a_guest_that_does_not_read_have_a_limit() {
    let ping = Message::Ping(Ping { nonce: u64::MAX });
    let answer_len = Message::Pong(Ping { nonce: u64::MAX }).encode().len();
    let answers_max = ANSWERS_LEN_MAX.div_ceil(answer_len);
    for is_attached in [false, true] {
        let mut script = Script::new(exec());
        script.connect();
        script.say(&[hello()]);
        if is_attached {
            script.say(&[started(true, 0)]);
        }
        script.say(&vec![ping.clone(); answers_max]);
        let held_len = script.client.poll_output().len();
        assert_eq!(held_len, answers_max * answer_len, "each is answered");
        script.say(&vec![ping.clone(); 1000]);
        assert_eq!(script.client.poll_output().len(), held_len, "and no more");
        // No acknowledgement is queued either; a later one would repeat it.
        if is_attached {
            script.say(&[
                stdout(0, &[b'x'; 1000]),
                gap(1000, 100_000),
                stdout(100_000, b"x"),
            ]);
            script
                .client
                .handle_consumed(Stream::Stdout, 1001, script.now);
            assert_eq!(script.client.poll_output().len(), held_len);
        }
        assert_eq!(script.hear().len(), answers_max);
        script.say(std::slice::from_ref(&ping));
        // The answer, and the acknowledgement that is due.
        assert_eq!(script.hear().len(), 1 + usize::from(is_attached));
        assert!(
            script.client.out.len() < SEND_AHEAD_LEN,
            "what was read is kept"
        );
        if is_attached {
            script.say(&[stdout(100_001, b"y")]);
            script.client.handle_consumed(Stream::Stdout, 1, script.now);
            let stream = Stream::Stdout;
            let offset = 100_002;
            assert_eq!(script.hear(), [Message::Ack(Ack { stream, offset })]);
        }
    }
}

#[test]
fn the_deadline_says_what_is_known() {
    let end = Duration::from_secs(5);
    let mut script = Script::until(exec(), Some(end));
    script.connect();
    script.say(&[hello(), started(true, 0)]);
    assert_eq!(script.wait(), end);
    let text = "the command did not end in time; the command was started; how it ended is unknown";
    script.fails(text);

    let mut script = Script::until(exec(), Some(end));
    script.connect();
    script.say(&[hello(), started(true, 0), stdout(0, b"x"), exited(1, 0)]);
    assert_eq!(script.wait(), end);
    script.fails("the command ended (7), but its output was not taken in time");
}

#[test]
fn the_error_says_which_versions_a_newer_guest_speaks() {
    let mut script = Script::new(exec());
    script.connect();
    let Message::Hello(mut newer) = hello() else {
        panic!("HELLO")
    };
    newer.protocol = VersionRange { min: 7, max: 9 };
    script.say(&[Message::Hello(newer)]);
    script.fails("no common protocol version: this side speaks 1, the peer 7 to 9");
    assert_eq!(SUPPORTED.max, 1);
}

#[test]
fn answers_arrive_in_any_pieces() {
    let messages = [
        hello(),
        started(true, 0),
        stdout(0, b"ab"),
        gap(2, 5),
        Message::Window(Window {
            received: 0,
            limit: 99_999,
            is_closed: false,
        }),
        exited(5, 0),
    ];
    let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
    for split in 0..=bytes.len() {
        let mut script = Script::new(exec());
        script.connect();
        for piece in [&bytes[..split], &bytes[split..]] {
            script.client.handle_bytes(piece, script.now);
            while let Some(event) = script.client.poll_event(script.now) {
                script.events.push(in_words(event));
            }
        }
        let events = ["started", "stdout ab", "gap stdout 2-5", "exited 7"];
        assert_eq!(script.events, events, "split at {split}");
        assert_eq!(END, 7);
    }
}
