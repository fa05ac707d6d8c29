//! A host: [`Exchange`] as it ships, and what its blocking driver does around it.

use std::time::{Duration, Instant};

use shared::exchange::{Exchange, ExchangeError, Request, Want};
use shared::id::{ExecId, Generation, Nonce, Token};
use shared::message::{
    ByteString, Cause, Depth, Exec, FailCode, Hello, Identity, InheritedSessions, Message, Origin,
    OutputPolicy, Policy, Quiesce, Rebind, Role,
};

use crate::mutation::Mutation;
use crate::wire::{messages, short};

/// 2026-01-01.
const WALL_CLOCK_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// Time limit of a phase. Less than the guest's limits for a connection, and more than all delays
/// and silent attempts of a run together.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long the client waits for STARTED before it sends EXEC again.
const EXEC_SILENCE: Duration = Duration::from_secs(1);

/// How far a host has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Quiesce,
    /// The guest is quiesced; the snapshot is next.
    Snapshot,
    Rebind,
    Probe,
    /// READY was reported; EXEC is sent.
    Exec,
    Done,
    Failed(Failure),
    /// The process was killed.
    Dead,
}

/// Why a host gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// By a FAIL of the guest.
    Refused(FailCode),
    /// No answer in time, or a violation of the protocol.
    Other,
}

/// What a host wants from the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wish {
    Connect(Instant),
    Read(Instant),
    Pause(Instant),
    Nothing,
}

/// A process on the host that deals with one guest.
#[derive(Clone, Debug, Hash)]
pub struct Host {
    pub guest: usize,
    /// The generation that it gives.
    pub generation: Generation,
    pub phase: Phase,
    /// Its open connection.
    pub wire: Option<u64>,
    cause: Cause,
    exchange: Option<Exchange>,
    wish: Wish,
    exec_deadline: Option<Instant>,
    /// The guest that the first EXEC was sent to.
    origin: Option<Origin>,
    /// Whether EXEC names the generation. A user's command does not.
    has_generation: bool,
    /// Bytes for the open connection.
    pub unsent: Vec<u8>,
    nonces: u8,
}

impl Host {
    /// A host that rebinds its guest, probes it, and runs a command.
    pub fn rebinding(guest: usize, cause: Cause, generation: Generation, now: Instant) -> Self {
        let mut host = Self {
            guest,
            generation,
            phase: Phase::Rebind,
            wire: None,
            cause,
            exchange: None,
            wish: Wish::Nothing,
            exec_deadline: None,
            origin: None,
            has_generation: true,
            unsent: Vec::new(),
            nonces: 0,
        };
        host.begin_rebind(now);
        host
    }

    /// Its command may run under any generation.
    pub fn without_generation(mut self) -> Self {
        self.has_generation = false;
        self
    }

    /// A host that takes a snapshot first, and then rebinds the source as it resumes.
    pub fn snapshotting(guest: usize, generation: Generation, now: Instant) -> Self {
        let mut host = Self::rebinding(guest, Cause::Resume, generation, now);
        let quiesce = Quiesce {
            token: Token::from_bytes(*generation.as_bytes()),
            policy: Policy::Keep,
            limit_ms: 1000,
        };
        host.begin(Phase::Quiesce, Request::Quiesce(quiesce), now);
        host
    }

    fn begin(&mut self, phase: Phase, request: Request, now: Instant) {
        self.phase = phase;
        self.exchange = Some(Exchange::new(request, "model", now, now + DEADLINE));
        self.poll(now);
    }

    pub fn begin_rebind(&mut self, now: Instant) {
        let rebind = Rebind {
            generation: self.generation,
            cause: self.cause,
            parent: None,
            wall_clock_ns: 0,
            entropy: Some([7; 32]),
            identity: Identity::default(),
            sessions: InheritedSessions::Keep,
            attempt: 0,
        };
        self.begin(Phase::Rebind, Request::Rebind(rebind), now);
    }

    fn begin_exec(&mut self, now: Instant) {
        self.phase = Phase::Exec;
        self.exec_deadline = Some(now + DEADLINE);
        self.wish = Wish::Connect(now + EXEC_SILENCE);
    }

    pub fn die(&mut self) {
        self.phase = Phase::Dead;
        self.exchange = None;
        self.exec_deadline = None;
        self.wish = Wish::Nothing;
    }

    /// Takes what it has seen for the end, as only a defect does.
    pub fn give_up(&mut self) {
        self.exchange = None;
        self.fail(Failure::Other);
    }

    fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Failed(failure);
        self.wish = Wish::Nothing;
        self.exec_deadline = None;
    }

    /// Asks the exchange what to do next.
    fn poll(&mut self, now: Instant) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        self.wish = match exchange.poll(now) {
            Want::Connect { until } => Wish::Connect(until),
            Want::Read { until } => Wish::Read(until),
            Want::Pause { until } => Wish::Pause(until),
            Want::Finished => Wish::Nothing,
        };
        if self.wish != Wish::Nothing {
            return;
        }
        let result = self.exchange.take().map(Exchange::into_result);
        match (self.phase, result) {
            (Phase::Quiesce, Some(Ok(_))) => self.phase = Phase::Snapshot,
            (Phase::Rebind, Some(Ok(_))) => {
                let request = Request::Probe {
                    generation: Some(self.generation),
                    depth: Depth::Exec,
                };
                self.begin(Phase::Probe, request, now);
            }
            (Phase::Probe, Some(Ok(_))) => self.begin_exec(now),
            (_, Some(Err(ExchangeError::Refused { fail, .. }))) => {
                self.fail(Failure::Refused(fail.code));
            }
            (_, Some(Err(_)) | None) => self.fail(Failure::Other),
            (_, Some(Ok(_))) => {}
        }
    }

    /// Reports READY without a probe, as only a defect does.
    pub fn skip_probe(&mut self, now: Instant) {
        self.exchange = None;
        self.begin_exec(now);
    }

    /// Whether it would open a connection.
    pub fn wants_connection(&self) -> bool {
        matches!(self.wish, Wish::Connect(_))
    }

    /// Whether it still needs its open connection.
    pub fn keeps_connection(&self) -> bool {
        matches!(self.wish, Wish::Read(_)) || self.phase == Phase::Snapshot
    }

    pub fn reads(&self) -> bool {
        matches!(self.wish, Wish::Read(_))
    }

    pub fn timeout(&self) -> Option<Instant> {
        match self.wish {
            Wish::Connect(at) | Wish::Read(at) | Wish::Pause(at) => Some(at),
            Wish::Nothing => None,
        }
    }

    /// Connects: gives what it writes at once.
    pub fn flight(&mut self, now: Instant, mutation: Option<Mutation>) -> Vec<u8> {
        self.nonces += 1;
        let bytes = match &mut self.exchange {
            Some(exchange) => {
                let nonce = Nonce::from_bytes([self.nonces; 16]);
                exchange.flight(WALL_CLOCK_NS, nonce)
            }
            None => {
                let mut bytes = Message::Hello(Hello::host("model")).encode();
                if self.origin.is_some() {
                    self.exec(mutation).encode_into(&mut bytes);
                }
                bytes
            }
        };
        match self.exchange {
            Some(_) => self.poll(now),
            None => self.wish = Wish::Read(now + EXEC_SILENCE),
        }
        bytes
    }

    /// The arguments carry the command's id and generation, for the shell to check.
    fn exec(&self, mutation: Option<Mutation>) -> Message {
        let command = self.generation.to_string();
        let argv = [self.generation.to_string(), command];
        let id = match mutation {
            Some(Mutation::RetryIsNew) => ExecId::from_bytes([self.nonces; 16]),
            _ => ExecId::from_bytes(*self.generation.as_bytes()),
        };
        let has_generation =
            self.has_generation && mutation != Some(Mutation::ExecWithoutGeneration);
        let has_origin = mutation != Some(Mutation::ExecWithoutOrigin);
        let argv = argv.into_iter().filter_map(ByteString::new).collect();
        Message::Exec(Exec {
            generation: has_generation.then_some(self.generation),
            origin: self.origin.filter(|_| has_origin).map(Box::new),
            detached: true,
            output: OutputPolicy::DropOldest,
            ..Exec::new(id, argv)
        })
    }

    /// The guest's HELLO: the first EXEC can be sent now.
    fn handle_hello(&mut self, hello: &Hello, mutation: Option<Mutation>) {
        if self.origin.is_none() {
            self.origin = hello.origin();
            self.unsent = self.exec(mutation).encode();
        }
    }

    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant, mutation: Option<Mutation>) {
        if let Some(exchange) = &mut self.exchange {
            exchange.handle_bytes(bytes, now);
            return self.poll(now);
        }
        for message in messages(bytes, Role::Guest) {
            match message {
                Message::Hello(hello) => self.handle_hello(&hello, mutation),
                Message::Started(_) => {
                    self.phase = Phase::Done;
                    self.wish = Wish::Nothing;
                    self.exec_deadline = None;
                }
                Message::Fail(fail) if fail.code == FailCode::Refusing => {
                    self.wish = Wish::Pause(now + EXEC_SILENCE);
                }
                Message::Fail(fail) => self.fail(Failure::Refused(fail.code)),
                _ => {}
            }
        }
    }

    pub fn handle_closed(&mut self, now: Instant) {
        match &mut self.exchange {
            Some(exchange) => {
                exchange.handle_closed(now);
                self.poll(now);
            }
            None if self.phase == Phase::Exec => self.wish = Wish::Connect(now + EXEC_SILENCE),
            None => {}
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(exchange) = &mut self.exchange {
            exchange.handle_timeout(now);
            return self.poll(now);
        }
        match self.wish {
            Wish::Read(at) | Wish::Pause(at) if at <= now => {
                self.wish = Wish::Connect(now + EXEC_SILENCE);
            }
            Wish::Read(_) | Wish::Pause(_) | Wish::Connect(_) | Wish::Nothing => {}
        }
        if self.exec_deadline.is_some_and(|at| at <= now) {
            self.fail(Failure::Other);
        }
    }

    /// Its phase, for the trace.
    pub fn describe(&self) -> String {
        match self.phase {
            Phase::Exec => format!("says READY as {}", short(self.generation)),
            Phase::Failed(Failure::Refused(code)) => format!("fails: {code}"),
            Phase::Failed(Failure::Other) => "fails: no answer in time".to_owned(),
            Phase::Snapshot => "takes the snapshot".to_owned(),
            Phase::Quiesce | Phase::Rebind | Phase::Probe | Phase::Done | Phase::Dead => {
                format!("is at {:?}", self.phase)
            }
        }
    }
}
