//! Goal: the exchange retries and ends as documented. Method: a scripted guest, and a clock that
//! the test moves.

use super::*;
use crate::frame::{Frame, FrameKind};
use crate::id::{Generation, Instance, Token};
use crate::message::{
    Busy, Cause, Depth, Identity, InheritedSessions, Policy, PowerAction, Probed, Progress,
    Quiesce, Rebind, Rebound, Reopen, SessionRef, Sessions, SessionsRequest, Shutdown, Signal,
};
use crate::version::{SUPPORTED, VersionRange};

const DEADLINE: Duration = Duration::from_secs(30);

/// An exchange and its clock.
struct Script {
    exchange: Exchange,
    start: Instant,
    now: Instant,
}

impl Script {
    fn new(request: Request) -> Self {
        let now = Instant::now();
        let exchange = Exchange::new(request, "0.1.0", now, now + DEADLINE);
        Self {
            exchange,
            start: now,
            now,
        }
    }

    /// Opens the connection that must be wanted now. Returns what the driver writes to it.
    #[track_caller]
    fn connect(&mut self, nonce: u8) -> Vec<Message> {
        let want = self.exchange.poll(self.now);
        assert!(matches!(want, Want::Connect { .. }), "{want:?}");
        let flight = self.exchange.flight(42, Nonce::from_bytes([nonce; 16]));
        let want = self.exchange.poll(self.now);
        assert!(matches!(want, Want::Read { .. }), "{want:?}");
        decode(&flight)
    }

    fn say(&mut self, messages: &[Message]) {
        let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
        self.exchange.handle_bytes(&bytes, self.now);
    }

    /// Moves the clock until the exchange wants something else.
    fn wait(&mut self) -> Duration {
        let until = match self.exchange.poll(self.now) {
            Want::Connect { until } | Want::Read { until } | Want::Pause { until } => until,
            Want::Finished => panic!("finished"),
        };
        let waited = until - self.now;
        self.now = until;
        self.exchange.handle_timeout(self.now);
        waited
    }

    #[track_caller]
    fn result(mut self) -> Result<Message, ExchangeError> {
        assert_eq!(self.exchange.poll(self.now), Want::Finished);
        self.exchange.into_result()
    }
}

fn decode(bytes: &[u8]) -> Vec<Message> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    let mut messages = Vec::new();
    while let Some(Frame { kind, payload }) = decoder.poll_frame().unwrap() {
        messages.push(Message::parse(Frame { kind, payload }, Role::Host).unwrap());
    }
    messages
}

fn generation(byte: u8) -> Generation {
    Generation::from_bytes([byte; 16])
}

fn rebind() -> Request {
    Request::Rebind(Rebind {
        generation: generation(1),
        cause: Cause::Boot,
        parent: None,
        wall_clock_ns: 0,
        entropy: None,
        identity: Identity::default(),
        sessions: InheritedSessions::Keep,
        attempt: 0,
    })
}

fn probe() -> Request {
    Request::Probe {
        generation: Some(generation(1)),
        depth: Depth::Exec,
    }
}

fn hello() -> Message {
    hello_with(SUPPORTED)
}

fn hello_with(protocol: VersionRange) -> Message {
    Message::Hello(Hello {
        protocol,
        role: Role::Guest,
        version: "0.1.0".to_owned(),
        boot_id: None,
        generation: None,
        instance: Some(Instance::from_bytes([7; 16])),
        sessions_begun: 3,
    })
}

fn rebound(byte: u8) -> Message {
    Message::Rebound(Rebound {
        generation: generation(byte),
        steps: Vec::new(),
        clock_step_ns: 0,
        entropy_credited: false,
        listener_serial: 1,
        connections_dropped: 0,
        sessions_dropped: 0,
    })
}

fn probed(nonce: u8) -> Probed {
    Probed {
        generation: Some(generation(1)),
        nonce: Nonce::from_bytes([nonce; 16]),
        listener_serial: 1,
        accepts_since_rebind: 1,
        exec_us: Some(1),
        hooks: false,
    }
}

fn fail(code: FailCode) -> Message {
    Message::Fail(Fail::new(code, "no"))
}

#[test]
fn the_first_flight_is_hello_and_the_request() {
    let mut script = Script::new(rebind());
    let flight = script.connect(7);
    assert!(matches!(&flight[0], Message::Hello(hello) if hello.role == Role::Host));
    let Message::Rebind(sent) = &flight[1] else {
        panic!("{flight:?}")
    };
    assert_eq!((sent.wall_clock_ns, sent.attempt, flight.len()), (42, 1, 2));
}

#[test]
fn the_completion_frame_ends_it() {
    let mut script = Script::new(rebind());
    script.connect(7);
    script.say(&[
        hello(),
        Message::Progress(Progress {
            step: "clock".to_owned(),
        }),
        rebound(1),
    ]);
    assert_eq!(script.exchange.attempts()[0].end, AttemptEnd::Answered);
    assert_eq!(script.result(), Ok(rebound(1)));
}

