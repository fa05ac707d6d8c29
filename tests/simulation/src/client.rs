//! A session's client and a request's driver, as they ship, over simulated connections. What they
//! report is compared with what happened.

use std::time::{Duration, Instant};

use shared::exchange::{self, Exchange, ExchangeError};
use shared::id::Nonce;
use shared::message::{
    Attach, AttachMode, FailCode, FaultPart, Message, OutputPolicy, SessionRef, Stream,
};
use shared::session_client::{Deadlines, Event, Request, SessionClient, SessionError, Want};

use agent::agent::SessionId;

use crate::commands::Commands;
use crate::guest::{Guest, life_of};
use crate::kernel::Far;
use crate::pattern::{self, INPUT};
use crate::requests;
use crate::tally::Mark;

/// Time limit of a request.
const DEADLINE: Duration = Duration::from_secs(20);

/// Most rounds of one drive.
const ROUNDS_MAX: usize = 12;

/// The host's end of a connection.
#[derive(Debug, Default)]
pub struct Socket(Option<usize>);

impl Socket {
    /// Opens a connection, and writes the first flight at once.
    pub fn connect(&mut self, flight: &[u8], guest: &mut Guest) {
        self.close(guest);
        let kernel = &mut guest.kernel;
        let is_edge_lost = kernel.random.one_in(20);
        let wire = kernel.connect(false, is_edge_lost);
        kernel.send(wire, flight, true);
        self.0 = Some(wire);
    }

    pub fn close(&mut self, guest: &mut Guest) {
        if let Some(wire) = self.0.take() {
            guest.kernel.end(wire, Far::Closed);
        }
    }

    /// What can be read now; `None` when the connection is over.
    pub fn read(&mut self, guest: &mut Guest) -> Option<Vec<u8>> {
        let len = guest.kernel.random.part(1 << 16);
        guest.kernel.receive(self.0?, len)
    }

    /// Writes as much as fits.
    pub fn write(&mut self, bytes: &[u8], guest: &mut Guest) -> usize {
        let len = guest.kernel.random.part(bytes.len());
        self.0
            .map_or(0, |wire| guest.kernel.send(wire, &bytes[..len], false))
    }
}

#[derive(Debug)]
pub struct SessionDriver {
    client: Option<SessionClient>,
    socket: Socket,
    session: Option<SessionId>,
    /// The number of agents before the one that has the session.
    life: usize,
    /// Whether its command waits until its output is read.
    is_patient: bool,
    /// Whether it asks for output, too.
    gets_output: bool,
    /// Whether it acknowledges; another client can become the owner.
    is_owner: bool,
    /// The next offset of each output.
    offsets: [u64; 2],
    /// Bytes that were not passed on.
    held: [usize; 2],
    has_gap: bool,
    sent: u64,
    has_ended_input: bool,
    /// How long the command is kept without it.
    keep: Duration,
    /// When the client was last connected.
    seen_at: Instant,
    /// Whether it was away for longer than that, so that the command may have been told to end.
    was_away: bool,
}

impl SessionDriver {
    /// Starts a command.
    #[must_use]
    pub fn new(number: u8, guest: &mut Guest) -> Self {
        let random = &mut guest.kernel.random;
        let known = guest.agent.generation();
        let wanted = random
            .one_in(3)
            .then(|| requests::any_generation(random, known));
        let exec = requests::exec(random, number, wanted);
        let is_owner = !exec.detached;
        let is_patient = exec.output == OutputPolicy::Block && is_owner;
        let keep = Duration::from_millis(exec.keep_ms.unwrap_or(0));
        let request = Request::Exec {
            exec: Box::new(exec),
            may_be_known: random.one_in(4),
        };
        let mut driver = Self::asking(request, is_patient, keep, guest);
        driver.is_owner = is_owner;
        driver
    }

    /// Attaches to a session that may exist.
    #[must_use]
    pub fn attaching(session: SessionRef, mode: AttachMode, guest: &Guest) -> Self {
        let attach = Attach {
            session,
            generation: None,
            mode,
            stdout_from: None,
            stderr_from: None,
        };
        let stdin = false;
        let mut driver = Self::asking(
            Request::Attach { attach, stdin },
            false,
            Duration::ZERO,
            guest,
        );
        driver.gets_output = mode != AttachMode::Wait;
        driver.is_owner = mode == AttachMode::Own;
        driver
    }

    fn asking(request: Request, is_patient: bool, keep: Duration, guest: &Guest) -> Self {
        let now = guest.now;
        let deadlines = Deadlines {
            start: Some(now + DEADLINE),
            absence_max: Some(DEADLINE * 3),
            end: None,
        };
        Self {
            client: Some(SessionClient::new(request, "simulated", now, deadlines)),
            socket: Socket::default(),
            session: None,
            life: 0,
            is_patient,
            gets_output: true,
            is_owner: false,
            offsets: [0; 2],
            held: [0; 2],
            has_gap: false,
            sent: 0,
            has_ended_input: false,
            keep,
            seen_at: now,
            was_away: false,
        }
    }

