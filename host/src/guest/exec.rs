//! The client of EXEC: starts a command in the guest once, however often it has to ask, and hands
//! its output on until it has ended.
//!
//! EXEC is resent, under the same id, only until STARTED has come: a guest that knows the id
//! attaches, so that the command never starts twice. Once the connection is lost after that, how
//! the command ended is not known, and that is what is reported: neither success nor failure.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use shared::message::{Exec, Exited, Fail, FailCode, Hello, Message, SeverReason};

use super::HOST_VERSION;
use super::connection::{Connection, ConnectionError, Endpoint};
use super::driver::{AskErrorReason, pause};
use super::exec_stream::{ExecEvent, ExecStream, ExecStreamError};
use crate::deadline::Watch;
use crate::exit::Exit;
use crate::values::printable;

/// How long the guest may be silent in the first attempt, and at most in a later one.
const SILENCE_FIRST: Duration = Duration::from_millis(250);
const SILENCE_MAX: Duration = Duration::from_secs(2);

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

/// How much is known about the command when its fate is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The request never left: the command did not run.
    NotRun,
    /// The request left and was not answered.
    Unknown,
    /// The command was started, and may still run.
    Started,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRun => "the command did not run",
            Self::Unknown => "whether the command ran is unknown",
            Self::Started => "the command was started; how it ended is unknown",
        })
    }
}

/// Why there is no exit status.
#[derive(Debug)]
pub enum ExecError {
    /// The guest refused the request; the command did not run.
    Refused(Fail),
    /// The guest broke the protocol.
    Protocol(ExecStreamError, Fate),
    /// There was no connection, or it ended.
    Connection(ConnectionError, Fate),
    /// The guest cut the connection on purpose.
    Severed(SeverReason, Fate),
    /// The deadline passed.
    Deadline(Fate),
    /// Output could not be written where it belongs.
    Output(io::Error),
    /// This machine failed.
    Local(io::Error),
}

impl ExecError {
    /// What the error means for the exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(fail) => match fail.code {
                FailCode::NotFound => Exit::NotFound,
                FailCode::NotRunnable => Exit::NotRunnable,
                FailCode::Version
                | FailCode::Protocol
                | FailCode::Stale
                | FailCode::Superseded
                | FailCode::Refusing
                | FailCode::Limit
                | FailCode::Rebind
                | FailCode::Probe
                | FailCode::Unsupported
                | FailCode::Internal => Exit::Guest,
            },
            Self::Deadline(_) => Exit::Deadline,
            Self::Connection(ConnectionError::VmmEnded, _) => Exit::VmmEnded,
            Self::Protocol(..) | Self::Connection(..) | Self::Severed(..) => Exit::Guest,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::OutputClosed,
            Self::Output(_) | Self::Local(_) => Exit::Defect,
        }
    }
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(fail) => match fail.code {
                FailCode::NotFound | FailCode::NotRunnable => f.write_str(&printable(&fail.text)),
                code => write!(
                    f,
                    "the guest refused to run the command ({code}): {}",
                    printable(&fail.text)
                ),
            },
            Self::Protocol(error, fate) => write!(f, "{error}; {fate}"),
            Self::Connection(ConnectionError::Closed { source }, fate) => {
                write!(f, "the connection to the guest ended ({source}); {fate}")
            }
            Self::Connection(error, fate) => write!(f, "{error}; {fate}"),
            Self::Severed(SeverReason::Quiesce, fate) => {
                write!(
                    f,
                    "the guest cut the connection for a snapshot of it; {fate}"
                )
            }
            Self::Severed(SeverReason::Rebind, fate) => {
                write!(
                    f,
                    "the guest cut the connection because it got a new name; {fate}"
                )
            }
            Self::Severed(SeverReason::Shutdown, fate) => {
                write!(
                    f,
                    "the guest cut the connection because it shuts down; {fate}"
                )
            }
            Self::Deadline(fate @ (Fate::NotRun | Fate::Unknown)) => {
                write!(f, "the guest did not answer in time; {fate}")
            }
            Self::Deadline(Fate::Started) => f.write_str(
                "the command did not end in time; its connection was closed, which ends it",
            ),
            Self::Output(_) => f.write_str("cannot write the command's output"),
            Self::Local(_) => f.write_str("cannot wait for the guest"),
        }
    }
}