#[test]
fn answers_arrive_in_any_pieces() {
    let bytes: Vec<u8> = [hello(), rebound(1)]
        .iter()
        .flat_map(Message::encode)
        .collect();
    for split in 0..=bytes.len() {
        let mut script = Script::new(rebind());
        script.connect(7);
        script.exchange.handle_bytes(&bytes[..split], script.now);
        script.exchange.handle_bytes(&bytes[split..], script.now);
        assert_eq!(script.result(), Ok(rebound(1)), "split at {split}");
    }
}

#[test]
fn a_closed_connection_is_retried_at_once_and_then_less_and_less_often() {
    let mut script = Script::new(rebind());
    let mut pauses = Vec::new();
    for _ in 0..10 {
        script.connect(7);
        script.exchange.handle_closed(script.now);
        pauses.push(match script.exchange.poll(script.now) {
            Want::Connect { .. } => 0,
            Want::Pause { .. } => script.wait().as_millis(),
            want => panic!("{want:?}"),
        });
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 64, 64]);
}

#[test]
fn silent_attempts_grow_up_to_their_limit() {
    let mut script = Script::new(rebind());
    let mut waits = Vec::new();
    for _ in 0..6 {
        script.connect(7);
        waits.push(script.wait().as_millis());
    }
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(script.exchange.attempts().len(), 6);
}

#[test]
fn a_transport_that_loses_connections_is_asked_again_sooner() {
    let mut script = Script::new(rebind());
    script.exchange = script
        .exchange
        .with_first_silence(Duration::from_millis(25));
    let mut waits = Vec::new();
    for _ in 0..7 {
        script.connect(7);
        waits.push(script.wait().as_millis());
    }
    assert_eq!(waits, [25, 50, 100, 200, 400, 800, 1000]);
}

/// BUSY extends the attempt, so one connection is enough however long sessions drain.
#[test]
fn a_guest_that_says_busy_now_and_then_is_not_asked_again() {
    let token = Token::from_bytes([1; 16]);
    let mut script = Script::new(Request::Quiesce(Quiesce {
        token,
        policy: Policy::Drain,
        limit_ms: 20_000,
    }));
    script.connect(7);
    script.say(&[hello()]);
    for _ in 0..10 {
        script.say(&[Message::Busy(Busy {
            token,
            sessions: vec![1],
        })]);
        // Twice as long as the guest's interval.
        script.now += Duration::from_secs(2);
        let want = script.exchange.poll(script.now);
        assert!(matches!(want, Want::Read { .. }), "{want:?}");
    }
    script.say(&[Message::Quiesced(token)]);
    assert_eq!(script.exchange.attempt_count(), 1);
    assert_eq!(script.result(), Ok(Message::Quiesced(token)));
}

#[test]
fn progress_extends_the_attempt_but_never_the_deadline() {
    let mut script = Script::new(rebind());
    script.connect(7);
    script.say(&[hello()]);
    while script.now < script.start + DEADLINE {
        let until = match script.exchange.poll(script.now) {
            Want::Read { until } => until,
            want => panic!("{want:?}"),
        };
        // The guest shows a sign of life just before the attempt would end.
        script.now = (until - Duration::from_millis(1)).max(script.now);
        script.say(&[Message::Progress(Progress {
            step: "clock".to_owned(),
        })]);
        if until == script.start + DEADLINE {
            script.now = until;
        }
    }
    assert_eq!(script.exchange.attempt_count(), 1);
    let expected = ExchangeError::Deadline {
        request: FrameKind::Rebind,
        attempts: 1,
        last: Some(AttemptEnd::Silent),
    };
    assert_eq!(script.result(), Err(expected));
}

#[test]
fn the_deadline_is_a_failure_and_nothing_is_wanted_beyond_it() {
    let mut script = Script::new(probe());
    loop {
        match script.exchange.poll(script.now) {
            Want::Finished => break,
            Want::Connect { until } | Want::Read { until } | Want::Pause { until } => {
                assert!(until <= script.start + DEADLINE);
                script.exchange.flight(0, Nonce::from_bytes([0; 16]));
                script.now = until;
                script.exchange.handle_timeout(script.now);
            }
        }
    }
    let error = script.result().unwrap_err().to_string();
    let expected = "PROBE was not answered in time (33 attempts, the last: no answer)";
    assert_eq!(error, expected);
}

#[test]
fn an_early_timeout_changes_nothing() {
    let mut script = Script::new(rebind());
    script.connect(7);
    let before = script.exchange.poll(script.now);
    script.exchange.handle_timeout(script.now);
    assert_eq!(script.exchange.poll(script.now), before);
}

#[test]
fn a_probe_must_be_answered_with_its_own_nonce_and_generation() {
    let cases = [
        (probed(1), true),
        (probed(2), false),
        (
            Probed {
                generation: Some(generation(2)),
                ..probed(1)
            },
            false,
        ),
        (
            Probed {
                generation: None,
                ..probed(1)
            },
            false,
        ),
        (
            Probed {
                exec_us: None,
                hooks: false,
                ..probed(1)
            },
            false,
        ),
        (
            Probed {
                accepts_since_rebind: 0,
                ..probed(1)
            },
            false,
        ),
    ];
    for (answer, is_good) in cases {
        let mut script = Script::new(probe());
        script.connect(1);
        script.say(&[hello(), Message::Probed(answer)]);
        assert_eq!(script.result().is_ok(), is_good, "{answer:?}");
    }
}

