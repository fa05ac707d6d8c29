//! The host's side of conversations with a guest that may send anything.
//!
//! An input is a list of events, each after a byte that says which: a number of bytes from the
//! guest, the end of the connection, silence, and events of a session. After the last one time
//! passes until the machine gives up.

use std::time::{Duration, Instant};

use shared::exchange::{self, ATTEMPTS_KEPT_MAX, Exchange};
use shared::frame::{Decoder, FrameKind};
use shared::id::{ExecId, Generation, Nonce, Token};
use shared::message::{
    Attach, AttachMode, AwaitCheckpoint, ByteString, Cause, Depth, Exec, HookStage, Hooks,
    Identity, InheritedSessions, Message, Policy, PowerAction, Quiesce, Rebind, Reopen, Role,
    SessionRef, SessionsRequest, Shutdown, Signal, Stream,
};
use shared::session_client::{
    self, Deadlines, Event, Fate, INPUT_LEN_MAX, READ_AHEAD_LEN_MAX, SessionClient,
};

/// Time limit of a request.
const DEADLINE: Duration = Duration::from_secs(30);

/// Most turns of a driver. More mean that it does not end.
const TURNS_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug)]
enum Happening<'a> {
    Bytes(&'a [u8]),
    Closed,
    /// Time passes until the next deadline.
    Silence,
    /// What the driver of a session does: it passes output on, sends input, or signals.
    Own(u8),
}

/// Takes the next event off `rest`.
fn next<'a>(rest: &mut &'a [u8]) -> Happening<'a> {
    let Some((&what, behind)) = rest.split_first() else {
        return Happening::Silence;
    };
    *rest = behind;
    match what {
        0..=215 => {
            // Long frames need long pieces.
            let len = usize::from(what).max(usize::from(what.saturating_sub(200)) * 256);
            let (bytes, behind) = behind.split_at(len.min(behind.len()));
            *rest = behind;
            Happening::Bytes(bytes)
        }
        216..=223 => Happening::Closed,
        224..=231 => Happening::Silence,
        232..=255 => Happening::Own(what - 232),
    }
}

