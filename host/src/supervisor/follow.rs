//! Following the output of the workload that a guest's image names, on however many connections it
//! takes.
//!
//! The conversation is a [`SessionClient`]'s. What comes goes into a [`Journal`], and from there to
//! a [`Sink`], in batches; the guest is told of a batch once the sink has it.
//!
//! A guest that cannot be reached is tried less and less often, without an end: whether it is
//! paused for a snapshot, still booting, or has no agent at all, is not to be told apart, and the
//! VM's end ends the wait.

use std::io;
use std::time::{Duration, Instant};

use shared::message::{
    Attach, AttachMode, Exited, Fail, FailCode, Message, SessionInfo, SessionRef, SessionsRequest,
    Stream,
};
use shared::session_client::{Deadlines, Event, Request, SessionClient, SessionError, Want};

use crate::error::Failure;
use crate::guest::HOST_VERSION;
use crate::guest::address::Endpoint;
use crate::guest::answer::{AskError, AskErrorReason};
use crate::guest::connection::{Connection, ConnectionError};
use crate::guest::driver::{ask, pause};
use crate::os::deadline::Watch;
use crate::vmdir::output_log::journal::Journal;
use crate::vmdir::output_log::record::Record;

/// Bytes after which a batch is complete: a quarter of the guest's ring.
const BATCH_LEN: usize = 64 * 1024;

/// How long bytes wait for others, so that a workload that prints a little all the time does not
/// cause as many replacements of a file.
const BATCH_TIME: Duration = Duration::from_millis(50);

/// Longest pause between two attempts to reach a guest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause after a guest has ended or broken the protocol, so that one that always does costs little.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// How long the guest may take to take an acknowledgement.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Where the output goes.
pub(crate) trait Sink {
    /// Where it is collected.
    fn journal(&mut self) -> &mut Journal;

    /// Hands on what was collected. Afterwards the guest need not keep it.
    fn commit(&mut self) -> Result<(), Failure>;

    /// All output was handed on, and the workload has ended. Afterwards the guest need not keep
    /// that either.
    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure>;

    /// Waits until it is no harm to connect.
    fn await_turn(&mut self) -> Result<(), Failure>;
}

/// Why there is no more to follow.
#[derive(Debug)]
pub(crate) enum End {
    Exited,
    /// As much was handed on as was wanted.
    Reached,
    /// The VMM has ended, and what it had sent was handed on.
    VmmEnded,
    /// The guest has no workload, or its agent knows of none.
    NoWorkload(Fail),
    /// The conversation cannot go on.
    Failed(SessionError),
    /// The guest cannot be connected to.
    Unreachable(ConnectionError),
}

/// How long the two streams of the workload were at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Lengths {
    /// Whether the log has all of that.
    #[must_use]
    pub(crate) fn are_in(self, record: &Record) -> bool {
        let has = |wanted: Option<u64>, len| wanted.is_some_and(|wanted| wanted >= len);
        has(record.stdout, self.stdout) && has(record.stderr, self.stderr)
    }
}

/// Asks the guest how much its workload has printed; `None` when it has no workload.
pub(crate) fn lengths(endpoint: &Endpoint, watch: &Watch<'_>) -> Result<Option<Lengths>, AskError> {
    let workload = find_workload(endpoint, watch)?;
    Ok(workload.map(|session| Lengths {
        stdout: session.stdout_end,
        stderr: session.stderr_end,
    }))
}

/// Asks the guest for its workload.
pub(crate) fn find_workload(
    endpoint: &Endpoint,
    watch: &Watch<'_>,
) -> Result<Option<SessionInfo>, AskError> {
    let mut after = 0;
    loop {
        let request = shared::exchange::Request::Sessions(SessionsRequest { after });
        let Message::Sessions(list) = ask(endpoint, request, watch)?.message else {
            return Ok(None);
        };
        // The guest's numbers grow from answer to answer, which bounds this.
        after = list.sessions.last().map_or(after, |last| last.session);
        let has_more = list.more && !list.sessions.is_empty();
        let workload = list
            .sessions
            .into_iter()
            .find(|session| session.id.is_none());
        if workload.is_some() || !has_more {
            return Ok(workload);
        }
    }
}

