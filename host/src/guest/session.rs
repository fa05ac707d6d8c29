//! Moves the bytes of a [`SessionClient`]: between the guest, this program's standard streams, its
//! signals and its terminal, with one wait for all of them.
//!
//! None of these delays another. Output that its reader does not take is kept, up to a limit at
//! which the client stops reading from the guest. Input is read only when the guest has room for
//! it. PINGs are answered meanwhile. Only opening a connection blocks, for as long as an attempt
//! may take.

mod ending;
mod error;
mod gaps;
mod user;
mod wait;

use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use shared::message::{AttachMode, Exited, SeverReason, Started, Stream};
use shared::session_client::{Deadlines, Event, Request, SessionClient, Want, severed_text};

pub(crate) use self::error::ClientError;
use self::error::Loss;
use self::gaps::Gaps;
use super::HOST_VERSION;
use super::address::Endpoint;
use super::connection::{Connection, ConnectionError, Patience};
use super::outlet::Outlet;
use crate::os::deadline::Watch;
use crate::os::signals::Signals;
use crate::os::terminal::{Mode, Terminal};

const INPUT_READ_LEN: usize = 64 * 1024;

/// Reads of the connection in a row, before the other descriptors have their turn.
const READS_MAX: usize = 16;

/// How much longer than a command's time limit a guest that answers may take to end the command:
/// its delay from TERM to KILL, and as long again.
pub(crate) const END_GRACE: Duration = Duration::from_secs(10);

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
    /// Whether a guest that is not there yet is waited for.
    pub(crate) is_awaited: bool,
    /// How much longer than `deadlines.end` a guest that answers may take to end the command.
    pub(crate) end_grace: Duration,
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
    let owns = match &session.request {
        Request::Exec { .. } => true,
        Request::Attach { attach, .. } => attach.mode == AttachMode::Own,
    };
    let client = SessionClient::new(session.request, HOST_VERSION, now, session.deadlines)
        .with_end_grace(session.end_grace);
    let mut driver = Driver {
        endpoint: session.endpoint,
        watch: session.watch,
        patience: Patience::new(session.is_awaited, now),
        is_done_when_started: session.is_done_when_started,
        client,
        connection: None,
        outlets: [Outlet::new(local.stdout), Outlet::new(local.stderr)],
        owns,
        stdin: local.stdin,
        is_input_terminal: local.stdin.is_some_and(|stdin| stdin.is_terminal()),
        input_len: 0,
        signals: local.signals,
        terminal: local.terminal,
        has_tty: false,
        input: vec![0; local.stdin.map_or(0, |_| INPUT_READ_LEN)].into_boxed_slice(),
        started: None,
        is_interrupted: false,
        loss: None,
        kill_at: None,
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
        Ok(None) => driver.into_outcome(),
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
    patience: Patience,
    is_done_when_started: bool,
    client: SessionClient,
    connection: Option<Connection>,
    outlets: [Outlet<'a>; 2],
    /// Whether the session is this client's, and not one that it only looks at.
    owns: bool,
    stdin: Option<BorrowedFd<'a>>,
    /// Whether standard input was a terminal from the start.
    is_input_terminal: bool,
    /// Number of bytes of standard input that were read.
    input_len: u64,
    signals: Option<&'a Signals>,
    terminal: Option<&'a mut Terminal>,
    /// Whether the session has a terminal.
    has_tty: bool,
    input: Box<[u8]>,
    started: Option<Started>,
    /// Whether the user has sent a signal to end the command.
    is_interrupted: bool,
    /// What was lost on this side.
    loss: Option<Loss>,
    /// When to kill the command, which was sent TERM.
    kill_at: Option<Instant>,
    /// Why the latest connection failed.
    last: Option<io::Error>,
    gaps: Gaps,
}

impl Driver<'_> {
    /// The command's end, once nothing is left to do.
    fn into_outcome(self) -> Result<Outcome, ClientError> {
        let (last, loss) = (self.last, self.loss);
        match (self.client.into_result(), loss) {
            (Ok(exited), None) => Ok(Outcome::Exited(exited)),
            (Ok(exited), Some(loss)) => Err(ClientError::Lost(loss, exited.status.shell_code())),
            (Err(error), loss) => {
                if let Some(loss) = loss {
                    log::warn!("{loss}");
                }
                Err(ClientError::Session { error, last })
            }
        }
    }

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
        let set = terminal.set(mode);
        set.map_err(|error| self.terminal_failed(error))
    }

    fn connect(&mut self, until: Instant) -> Result<(), ClientError> {
        self.connection = None;
        let flight = self.client.flight();
        match Connection::open(self.endpoint, &flight, &self.watch.at(until)) {
            Ok(connection) => {
                self.patience.note_connected();
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
        let (fate, now) = (self.client.known_fate(), Instant::now());
        match self.patience.weigh(error, now, &self.watch) {
            ConnectionError::Closed { source } => {
                log::debug!("{}: {source}", self.endpoint);
                self.last = Some(source);
                self.client.handle_closed(now);
                Ok(())
            }
            ConnectionError::Deadline => {
                self.client.handle_timeout(now);
                Ok(())
            }
            ConnectionError::VmmEnded => Err(ClientError::VmmEnded(fate)),
            error @ (ConnectionError::Absent { .. }
            | ConnectionError::NotHybridVsock(_)
            | ConnectionError::Local { .. }) => Err(ClientError::Connection(error, fate)),
        }
    }

    /// Waits once and handles what has become ready. What the guest has sent is handled before
    /// deadlines: after a stop of this process all of them may have passed.
    fn turn(&mut self, until: Instant) -> Result<(), ClientError> {
        let until = self.kill_at.map_or(until, |at| at.min(until));
        let ready = self.wait(until)?;
        self.kill_if_due();
        if ready.hangup {
            return Err(self.hang_up());
        }
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
            return Err(ClientError::VmmEnded(self.client.known_fate()));
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
