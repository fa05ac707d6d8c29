//! Moves the bytes of a [`SessionClient`]: between the guest, this program's standard streams, its
//! signals and its terminal, with one wait for all of them.
//!
//! No one of these holds up another. Output that its reader does not take is kept, up to the limit
//! at which the client stops reading; input is read only when the guest has room for it; and what
//! the guest asks is answered meanwhile. Only opening a connection waits by itself, for as long as
//! an attempt may take.

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

/// Reads of the connection in a row, before the others have their turn.
const READS_MAX: usize = 16;

/// How long the last words to the guest may take to leave: that its command shall end.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// What this program has for the session.
#[derive(Debug)]
pub(crate) struct Local<'a> {
    /// Where standard input comes from; `None` sends none.
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Signals that are passed on.
    pub(crate) signals: Option<&'a Signals>,
    /// The terminal on standard input, which a session with a terminal takes over.
    pub(crate) terminal: Option<&'a mut Terminal>,
}

/// A session to be had.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// What is asked of it.
    pub(crate) request: Request,
    pub(crate) deadlines: Deadlines,
    /// The life of the VMM. Its deadline has no meaning here.
    pub(crate) watch: Watch<'a>,
    /// Whether all that is wanted is that the session runs.
    pub(crate) is_done_when_started: bool,
}

/// How a session was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It runs, and nothing else was wanted.
    Started(Started),
    Exited(Exited),
}

/// Has the session, until it has ended or nothing more can be had of it.
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
        // Before any message is printed.
        if let Err(error) = terminal.set(Mode::Original) {
            log::warn!("cannot put the terminal back: {error}");
        }
    }
    if let Some(started) = result? {
        return Ok(Outcome::Started(started));
    }
    let last = driver.last;
    let result = driver.client.into_result().map(Outcome::Exited);
    result.map_err(|error| ClientError::Session { error, last })
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
    /// When the user asked for an end that the guest has not confirmed.
    interrupted_at: Option<Instant>,
    /// What became of the latest connection that failed.
    last: Option<io::Error>,
    gaps: Gaps,
}

impl Driver<'_> {
    /// Runs until there is nothing more to do; gives STARTED when that was all that was wanted.
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

    /// While the guest cannot be reached, the keys that make signals are the user's.
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

    /// Tells the client what became of the connection, unless that makes the client pointless.
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

    /// One wait, and everything that it was for. What the guest has sent is taken before anything
    /// is given up: after a stop of this process every deadline may have passed.
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
        // The last words of a dying VMM were taken above.
        if ready.process && !ready.connection {
            return Err(ClientError::VmmEnded(self.client.fate()));
        }
        Ok(())
    }

    /// Takes what the guest has sent.
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
                    // Before the first output is shown, which may be a question.
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

    /// Output was written, or could not be. Without anybody to read it the command has no purpose;
    /// its complaints alone are taken for read.
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
        // A guest that does not take it ends the command when its client stays away.
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
                    // What the guest said before it closed is still to be read.
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