/// A request with one completion frame. It ends within its deadline, and succeeds only with the
/// answer that it asked for.
pub fn exchange(data: &[u8]) {
    let Some((&which, mut rest)) = data.split_first() else {
        return;
    };
    let (request, answer) = request(which);
    let start = epoch();
    let deadline = start + DEADLINE;
    let mut now = start;
    let mut exchange = Exchange::new(request, "fuzzed", start, deadline);
    for turn in 0.. {
        assert!(turn < TURNS_MAX, "it goes on for ever");
        match exchange.poll(now) {
            exchange::Want::Connect { until } => {
                assert!(until <= deadline);
                assert!(!exchange.flight(1, Nonce::from_bytes([4; 16])).is_empty());
                if rest.first() == Some(&216) {
                    next(&mut rest);
                    exchange.handle_closed(now);
                }
            }
            exchange::Want::Read { until } => {
                assert!(until <= deadline);
                match next(&mut rest) {
                    Happening::Bytes(bytes) => exchange.handle_bytes(bytes, now),
                    Happening::Closed => exchange.handle_closed(now),
                    Happening::Silence | Happening::Own(_) => {
                        now = now.max(until);
                        exchange.handle_timeout(now);
                    }
                }
            }
            exchange::Want::Pause { until } => {
                assert!(now < until && until <= deadline);
                now = until;
            }
            exchange::Want::Finished => break,
        }
        assert!(exchange.attempts().len() <= ATTEMPTS_KEPT_MAX);
    }
    let attempt_count = exchange.attempt_count();
    match exchange.into_result() {
        Ok(message) => assert!(message.kind() == answer && attempt_count > 0),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A request, and the kind of its answer.
fn request(which: u8) -> (exchange::Request, FrameKind) {
    let generation = Generation::from_bytes([1; 16]);
    let token = Token::from_bytes([3; 16]);
    let rebind = Rebind {
        generation,
        cause: Cause::Boot,
        parent: None,
        wall_clock_ns: 1,
        entropy: None,
        identity: Identity::default(),
        sessions: InheritedSessions::Keep,
        attempt: 1,
    };
    let probe = |generation, depth| exchange::Request::Probe { generation, depth };
    let (policy, limit_ms) = (Policy::Drain, 1_000);
    let session = Some(SessionRef::Workload);
    let (action, grace_ms) = (PowerAction::PowerOff, 1_000);
    let stage = HookStage::Restore;
    match which % 12 {
        0 => (exchange::Request::Rebind(rebind), FrameKind::Rebound),
        1 => (probe(Some(generation), Depth::Exec), FrameKind::Probed),
        2 => (probe(None, Depth::Listener), FrameKind::Probed),
        3 => (
            exchange::Request::Quiesce(Quiesce {
                token,
                policy,
                limit_ms,
            }),
            FrameKind::Quiesced,
        ),
        4 => (exchange::Request::Reopen(Reopen { token }), FrameKind::Ok),
        5 => (exchange::Request::Info, FrameKind::Info),
        6 => (
            exchange::Request::Sessions(SessionsRequest { after: 2 }),
            FrameKind::Sessions,
        ),
        7 => (
            exchange::Request::Signal(Signal {
                session,
                number: 15,
            }),
            FrameKind::Ok,
        ),
        8 => (
            exchange::Request::Shutdown(Shutdown { action, grace_ms }),
            FrameKind::Ok,
        ),
        9 => (
            exchange::Request::AwaitCheckpoint(AwaitCheckpoint { tag: None }),
            FrameKind::Checkpoint,
        ),
        10 => (
            exchange::Request::AwaitCheckpoint(AwaitCheckpoint {
                tag: Some("a".to_owned()),
            }),
            FrameKind::Checkpoint,
        ),
        _ => (
            exchange::Request::Hooks(Hooks {
                token,
                stage,
                limit_ms,
                keep_going: false,
            }),
            FrameKind::Hooked,
        ),
    }
}

/// A session's client and what stands around it.
struct Driver {
    client: SessionClient,
    now: Instant,
    /// What the client sends to the guest.
    sent: Decoder,
    /// Output that has come and was not passed on.
    held: [usize; 2],
    is_started: bool,
    has_ended: bool,
}

/// A session. The client sends frames of a host, its memory is bounded, output follows the start,
/// and it succeeds only after EXITED and when all output was passed on.
pub fn session_client(data: &[u8]) {
    let Some((&which, mut rest)) = data.split_first() else {
        return;
    };
    let mut driver = Driver::new(which);
    for turn in 0.. {
        assert!(turn < TURNS_MAX, "it goes on for ever");
        match driver.client.poll(driver.now) {
            session_client::Want::Connect { .. } => {
                driver.sent = Decoder::new();
                let flight = driver.client.flight();
                driver.check_sent(&flight);
                driver.client.handle_connected(driver.now);
            }
            session_client::Want::Talk { until } => {
                driver.write();
                driver.happen(next(&mut rest), until);
            }
            session_client::Want::Pause { until } => {
                driver.consume(usize::MAX);
                driver.now = driver.now.max(until);
                driver.client.handle_timeout(driver.now);
            }
            session_client::Want::Finished => break,
        }
        driver.check();
    }
    let fate = driver.client.fate();
    match driver.client.into_result() {
        Ok(_) => assert!(driver.has_ended && driver.held == [0; 2], "an early end"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(!driver.is_started || fate == Fate::Started);
}

impl Driver {
    fn new(which: u8) -> Self {
        let now = epoch();
        let deadlines = Deadlines {
            start: Some(now + DEADLINE),
            absence_max: Some(DEADLINE),
            end: Some(now + DEADLINE * 10),
        };
        let mode = AttachMode::ALL[usize::from(which) % AttachMode::ALL.len()];
        let request = if which.is_multiple_of(2) {
            let argv = vec![ByteString::new("true").expect("no NUL")];
            let mut exec = Exec::new(ExecId::from_bytes([1; 16]), argv);
            (exec.stdin, exec.detached) = (which & 4 != 0, which & 8 != 0);
            session_client::Request::Exec {
                exec: Box::new(exec),
                may_be_known: which & 16 != 0,
            }
        } else {
            let attach = Attach {
                session: SessionRef::Number(1),
                generation: None,
                mode,
                stdout_from: (which & 32 != 0).then_some(10),
                stderr_from: None,
            };
            let stdin = which & 64 != 0;
            session_client::Request::Attach { attach, stdin }
        };
        Self {
            client: SessionClient::new(request, "fuzzed", now, deadlines),
            now,
            sent: Decoder::new(),
            held: [0; 2],
            is_started: false,
            has_ended: false,
        }
    }

    fn happen(&mut self, happening: Happening<'_>, until: Instant) {
        match happening {
            Happening::Bytes(bytes) if self.client.wants_read() => {
                self.client.handle_bytes(bytes, self.now);
                self.take_events();
            }
            Happening::Bytes(_) => self.consume(usize::MAX),
            Happening::Closed => self.client.handle_closed(self.now),
            Happening::Silence => {
                self.consume(usize::MAX);
                self.now = self.now.max(until);
                self.client.handle_timeout(self.now);
            }
            Happening::Own(what @ 0..=7) => self.consume(1 << (2 * what)),
            Happening::Own(what @ 8..=15) => {
                let len = self.client.input_room().min(1 << (2 * (what - 8)));
                self.client.handle_input(&vec![b'i'; len]);
            }
            Happening::Own(16) => self.client.handle_input_end(),
            Happening::Own(number) => self.client.handle_signal(number),
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event(self.now) {
            match event {
                Event::Started(_) => {
                    assert!(!self.is_started, "it starts twice");
                    self.is_started = true;
                }
                Event::Output { stream, bytes } => {
                    assert!(self.is_started && !self.has_ended && !bytes.is_empty());
                    self.held[stream.index()] += bytes.len();
                }
                Event::Gap(gap) => assert!(self.is_started && gap.from < gap.to),
                Event::Resumed(_) => assert!(self.is_started, "resumed before the start"),
                Event::Exited(_) => {
                    assert!(self.is_started && !self.has_ended, "an end without a start");
                    self.has_ended = true;
                }
                Event::Severed(_) => {}
            }
        }
    }

    /// Passes output on.
    fn consume(&mut self, most: usize) {
        for stream in Stream::ALL {
            let held = &mut self.held[stream.index()];
            let len = most.min(*held);
            *held -= len;
            self.client.handle_consumed(*stream, len, self.now);
        }
    }

    /// Writes everything that is pending, which must be messages of a host.
    fn write(&mut self) {
        loop {
            let bytes = self.client.poll_output().to_vec();
            if bytes.is_empty() {
                return;
            }
            self.check_sent(&bytes);
            self.client.handle_written(bytes.len());
        }
    }

    fn check_sent(&mut self, bytes: &[u8]) {
        self.sent.push(bytes);
        while let Some(frame) = self.sent.poll_frame().expect("frames") {
            Message::parse(frame, Role::Host).expect("messages of a host");
        }
    }

    fn check(&self) {
        assert!(self.client.input_room() <= INPUT_LEN_MAX);
        let held = self.held.iter().sum::<usize>() as u64;
        // One read beyond the limit may have come.
        assert!(
            held <= READ_AHEAD_LEN_MAX + (1 << 16),
            "{held} bytes are held"
        );
        assert!(
            !self.client.has_ended() || self.has_ended,
            "an end that was not read"
        );
    }
}

/// The time at which all conversations begin.
fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
