//! The client of EXEC: starts a command in the guest once, however often it has to ask, and hands
//! its output on until it has ended.
//!
//! EXEC is resent, under the same id, only until STARTED has come: a guest that knows the id
//! attaches, so that the command never starts twice. Once the connection is lost after that, how
//! the command ended is not known, and that is what is reported: neither success nor failure.

use std::io;
use std::time::{Duration, Instant};

use shared::message::{Exec, Exited, FailCode, Hello, Message, SeverReason, Started};

use super::HOST_VERSION;
use super::connection::{Connection, ConnectionError, Endpoint};
use super::driver::{AskErrorReason, pause};
use super::exec_stream::{ExecEvent, ExecStream};
use crate::deadline::Watch;

pub use super::exec_error::{ExecError, Fate};

/// How long the guest may take to say HELLO in the first attempt, and at most in a later one. A
/// guest that has said it has the request too, which came in the same write, and is waited for.
const SILENCE_FIRST: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Longest pause between two attempts that failed at once. The first retry has none.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// Which of the command's streams bytes are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A command to run, and how.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where the agent listens.
    pub endpoint: &'a Endpoint,
    /// The command.
    pub exec: &'a Exec,
    /// Whether the caller chose the id, so that the command may have been started long ago, and
    /// its output up to now may have gone to somebody else.
    pub may_attach: bool,
    /// Bounds the wait until the command runs.
    pub start: Watch<'a>,
    /// Bounds the wait for its end.
    pub end: Watch<'a>,
}

/// Runs the command in the guest, hands its output to `output`, and gives its end.
pub fn run(
    request: &Request<'_>,
    output: &mut dyn FnMut(OutputStream, &[u8]) -> io::Result<()>,
) -> Result<Exited, ExecError> {
    let mut flight = Message::Hello(Hello::host(HOST_VERSION)).encode();
    Message::Exec(request.exec.clone()).encode_into(&mut flight);
    let mut client = Client {
        request,
        flight,
        output,
        stdout_len: 0,
        stderr_len: 0,
        fate: Fate::NotRun,
        unanswered: Vec::new(),
        severed: None,
        silence: SILENCE_FIRST,
        pause: Duration::ZERO,
    };
    loop {
        match client.attempt()? {
            Attempt::Exited(exited) => return Ok(exited),
            Attempt::Again(error) => client.back_off(error)?,
        }
    }
}

/// How one connection served.
enum Attempt {
    Exited(Exited),
    /// The command may not have been started: ask again. The error is reported when that is
    /// pointless because time is up.
    Again(ExecError),
}

struct Client<'a> {
    request: &'a Request<'a>,
    /// HELLO and EXEC.
    flight: Vec<u8>,
    output: &'a mut dyn FnMut(OutputStream, &[u8]) -> io::Result<()>,
    /// Bytes of standard output handed on.
    stdout_len: u64,
    /// Bytes of standard error handed on.
    stderr_len: u64,
    fate: Fate,
    /// Connections of earlier attempts, of which nothing was heard. A guest that is merely slow
    /// takes the end of one for the end of its client, and the command with it, so they stay open
    /// until another has been answered. What the guest sent there before it read the later request
    /// is then still to be had from them.
    unanswered: Vec<Connection>,
    /// Why the guest is about to cut this connection, once it has said so.
    severed: Option<SeverReason>,
    /// How long the next attempt may be silent.
    silence: Duration,
    /// How long to wait before the next attempt.
    pause: Duration,
}