impl std::error::Error for ExecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Output(source) | Self::Local(source) => Some(source),
            Self::Connection(error @ ConnectionError::Local { .. }, _) => error.source(),
            Self::Refused(_)
            | Self::Protocol(..)
            | Self::Connection(..)
            | Self::Severed(..)
            | Self::Deadline(_) => None,
        }
    }
}

/// Runs `exec` in the guest and gives what `output` did not take: its end.
///
/// `start` bounds the wait until the command runs, `run` the wait for its end.
pub fn run(
    endpoint: &Endpoint,
    exec: &Exec,
    start: &Watch<'_>,
    run: &Watch<'_>,
    output: &mut dyn FnMut(OutputStream, &[u8]) -> io::Result<()>,
) -> Result<Exited, ExecError> {
    let mut flight = Message::Hello(Hello::host(HOST_VERSION)).encode();
    Message::Exec(exec.clone()).encode_into(&mut flight);
    let mut client = Client {
        endpoint,
        flight,
        start,
        run,
        output,
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
    endpoint: &'a Endpoint,
    /// HELLO and EXEC.
    flight: Vec<u8>,
    start: &'a Watch<'a>,
    run: &'a Watch<'a>,
    output: &'a mut dyn FnMut(OutputStream, &[u8]) -> io::Result<()>,
    fate: Fate,
    /// Connections of earlier attempts, of which nothing was heard. A guest that is merely slow
    /// takes the end of one for the end of its client, and the command with it, so they stay open
    /// until another has been answered; the guest then drops them itself.
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
        let attempt_end = (Instant::now() + self.silence).min(self.start.deadline());
        let mut watch = self.start.at(attempt_end);
        let mut connection = match Connection::open(self.endpoint, &self.flight, &watch) {
            Ok(connection) => connection,
            Err(error) => return self.without_connection(error),
        };
        if self.fate == Fate::NotRun {
            self.fate = Fate::Unknown;
        }
        self.severed = None;
        let mut stream = ExecStream::new();
        loop {
            match connection.read(&watch) {
                Ok(bytes) => stream.handle_bytes(bytes),
                Err(error) => {
                    if matches!(error, ConnectionError::Deadline) {
                        self.unanswered.push(connection);
                    }
                    return self.without_connection(error);
                }
            }
            loop {
                let event = stream.poll_event();
                let event = event.map_err(|error| ExecError::Protocol(error, self.fate))?;
                match event {
                    None => break,
                    Some(ExecEvent::Started(started)) => {
                        log::debug!("session {}, pid {}", started.session, started.pid);
                        self.fate = Fate::Started;
                        self.unanswered.clear();
                        watch = *self.run;
                    }
                    Some(event) => {
                        if let Some(attempt) = self.handle(event)? {
                            return Ok(attempt);
                        }
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: ExecEvent) -> Result<Option<Attempt>, ExecError> {
        match event {
            ExecEvent::Greeted(_) | ExecEvent::Started(_) => {}
            ExecEvent::Severed(reason) => self.severed = Some(reason),
            ExecEvent::Stdout(bytes) => {
                (self.output)(OutputStream::Stdout, &bytes).map_err(output_error)?;
            }
            ExecEvent::Stderr(bytes) => {
                (self.output)(OutputStream::Stderr, &bytes).map_err(output_error)?;
            }
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
        log::debug!("{}: {error}; asking again", self.endpoint);
        let until = Instant::now() + self.pause;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
        if until >= self.start.deadline() {
            return Err(error);
        }
        match pause(self.start, until) {
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