#[test]
fn every_attempt_has_its_own_nonce() {
    let mut script = Script::new(probe());
    script.connect(1);
    script.wait();
    script.connect(2);
    script.say(&[hello(), Message::Probed(probed(1))]);
    let error = script.result().unwrap_err();
    assert!(matches!(error, ExchangeError::Protocol { .. }), "{error:?}");
}

#[test]
fn refusals_are_final_or_retried_as_their_code_says() {
    for &code in FailCode::ALL {
        let mut script = Script::new(rebind());
        script.connect(7);
        script.say(&[hello(), fail(code)]);
        let is_retried = matches!(code, FailCode::Refusing | FailCode::Limit);
        let want = script.exchange.poll(script.now);
        assert_eq!(matches!(want, Want::Connect { .. }), is_retried, "{code}");
        assert_eq!(matches!(want, Want::Finished), !is_retried, "{code}");
    }
}

#[test]
fn a_refusal_that_was_asked_for_is_final() {
    let quiesce = |policy| {
        Request::Quiesce(Quiesce {
            token: Token::from_bytes([5; 16]),
            policy,
            limit_ms: 1000,
        })
    };
    let reopen = Request::Reopen(Reopen {
        token: Token::from_bytes([5; 16]),
    });
    for (request, is_final) in [
        (quiesce(Policy::Keep), false),
        (quiesce(Policy::Drain), false),
        (quiesce(Policy::Refuse), true),
        (reopen, true),
    ] {
        let mut script = Script::new(request.clone());
        script.connect(7);
        script.say(&[hello(), fail(FailCode::Refusing)]);
        let want = script.exchange.poll(script.now);
        assert_eq!(matches!(want, Want::Finished), is_final, "{request:?}");
    }
}

#[test]
fn the_error_says_which_versions_a_peer_without_a_common_one_speaks() {
    let mut script = Script::new(rebind());
    script.connect(7);
    script.say(&[hello_with(VersionRange { min: 8, max: 9 })]);
    let error = script.result().unwrap_err().to_string();
    assert_eq!(
        error,
        "no common protocol version: this side speaks 1, the peer 8 to 9"
    );
}

#[test]
fn a_guest_that_breaks_the_protocol_ends_it() {
    let flights: [&[u8]; 5] = [
        &rebound(1).encode(),
        &[hello(), hello()].map(|message| message.encode()).concat(),
        &[hello(), rebound(2)]
            .map(|message| message.encode())
            .concat(),
        &[hello(), Message::Ok]
            .map(|message| message.encode())
            .concat(),
        &[0xff; 64],
    ];
    for bytes in flights {
        let mut script = Script::new(rebind());
        script.connect(7);
        script.exchange.handle_bytes(bytes, script.now);
        let error = script.result().unwrap_err();
        assert!(matches!(error, ExchangeError::Protocol { .. }), "{error:?}");
    }
}

#[test]
fn each_request_has_its_completion_frame() {
    let token = Token::from_bytes([5; 16]);
    let quiesce = Quiesce {
        token,
        policy: Policy::Keep,
        limit_ms: 1,
    };
    let shutdown = Shutdown {
        action: PowerAction::PowerOff,
        grace_ms: 0,
    };
    let signal = Signal {
        session: Some(SessionRef::Number(1)),
        number: 15,
    };
    let request = SessionsRequest { after: 0 };
    let none = Sessions {
        sessions: Vec::new(),
        more: false,
    };
    let cases = [
        (Request::Quiesce(quiesce), Message::Quiesced(token)),
        (Request::Reopen(Reopen { token }), Message::Ok),
        (Request::Shutdown(shutdown), Message::Ok),
        (Request::Signal(signal), Message::Ok),
        (Request::Sessions(request), Message::Sessions(none)),
        (rebind(), rebound(1)),
        (probe(), Message::Probed(probed(1))),
    ];
    for (request, _) in &cases {
        for (_, answer) in &cases {
            let mut script = Script::new(request.clone());
            script.connect(1);
            script.say(&[hello(), answer.clone()]);
            let own = cases.iter().any(|(r, a)| r == request && a == answer);
            assert_eq!(
                script.result().is_ok(),
                own,
                "{request:?} answered by {answer:?}"
            );
        }
    }
}

/// SEVER may come before HELLO: a slow guest cuts one of two attempts that it sees at once.
#[test]
fn a_connection_cut_on_purpose_is_retried() {
    let sever = Message::Sever(crate::message::Sever {
        reason: crate::message::SeverReason::Rebind,
    });
    for messages in [&[hello(), sever.clone()][..], std::slice::from_ref(&sever)] {
        let mut script = Script::new(rebind());
        script.connect(7);
        script.say(messages);
        script.exchange.handle_closed(script.now);
        assert!(matches!(
            script.exchange.poll(script.now),
            Want::Connect { .. }
        ));
    }
}