    /// Does what is possible now. Returns whether it is over.
    pub fn drive(&mut self, guest: &mut Guest, is_eager: bool) -> bool {
        for _ in 0..ROUNDS_MAX {
            let Some(client) = &mut self.client else {
                return true;
            };
            client.handle_timeout(guest.now);
            match client.poll(guest.now) {
                Want::Connect { .. } => {
                    let is_again = self.session.is_some();
                    let away = guest.now.saturating_duration_since(self.seen_at);
                    self.was_away |= is_again && away >= self.keep;
                    self.socket.connect(&client.flight(), guest);
                    client.handle_connected(guest.now);
                }
                Want::Talk { .. } => {
                    if !self.talk(guest, is_eager) {
                        return false;
                    }
                }
                Want::Pause { .. } => {
                    self.consume(guest, is_eager);
                    return false;
                }
                Want::Finished => {
                    self.finish(guest);
                    return true;
                }
            }
        }
        false
    }

    /// Moves bytes. Returns whether anything happened.
    fn talk(&mut self, guest: &mut Guest, is_eager: bool) -> bool {
        let mut is_busy = self.feed(guest, is_eager);
        let Some(client) = &mut self.client else {
            return false;
        };
        let len = self.socket.write(client.poll_output(), guest);
        client.handle_written(len);
        is_busy |= len > 0;
        if client.wants_read() {
            match self.socket.read(guest) {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    client.handle_bytes(&bytes, guest.now);
                    self.seen_at = guest.now;
                    self.handle_events(guest);
                    is_busy = true;
                }
                None => {
                    client.handle_closed(guest.now);
                    is_busy = true;
                }
            }
        }
        self.consume(guest, is_eager) || is_busy
    }

    /// Sends standard input.
    fn feed(&mut self, guest: &mut Guest, is_eager: bool) -> bool {
        let random = &mut guest.kernel.random;
        let Some(client) = &mut self.client else {
            return false;
        };
        let room = client.input_room();
        if (room == 0 && !is_eager) || self.has_ended_input {
            return false;
        }
        if is_eager || random.one_in(6) {
            self.has_ended_input = true;
            client.handle_input_end();
            return true;
        }
        if !random.one_in(3) {
            return false;
        }
        let most = if random.one_in(10) { 40_000 } else { 600 };
        let len = 1 + random.below(room.min(most));
        let bytes = pattern::at(Commands::INPUT_KEY, INPUT, self.sent, len);
        client.handle_input(bytes);
        self.sent += len as u64;
        true
    }

    fn handle_events(&mut self, guest: &mut Guest) {
        let Some(client) = &mut self.client else {
            return;
        };
        let tally = &mut guest.kernel.tally;
        while let Some(event) = client.poll_event(guest.now) {
            match event {
                Event::Started(started) => {
                    tally.count(Mark::Started);
                    let number = started.session;
                    self.session = Some(SessionId::from_number(number));
                    let instance = client.hello().and_then(|it| it.instance);
                    self.life = instance.map_or(0, life_of);
                    self.offsets = [started.stdout_from, started.stderr_from];
                }
                Event::Resumed(_) => tally.count(Mark::Resumed),
                Event::Output { stream, bytes } => {
                    let session = self.session.expect("STARTED came first");
                    let offset = &mut self.offsets[stream.index()];
                    let key = Commands::key(self.life, session);
                    let expected = pattern::at(key, stream.index(), *offset, bytes.len());
                    assert!(bytes == expected, "{stream:?} of {session} at {offset}");
                    *offset += bytes.len() as u64;
                    self.held[stream.index()] += bytes.len();
                    tally.count(Mark::Output);
                }
                Event::Gap(gap) => {
                    self.offsets[gap.stream.index()] = gap.to;
                    self.has_gap = true;
                    tally.count(Mark::Gap);
                }
                Event::Severed(_) | Event::Exited(_) => {}
            }
        }
    }

    /// Passes output on.
    fn consume(&mut self, guest: &mut Guest, is_eager: bool) -> bool {
        let Some(client) = &mut self.client else {
            return false;
        };
        let mut is_busy = false;
        for &stream in Stream::ALL {
            let held = &mut self.held[stream.index()];
            if *held > 0 && (is_eager || guest.kernel.random.one_in(2)) {
                let len = guest.kernel.random.part(*held);
                *held -= len;
                client.handle_consumed(stream, len, guest.now);
                is_busy = true;
            }
        }
        is_busy
    }

    /// The end is the command's own and follows all of its output, or there is a reason why it did
    /// not come.
    fn finish(&mut self, guest: &mut Guest) {
        self.socket.close(guest);
        let Some(client) = self.client.take() else {
            return;
        };
        let commands = &guest.commands;
        let record = self.session.and_then(|id| commands.record(self.life, id));
        let is_tainted = self.session.is_some_and(|id| commands.is_tainted(id));
        match client.into_result() {
            Ok(exited) => {
                let record = record.expect("it ran");
                guest.kernel.tally.count(Mark::Exited);
                assert_eq!(Some(exited.status), record.status, "another end");
                let fault = exited.fault.map(|it| (it.part, it.offset));
                assert_eq!(
                    fault.is_some(),
                    record.fault.is_some(),
                    "a fault is not told"
                );
                // The end of a terminal's input is a character, which counts for the record only.
                let is_stdin = |it: (FaultPart, u64)| it.0 == FaultPart::Stdin;
                if !record.is_terminal || !fault.is_some_and(is_stdin) {
                    assert_eq!(fault, record.fault, "another fault");
                }
                if fault.is_some() {
                    guest.kernel.tally.count(Mark::Fault);
                }
                let ends = [exited.stdout_end, exited.stderr_end];
                assert_eq!(ends, record.read, "these are not the lengths read");
                assert!(
                    !self.gets_output || ends == self.offsets,
                    "the end came before the last byte"
                );
                let may_lose = !self.is_patient
                    || record.is_signalled
                    || self.was_away
                    || commands.has_kill
                    || guest.is_small
                    || is_tainted;
                assert!(
                    may_lose || !self.has_gap,
                    "output of a patient command is lost"
                );
                assert!(
                    self.sent >= record.written
                        || !self.is_patient
                        || is_tainted
                        || record.is_terminal
                );
            }
            Err(SessionError::Protocol { text, .. }) => {
                panic!("the guest broke the protocol: {text}")
            }
            Err(SessionError::Version(_)) => panic!("no common version"),
            Err(SessionError::Superseded) => {
                assert!(
                    is_tainted && self.is_owner,
                    "no other client can have taken the session over"
                );
                guest.kernel.tally.count(Mark::Undecided);
            }
            Err(SessionError::Refused { fail, .. }) if fail.code == FailCode::Unknown => {
                guest.kernel.tally.count(Mark::Unknown);
            }
            Err(SessionError::Refused { .. }) => guest.kernel.tally.count(Mark::Refused),
            Err(_) => guest.kernel.tally.count(Mark::Undecided),
        }
    }
}

