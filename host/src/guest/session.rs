//! Moves the bytes of a [`SessionClient`]: between the guest, this program's standard streams, its
//! signals and its terminal, with one wait for all of them.
//!
//! None of these delays another. Output that its reader does not take is kept, up to a limit at
//! which the client stops reading from the guest. Input is read only when the guest has room for
//! it. PINGs are answered meanwhile. Only opening a connection blocks, for as long as an attempt
//! may take.

mod error;
mod gaps;
mod user;
mod wait;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::message::{Exited, SeverReason, Started, Stream};
use shared::session_client::{Deadlines, Event, Request, SessionClient, Want, severed_text};

pub(crate) use self::error::ClientError;
use self::gaps::Gaps;
use self::user::number_of;
use super::HOST_VERSION;
use super::address::Endpoint;
use super::connection::{Connection, ConnectionError};
use super::outlet::Outlet;
use crate::os::deadline::Watch;
use crate::os::signals::Signals;
use crate::os::terminal::{Mode, Terminal};

const INPUT_READ_LEN: usize = 64 * 1024;

/// Reads of the connection in a row, before the other descriptors have their turn.
const READS_MAX: usize = 16;

/// How long the last frame, which ends the command, may take to leave.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// The streams and signals of this program that a session uses.
#[derive(Debug)]
pub(crate) struct Local<'a> {
    /// Where standard input comes from; `None` sends none.
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Signals that are forwarded.
    pub(crate) signals: Option<&'a Signals>,
    /// The terminal on standard input, which a session with a terminal takes over.
    pub(crate) terminal: Option<&'a mut Terminal>,
}

/// A session to run, and what limits it.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) request: Request,
    pub(crate) deadlines: Deadlines,
    /// Watches the VMM. Its deadline is not used.
    pub(crate) watch: Watch<'a>,
    /// Return once the session has started.
    pub(crate) is_done_when_started: bool,
}

/// How the client's part of a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has started, and the caller wanted no more.
    Started(Started),
    Exited(Exited),
}

/// Runs the session until it has ended, or until no more can be known of it.
pub(crate) fn run(session: Session<'_>, local: Local<'_>) -> Result<Outcome, ClientError> {
    let now = Instant::now();
    let client = SessionClient::new(session.request, HOST_VERSION, now, session.deadlines);
    let mut driver = Driver {
        endpoint: session.endpoint,
        watch: session.watch,
        is_done_when_started: session.is_done_when_started,
        client,
        connection: None,
        outlets: [Outlet::new(local.stdout), Outlet::new(local.stderr)],
        stdin: local.stdin,
        signals: local.signals,
        terminal: local.terminal,
        has_tty: false,
        input: vec![0; local.stdin.map_or(0, |_| INPUT_READ_LEN)].into_boxed_slice(),
        started: None,
        interrupted_at: None,
        last: None,
        gaps: Gaps::default(),
    };
    let result = driver.run();
    driver.gaps.say_rest();
    if let Some(terminal) = driver.terminal.take() {
        // Messages that follow need a terminal in its original mode.
        if let Err(error) = terminal.set(Mode::Original) {
            log::warn!("cannot restore the terminal: {error}");
        }
    }
    let doubt = driver.client.doubt();
    let result = match result {
        Ok(Some(started)) => Ok(Outcome::Started(started)),
        Ok(None) => {
            let last = driver.last;
            let result = driver.client.into_result().map(Outcome::Exited);
            result.map_err(|error| ClientError::Session { error, last })
        }
        Err(error) => Err(error),
    };
    result.map_err(|error| match doubt {
        Some((id, origin)) => ClientError::InDoubt {
            error: Box::new(error),
            id,
            instance: origin.instance,
        },
        None => error,
    })
}

struct Driver<'a> {
    endpoint: &'a Endpoint,
    watch: Watch<'a>,
    is_done_when_started: bool,
    client: SessionClient,
    connection: Option<Connection>,
    outlets: [Outlet<'a>; 2],
    stdin: Option<BorrowedFd<'a>>,
    signals: Option<&'a Signals>,
    terminal: Option<&'a mut Terminal>,
    /// Whether the session has a terminal.
    has_tty: bool,
    input: Box<[u8]>,
    started: Option<Started>,
    /// When the user sent a signal that the guest has not confirmed.
    interrupted_at: Option<Instant>,
    /// Why the latest connection failed.
    last: Option<io::Error>,
    gaps: Gaps,
}