impl Client<'_> {
    fn attempt(&mut self) -> Result<Attempt, ExecError> {
        let start = self.request.start;
        let attempt_end = (Instant::now() + self.silence).min(start.deadline());
        let mut watch = start.at(attempt_end);
        let opened = Connection::open(self.request.endpoint, &self.flight, &watch);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => return self.without_connection(error),
        };
        if self.fate == Fate::NotRun {
            self.fate = Fate::Unknown;
        }
        self.severed = None;
        let mut stream = ExecStream::new();
        let mut is_silent = true;
        loop {
            match connection.read(&watch) {
                Ok(bytes) => stream.handle_bytes(bytes),
                Err(error) => {
                    if matches!(error, ConnectionError::Deadline) && is_silent {
                        self.unanswered.push(connection);
                    }
                    return self.without_connection(error);
                }
            }
            if is_silent {
                // It has the request. Asking again could only move the command's output away from
                // here.
                is_silent = false;
                watch = start;
            }
            while let Some(event) = self.poll_event(&mut stream)? {
                if matches!(event, ExecEvent::Started(_)) {
                    watch = self.request.end;
                }
                if let Some(attempt) = self.handle(event)? {
                    return Ok(attempt);
                }
            }
        }
    }

    fn poll_event(&self, stream: &mut ExecStream) -> Result<Option<ExecEvent>, ExecError> {
        let fate = self.fate;
        stream
            .poll_event()
            .map_err(|error| ExecError::Protocol(error, fate))
    }

    fn handle(&mut self, event: ExecEvent) -> Result<Option<Attempt>, ExecError> {
        match event {
            ExecEvent::Greeted(_) => {}
            ExecEvent::Started(started) => self.handle_started(&started)?,
            ExecEvent::Severed(reason) => self.severed = Some(reason),
            ExecEvent::Stdout(bytes) => self.hand_on(OutputStream::Stdout, &bytes)?,
            ExecEvent::Stderr(bytes) => self.hand_on(OutputStream::Stderr, &bytes)?,
            ExecEvent::Exited(exited) => return Ok(Some(Attempt::Exited(exited))),
            ExecEvent::Refused(fail) => {
                let may_retry = matches!(fail.code, FailCode::Refusing | FailCode::Limit);
                let error = ExecError::Refused(fail);
                if may_retry {
                    return Ok(Some(Attempt::Again(error)));
                }
                return Err(error);
            }
        }
        Ok(None)
    }

    fn handle_started(&mut self, started: &Started) -> Result<(), ExecError> {
        log::debug!("session {}, pid {}", started.session, started.pid);
        self.fate = Fate::Started;
        for connection in std::mem::take(&mut self.unanswered) {
            if self.missed(started) > 0 {
                self.drain(connection)?;
            }
        }
        let count = self.missed(started);
        if count > 0 && !self.request.may_attach {
            return Err(ExecError::Missed { count });
        }
        if count > 0 {
            log::warn!("{count} bytes of output went to an earlier client of this command");
            self.stdout_len = started.stdout_from;
            self.stderr_len = started.stderr_from;
        }
        Ok(())
    }

    /// Bytes that this connection will not give and that were not handed on.
    const fn missed(&self, started: &Started) -> u64 {
        let stdout = started.stdout_from.saturating_sub(self.stdout_len);
        let stderr = started.stderr_from.saturating_sub(self.stderr_len);
        stdout.saturating_add(stderr)
    }

    /// Hands on what the guest sent on an earlier connection, up to its FAIL(superseded).
    fn drain(&mut self, mut connection: Connection) -> Result<(), ExecError> {
        let mut stream = ExecStream::new();
        while let Ok(bytes) = connection.read(&self.request.start) {
            stream.handle_bytes(bytes);
            while let Ok(Some(event)) = stream.poll_event() {
                match event {
                    ExecEvent::Greeted(_) | ExecEvent::Severed(_) => {}
                    // Not what comes next: this one has nothing for us.
                    ExecEvent::Started(started) if self.missed(&started) > 0 => return Ok(()),
                    ExecEvent::Started(_) => {}
                    ExecEvent::Stdout(bytes) => self.hand_on(OutputStream::Stdout, &bytes)?,
                    ExecEvent::Stderr(bytes) => self.hand_on(OutputStream::Stderr, &bytes)?,
                    ExecEvent::Exited(_) | ExecEvent::Refused(_) => return Ok(()),
                }
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, stream: OutputStream, bytes: &[u8]) -> Result<(), ExecError> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match stream {
            OutputStream::Stdout => self.stdout_len = self.stdout_len.saturating_add(len),
            OutputStream::Stderr => self.stderr_len = self.stderr_len.saturating_add(len),
        }
        (self.output)(stream, bytes).map_err(output_error)
    }

    /// Decides whether a connection that failed is worth another one.
    fn without_connection(&mut self, error: ConnectionError) -> Result<Attempt, ExecError> {
        let fate = self.fate;
        match error {
            ConnectionError::Closed { .. } if fate != Fate::Started => {
                Ok(Attempt::Again(ExecError::Connection(error, fate)))
            }
            ConnectionError::Deadline if fate != Fate::Started => {
                self.silence = (self.silence * 2).min(SILENCE_MAX);
                self.pause = Duration::ZERO;
                Ok(Attempt::Again(ExecError::Deadline(fate)))
            }
            ConnectionError::Deadline => Err(ExecError::Deadline(fate)),
            ConnectionError::Closed { .. } if self.severed.is_some() => {
                let reason = self.severed.unwrap_or(SeverReason::Shutdown);
                Err(ExecError::Severed(reason, fate))
            }
            ConnectionError::Closed { .. }
            | ConnectionError::VmmEnded
            | ConnectionError::NotHybridVsock(_)
            | ConnectionError::Local { .. } => Err(ExecError::Connection(error, fate)),
        }
    }

    /// Waits before the next attempt. When there is no time for one, `error` is the end.
    fn back_off(&mut self, error: ExecError) -> Result<(), ExecError> {
        log::debug!("{}: {error}; asking again", self.request.endpoint);
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
        if until >= self.request.start.deadline() {
            return Err(error);
        }
        match pause(&self.request.start, until) {
            Ok(()) => Ok(()),
            Err(AskErrorReason::VmmEnded) => {
                Err(ExecError::Connection(ConnectionError::VmmEnded, self.fate))
            }
            Err(AskErrorReason::Local(source)) => Err(ExecError::Local(source)),
            Err(AskErrorReason::Exchange(_) | AskErrorReason::Connection(_)) => Err(error),
        }
    }
}

fn output_error(error: io::Error) -> ExecError {
    if error.kind() == io::ErrorKind::TimedOut {
        ExecError::Deadline(Fate::Started)
    } else {
        ExecError::Output(error)
    }
}

#[cfg(test)]
mod tests;
