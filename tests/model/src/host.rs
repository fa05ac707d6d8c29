//! A host: [`Exchange`] as it ships, and what its blocking driver does around it.

use std::time::{Duration, Instant};

use shared::exchange::{Exchange, ExchangeError, Request, Want};
use shared::id::{ExecId, Generation, Nonce, Token};
use shared::message::{
    ByteString, Cause, Depth, Exec, FailCode, Hello, Identity, InheritedSessions, Message,
    OutputPolicy, Policy, Quiesce, Rebind, Role,
};

use crate::mutation::Mutation;
use crate::wire::{messages, name};

/// 2026-01-01, as good a present as any.
const WALL_CLOCK_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// What a phase may take. Less than any limit of the guest's for a connection, more than all delays
/// and silent attempts that a run can have.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long the client of a command waits for STARTED before it asks again.
const EXEC_SILENCE: Duration = Duration::from_secs(1);

/// How far a host has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asks for silence.
    Quiesce,
    /// The guest is silent: the snapshot is next.
    Snapshot,
    /// Gives the guest its name.
    Rebind,
    /// Has it proven.
    Probe,
    /// READY was said; a command is asked for.
    Exec,
    /// The command runs.
    Done,
    /// A phase has failed.
    Failed(Failure),
    /// The process was killed.
    Dead,
}

/// Why a host gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The guest said no.
    Refused(FailCode),
    /// The guest could not be made to answer, or broke the protocol.
    Other,
}

/// What a host wants of the world.
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
    /// Its guest.
    pub guest: usize,
    /// The name that it gives.
    pub generation: Generation,
    /// How far it has come.
    pub phase: Phase,
    /// The connection that it has open.
    pub wire: Option<u64>,
    cause: Cause,
    exchange: Option<Exchange>,
    wish: Wish,
    exec_deadline: Option<Instant>,
    nonces: u8,
}

impl Host {
    /// One that names its guest, proves it, and runs a command.
    pub fn naming(guest: usize, cause: Cause, generation: Generation, now: Instant) -> Self {
        let mut host = Self {
            guest,
            generation,
            phase: Phase::Rebind,
            wire: None,
            cause,
            exchange: None,
            wish: Wish::Nothing,
            exec_deadline: None,
            nonces: 0,
        };
        host.begin_rebind(now);
        host
    }

    /// One that takes a snapshot first, and then names the source as it resumes.
    pub fn snapshotting(guest: usize, generation: Generation, now: Instant) -> Self {
        let mut host = Self::naming(guest, Cause::Resume, generation, now);
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

    /// Goes on to REBIND.
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

    /// The process is killed.
    pub fn die(&mut self) {
        self.phase = Phase::Dead;
        self.exchange = None;
        self.exec_deadline = None;
        self.wish = Wish::Nothing;
    }

    /// Takes what it has seen for the end. Only a defect does.
    pub fn give_up(&mut self) {
        self.exchange = None;
        self.fail(Failure::Other);
    }

    fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Failed(failure);
        self.wish = Wish::Nothing;
        self.exec_deadline = None;
    }

    /// Asks the exchange what it wants now.
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

    /// Says READY without asking for the proof. Only a defect does.
    pub fn skip_probe(&mut self, now: Instant) {
        self.exchange = None;
        self.begin_exec(now);
    }

    /// Whether it wants a fresh connection.
    pub fn wants_connection(&self) -> bool {
        matches!(self.wish, Wish::Connect(_))
    }

    /// Whether it has a use for the connection that it has open.
    pub fn keeps_connection(&self) -> bool {
        matches!(self.wish, Wish::Read(_)) || self.phase == Phase::Snapshot
    }

    /// Whether it reads.
    pub fn reads(&self) -> bool {
        matches!(self.wish, Wish::Read(_))
    }

    /// When it stops waiting.
    pub fn timeout(&self) -> Option<Instant> {
        match self.wish {
            Wish::Connect(at) | Wish::Read(at) | Wish::Pause(at) => Some(at),
            Wish::Nothing => None,
        }
    }

    /// Has connected: what it writes at once.
    pub fn flight(&mut self, now: Instant, mutation: Option<Mutation>) -> Vec<u8> {
        self.nonces += 1;
        let bytes = match &mut self.exchange {
            Some(exchange) => {
                let nonce = Nonce::from_bytes([self.nonces; 16]);
                exchange.flight(WALL_CLOCK_NS, nonce)
            }
            None => self.exec_flight(mutation),
        };
        match self.exchange {
            Some(_) => self.poll(now),
            None => self.wish = Wish::Read(now + EXEC_SILENCE),
        }
        bytes
    }

    /// The command's arguments carry its name and that of the guest, for the shell to check.
    fn exec_flight(&self, mutation: Option<Mutation>) -> Vec<u8> {
        let command = self.generation.to_string();
        let argv = [self.generation.to_string(), command];
        let id = match mutation {
            Some(Mutation::RetryIsNew) => ExecId::from_bytes([self.nonces; 16]),
            _ => ExecId::from_bytes(*self.generation.as_bytes()),
        };
        let has_name = mutation != Some(Mutation::ExecWithoutName);
        let argv = argv.into_iter().filter_map(ByteString::new).collect();
        let exec = Exec {
            generation: has_name.then_some(self.generation),
            detached: true,
            output: OutputPolicy::DropOldest,
            ..Exec::new(id, argv)
        };
        let mut bytes = Message::Hello(Hello::host("model")).encode();
        Message::Exec(exec).encode_into(&mut bytes);
        bytes
    }

    /// Bytes have come.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        if let Some(exchange) = &mut self.exchange {
            exchange.handle_bytes(bytes, now);
            return self.poll(now);
        }
        for message in messages(bytes, Role::Guest) {
            match message {
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

    /// Its connection has ended.
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

    /// Time has passed.
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

    /// What it has come to, for people.
    pub fn describe(&self) -> String {
        match self.phase {
            Phase::Exec => format!("says READY as {}", name(self.generation)),
            Phase::Failed(Failure::Refused(code)) => format!("fails: {code}"),
            Phase::Failed(Failure::Other) => "fails: no answer in time".to_owned(),
            Phase::Snapshot => "takes the snapshot".to_owned(),
            Phase::Quiesce | Phase::Rebind | Phase::Probe | Phase::Done | Phase::Dead => {
                format!("is at {:?}", self.phase)
            }
        }
    }
}