impl Driver<'_> {
    /// Runs until nothing is left to do. Returns STARTED if the caller wanted no more.
    fn run(&mut self) -> Result<Option<Started>, ClientError> {
        loop {
            self.set_terminal()?;
            match self.client.poll(Instant::now()) {
                Want::Connect { until } => self.connect(until)?,
                Want::Talk { until } => self.turn(until)?,
                Want::Pause { until } => {
                    self.connection = None;
                    self.turn(until)?;
                }
                Want::Finished => return Ok(None),
            }
            if self.is_done_when_started && self.started.is_some() {
                return Ok(self.started);
            }
        }
    }

    /// While the guest cannot be reached, Ctrl-C and Ctrl-\ raise signals in this program.
    fn set_terminal(&mut self) -> Result<(), ClientError> {
        let Some(terminal) = &mut self.terminal else {
            return Ok(());
        };
        let mode = match (self.has_tty, self.client.is_attached()) {
            (false, _) => Mode::Original,
            (true, true) => Mode::Raw,
            (true, false) => Mode::RawWithSignals,
        };
        terminal.set(mode).map_err(ClientError::Local)
    }

    fn connect(&mut self, until: Instant) -> Result<(), ClientError> {
        self.connection = None;
        let flight = self.client.flight();
        match Connection::open(self.endpoint, &flight, &self.watch.at(until)) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.client.handle_connected(Instant::now());
                Ok(())
            }
            Err(error) => self.lost(error),
        }
    }

    /// Tells the client how the connection ended, unless no other connection can succeed.
    fn lost(&mut self, error: ConnectionError) -> Result<(), ClientError> {
        self.connection = None;
        let fate = self.client.fate();
        match error {
            ConnectionError::Closed { source } => {
                log::debug!("{}: {source}", self.endpoint);
                self.last = Some(source);
                if self.client.is_attached() {
                    self.interrupted_at = None;
                }
                self.client.handle_closed(Instant::now());
                Ok(())
            }
            ConnectionError::Deadline => {
                self.client.handle_timeout(Instant::now());
                Ok(())
            }
            ConnectionError::VmmEnded => Err(ClientError::VmmEnded(fate)),
            ConnectionError::NotHybridVsock(_) | ConnectionError::Local { .. } => {
                Err(ClientError::Connection(error, fate))
            }
        }
    }

    /// Waits once and handles what has become ready. What the guest has sent is handled before
    /// deadlines: after a stop of this process all of them may have passed.
    fn turn(&mut self, until: Instant) -> Result<(), ClientError> {
        let ready = self.wait(until)?;
        if ready.connection {
            self.talk()?;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if ready.outlets[stream.index()] {
                let result = self.outlets[stream.index()].flush();
                self.handed_on(stream, result)?;
            }
        }
        if ready.stdin {
            self.read_input()?;
        }
        if ready.signals {
            self.read_signals()?;
        }
        if self.connection.is_some() {
            self.write()?;
        }
        self.client.handle_timeout(Instant::now());
        // What the guest sent before the VMM died was handled above.
        if ready.process && !ready.connection {
            return Err(ClientError::VmmEnded(self.client.fate()));
        }
        Ok(())
    }

    /// Reads and handles what the guest has sent.
    fn talk(&mut self) -> Result<(), ClientError> {
        for _ in 0..READS_MAX {
            let Some(connection) = &mut self.connection else {
                return Ok(());
            };
            if !self.client.wants_read() {
                return Ok(());
            }
            match connection.try_read() {
                Ok(Some(bytes)) => self.client.handle_bytes(bytes, Instant::now()),
                Ok(None) => return Ok(()),
                Err(error) => return self.lost(error),
            }
            self.take_events()?;
            if self.is_done_when_started && self.started.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        while let Some(event) = self.client.poll_event(now) {
            match event {
                Event::Output { stream, bytes } => {
                    let result = self.outlets[stream.index()].push(bytes);
                    self.handed_on(stream, result)?;
                }
                Event::Started(started) => {
                    self.begin(started);
                    // Raw mode comes first: the first output may ask the user for input.
                    self.set_terminal()?;
                    if self.is_done_when_started {
                        return Ok(());
                    }
                }
                Event::Resumed(_) => {
                    log::info!("attached to the session again");
                    self.interrupted_at = None;
                }
                Event::Gap(gap) => self.gaps.note(gap),
                Event::Severed(reason) => log_severed(reason),
                Event::Exited(_) => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, started: Started) {
        log::debug!("session {}, pid {}", started.session, started.pid);
        self.started = Some(started);
        self.has_tty = started.tty;
        if let (true, Some(size)) = (started.tty, self.terminal.as_ref().and_then(|t| t.size())) {
            self.client.handle_resize(size);
        }
    }

    /// Handles the result of a write of output. A closed standard output ends the command. A closed
    /// standard error does not, and its bytes count as read.
    fn handed_on(&mut self, stream: Stream, result: io::Result<usize>) -> Result<(), ClientError> {
        match (result, stream) {
            (Ok(len), _) => {
                self.client.handle_consumed(stream, len, Instant::now());
                Ok(())
            }
            (Err(_), Stream::Stderr) => {
                let len = self.outlets[stream.index()].discard();
                self.client.handle_consumed(stream, len, Instant::now());
                Ok(())
            }
            (Err(error), Stream::Stdout) => {
                self.client.handle_signal(number_of(Signal::SIGTERM));
                self.say_last_words();
                Err(ClientError::Output(error))
            }
        }
    }

    fn say_last_words(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let watch = self.watch.at(Instant::now() + LAST_WORDS_MAX);
        let bytes = self.client.poll_output();
        // If the guest does not receive it, the guest ends the command after `--keep`.
        if let Err(error) = connection.write_all(bytes, &watch) {
            log::debug!("{}: {error}", self.endpoint);
        }
    }

    fn write(&mut self) -> Result<(), ClientError> {
        while let Some(connection) = &mut self.connection {
            let bytes = self.client.poll_output();
            if bytes.is_empty() {
                break;
            }
            match connection.try_write(bytes) {
                Ok(0) => break,
                Ok(len) => self.client.handle_written(len),
                Err(error) => {
                    // What the guest sent before it closed can still be read.
                    self.talk()?;
                    return match &self.connection {
                        Some(_) => self.lost(error),
                        None => Ok(()),
                    };
                }
            }
        }
        Ok(())
    }
}

fn log_severed(reason: SeverReason) {
    log::info!("{}", severed_text(reason));
}

#[cfg(test)]
mod tests;