/// Follows one workload into one sink.
#[derive(Debug)]
pub(crate) struct Follower<'a, S> {
    pub(crate) endpoint: &'a Endpoint,
    /// Ends all waits.
    pub(crate) watch: Watch<'a>,
    /// As owner, or as one of many who look on.
    pub(crate) mode: AttachMode,
    /// Where the output goes.
    pub(crate) sink: &'a mut S,
    /// How much is wanted; `None`: all that ever comes.
    pub(crate) wanted: Option<Lengths>,
}

/// How far one client has come.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes of each stream that wait for a commit.
    batch: [usize; 2],
    /// When the batch is complete even if it is short.
    commit_at: Option<Instant>,
    /// How the workload ended.
    exited: Option<Exited>,
    /// How long to wait before the next attempt.
    pause: Duration,
}

impl<S: Sink> Follower<'_, S> {
    /// Follows until there is no more. An error is the sink's, whose last batch the guest still
    /// has.
    pub(crate) fn run(&mut self) -> Result<End, Failure> {
        let mut progress = Progress::default();
        loop {
            let record = *self.sink.journal().committed();
            let attach = Attach {
                session: SessionRef::Workload,
                generation: None,
                mode: self.mode,
                stdout_from: record.stdout,
                stderr_from: record.stderr,
            };
            let request = Request::Attach {
                attach,
                stdin: false,
            };
            let deadlines = Deadlines {
                start: None,
                absence_max: None,
                end: Some(self.watch.deadline()),
            };
            let mut client = SessionClient::new(request, HOST_VERSION, Instant::now(), deadlines);
            if let Some(end) = self.drive(&mut client, &mut progress)? {
                return Ok(end);
            }
            let Err(error) = client.into_result() else {
                return Ok(End::Exited);
            };
            log::debug!("{}: {error}", self.endpoint);
            match error {
                SessionError::Refused { fail, .. }
                    if matches!(fail.code, FailCode::NoSession | FailCode::Unsupported) =>
                {
                    return Ok(End::NoWorkload(fail));
                }
                // The agent was started again.
                SessionError::Forgotten => {}
                // The VM is about to end, or its agent is, or that is not as it should be.
                SessionError::ShutDown(_) | SessionError::Protocol { .. } => {
                    progress.pause = progress.pause.max(FAULT_PAUSE);
                }
                SessionError::Refused { .. }
                | SessionError::Superseded
                | SessionError::Absent(_)
                | SessionError::Deadline(_)
                | SessionError::Unanswered
                | SessionError::Undelivered(_)
                | SessionError::Version(_) => return Ok(End::Failed(error)),
            }
        }
    }

    /// Does what the client wants until it is finished, or has no use any more.
    fn drive(
        &mut self,
        client: &mut SessionClient,
        progress: &mut Progress,
    ) -> Result<Option<End>, Failure> {
        let mut connection = None;
        progress.batch = [0; 2];
        loop {
            match client.poll(Instant::now()) {
                Want::Connect { until } => {
                    drop(connection.take());
                    self.commit(client, progress)?;
                    if let Some(end) = self.wait_to_connect(progress)? {
                        return Ok(Some(end));
                    }
                    match self.connect(client, until) {
                        Ok(opened) => connection = opened,
                        Err(error) => return Ok(Some(End::Unreachable(error))),
                    }
                }
                Want::Talk { until } => {
                    let talked = match &mut connection {
                        Some(connection) => self.talk(connection, client, progress, until),
                        None => Err(closed()),
                    };
                    if let Err(error) = talked {
                        log::debug!("{}: {error}", self.endpoint);
                        connection = None;
                        client.handle_closed(Instant::now());
                    }
                    self.take_events(client, progress)?;
                }
                Want::Pause { until } => {
                    drop(connection.take());
                    self.commit(client, progress)?;
                    // A VMM that has ended is noticed before the next attempt.
                    let _ = pause(&self.watch, until);
                }
                Want::Finished => {
                    self.commit(client, progress)?;
                    return Ok(None);
                }
            }
            if self.is_reached() {
                return Ok(Some(End::Reached));
            }
        }
    }

    fn is_reached(&mut self) -> bool {
        let record = self.sink.journal().committed();
        self.wanted.is_some_and(|wanted| wanted.are_in(record))
    }

    /// Waits before an attempt, longer each time. Gives the end if there is to be none.
    fn wait_to_connect(&mut self, progress: &mut Progress) -> Result<Option<End>, Failure> {
        let until = (Instant::now() + progress.pause).min(self.watch.deadline());
        progress.pause = (progress.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
        let mut waited = pause(&self.watch, until);
        if waited.is_ok() {
            self.sink.await_turn()?;
            waited = pause(&self.watch, Instant::now());
        }
        match waited {
            Ok(()) | Err(AskErrorReason::Exchange(_)) => Ok(None),
            Err(AskErrorReason::VmmEnded) => Ok(Some(End::VmmEnded)),
            Err(AskErrorReason::Connection(error)) => Ok(Some(End::Unreachable(error))),
            Err(AskErrorReason::Local(source)) => {
                Ok(Some(End::Unreachable(ConnectionError::Local { source })))
            }
        }
    }

    /// Opens a connection; an error is one that another attempt would have, too.
    fn connect(
        &self,
        client: &mut SessionClient,
        until: Instant,
    ) -> Result<Option<Connection>, ConnectionError> {
        let opened = Connection::open(self.endpoint, &client.flight(), &self.watch.at(until));
        let now = Instant::now();
        match opened {
            Ok(connection) => {
                client.handle_connected(now);
                Ok(Some(connection))
            }
            Err(error @ (ConnectionError::NotHybridVsock(_) | ConnectionError::Local { .. })) => {
                Err(error)
            }
            Err(ConnectionError::Deadline) => {
                client.handle_timeout(now);
                Ok(None)
            }
            Err(error @ (ConnectionError::Closed { .. } | ConnectionError::VmmEnded)) => {
                log::debug!("{}: {error}", self.endpoint);
                client.handle_closed(now);
                Ok(None)
            }
        }
    }

    /// Writes what is to be written, and waits for bytes of the guest or for something to be due.
    fn talk(
        &self,
        connection: &mut Connection,
        client: &mut SessionClient,
        progress: &Progress,
        until: Instant,
    ) -> Result<(), ConnectionError> {
        let bytes = client.poll_output();
        if !bytes.is_empty() {
            let len = bytes.len();
            connection.write_all(bytes, &self.watch.at(Instant::now() + WRITE_MAX))?;
            client.handle_written(len);
            return Ok(());
        }
        let until = progress.commit_at.map_or(until, |at| at.min(until));
        match connection.read(&self.watch.at(until)) {
            Ok(bytes) => client.handle_bytes(bytes, Instant::now()),
            Err(ConnectionError::Deadline) => client.handle_timeout(Instant::now()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take_events(
        &mut self,
        client: &mut SessionClient,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let journal = self.sink.journal();
        while let Some(event) = client.poll_event(Instant::now()) {
            match event {
                Event::Started(started) | Event::Resumed(started) => {
                    journal.handle_attached(&started);
                    progress.pause = Duration::ZERO;
                    // At once, so that whoever looks sees that there is a workload.
                    progress.commit_at = Some(Instant::now());
                }
                Event::Output { stream, bytes } => {
                    journal.handle_output(stream, bytes);
                    progress.batch[stream.index()] += bytes.len();
                }
                Event::Gap(gap) => journal.handle_gap(gap),
                Event::Severed(reason) => log::debug!("{}: cut: {reason}", self.endpoint),
                Event::Exited(exited) => progress.exited = Some(exited),
            }
        }
        if journal.is_dirty() {
            let soon = Instant::now() + BATCH_TIME;
            progress.commit_at.get_or_insert(soon);
        }
        let is_due = progress.commit_at.is_some_and(|at| Instant::now() >= at);
        if is_due || journal.pending_len() >= BATCH_LEN || progress.exited.is_some() {
            self.commit(client, progress)?;
        }
        if let Some(exited) = progress.exited.take() {
            self.sink.handle_end(&exited)?;
        }
        Ok(())
    }

    /// Hands the batch on, and lets the guest know.
    fn commit(
        &mut self,
        client: &mut SessionClient,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        if progress.commit_at.take().is_none() && !self.sink.journal().is_dirty() {
            return Ok(());
        }
        self.sink.commit()?;
        let batch = std::mem::take(&mut progress.batch);
        for stream in [Stream::Stdout, Stream::Stderr] {
            client.handle_consumed(stream, batch[stream.index()], Instant::now());
        }
        Ok(())
    }
}

fn closed() -> ConnectionError {
    ConnectionError::Closed {
        source: io::ErrorKind::NotConnected.into(),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