/// A request with one completion frame.
#[derive(Debug)]
pub struct ExchangeDriver {
    exchange: Option<Exchange>,
    socket: Socket,
}

impl ExchangeDriver {
    /// Sends this until its time limit.
    #[must_use]
    pub fn new(request: exchange::Request, guest: &mut Guest) -> Self {
        if let exchange::Request::Rebind(rebind) = &request {
            guest.commands.note_rebind(rebind);
        }
        let deadline = guest.now + DEADLINE;
        Self {
            exchange: Some(Exchange::new(request, "simulated", guest.now, deadline)),
            socket: Socket::default(),
        }
    }

    pub fn leave(&mut self, guest: &mut Guest) {
        self.socket.close(guest);
    }

    /// Does what is possible now. Returns the answer when it is over.
    pub fn drive(&mut self, guest: &mut Guest) -> Option<Result<Message, ExchangeError>> {
        for _ in 0..ROUNDS_MAX {
            let exchange = self.exchange.as_mut()?;
            exchange.handle_timeout(guest.now);
            match exchange.poll(guest.now) {
                exchange::Want::Connect { .. } => {
                    let nonce = Nonce::from_bytes([guest.kernel.random.small(256); 16]);
                    let now_ns = 1_767_225_600 * 1_000_000_000;
                    let flight = exchange.flight(now_ns, nonce);
                    self.socket.connect(&flight, guest);
                }
                exchange::Want::Read { .. } => match self.socket.read(guest) {
                    Some(bytes) if bytes.is_empty() => return None,
                    Some(bytes) => exchange.handle_bytes(&bytes, guest.now),
                    None => exchange.handle_closed(guest.now),
                },
                exchange::Want::Pause { .. } => {
                    self.socket.close(guest);
                    return None;
                }
                exchange::Want::Finished => {
                    self.socket.close(guest);
                    let result = self.exchange.take()?.into_result();
                    Self::note(&result, guest);
                    return Some(result);
                }
            }
        }
        None
    }

    fn note(result: &Result<Message, ExchangeError>, guest: &mut Guest) {
        let mark = match result {
            Ok(Message::Rebound(_)) => Mark::Rebound,
            Ok(Message::Probed(_)) => Mark::Probed,
            Ok(Message::Quiesced(_)) => Mark::Quiesced,
            Ok(_) => Mark::Hello,
            Err(ExchangeError::Refused { .. }) => Mark::Refused,
            Err(ExchangeError::Deadline { .. }) => Mark::Unanswered,
            Err(error @ (ExchangeError::Version(_) | ExchangeError::Protocol { .. })) => {
                panic!("{error}")
            }
        };
        guest.kernel.tally.count(mark);
    }
}
