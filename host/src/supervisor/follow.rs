//! Following the output of a guest's workload, over as many connections as necessary.
//!
//! A [`SessionClient`] holds the conversation. Output goes into a [`Journal`] and from there to a
//! [`Sink`], in batches; we acknowledge a batch to the guest once the sink has it.
//!
//! A guest that cannot be reached is tried less and less often, until the VM ends: we cannot tell
//! whether it is paused for a snapshot, still booting, or has no agent at all.

use std::io;
use std::time::{Duration, Instant};

use shared::message::{Attach, AttachMode, Exited, Fail, FailCode, SessionRef, Stream};
use shared::session_client::{Deadlines, Event, Request, SessionClient, SessionError, Want};

use crate::error::Failure;
use crate::guest::HOST_VERSION;
use crate::guest::address::Endpoint;
use crate::guest::answer::AskErrorReason;
use crate::guest::connection::{Connection, ConnectionError};
use crate::guest::driver::pause;
use crate::os::deadline::Watch;
use crate::supervisor::workload::Lengths;
use crate::vmdir::output_log::journal::Journal;

/// Bytes of a full batch: a quarter of the guest's ring.
const BATCH_LEN: usize = 64 * 1024;

/// How long a batch waits for more bytes. Each commit replaces a file, so a workload that prints
/// little but often must not cause as many commits.
const BATCH_TIME: Duration = Duration::from_millis(50);

/// Longest pause between two attempts to reach a guest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Least pause after a guest has shut down or broken the protocol: it may do so every time.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// How long the guest may take to accept an acknowledgement.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Where the output goes.
pub(crate) trait Sink {
    fn journal(&mut self) -> &mut Journal;

    /// Writes what the journal has collected. The guest may discard it afterwards.
    fn commit(&mut self) -> Result<(), Failure>;

    /// The workload has ended, and all its output was committed. The guest may forget the workload
    /// afterwards.
    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure>;

    /// Waits until a new connection does no harm.
    fn await_turn(&mut self) -> Result<(), Failure>;
}

/// Why there is nothing more to follow.
#[derive(Debug)]
pub(crate) enum End {
    Exited,
    /// As much was committed as was wanted.
    Reached,
    /// The VMM has ended. All that its guest had sent was committed.
    VmmEnded,
    /// The guest has no workload, or its agent does not support any.
    NoWorkload(Fail),
    /// The conversation cannot continue.
    Failed(SessionError),
    /// No connection to the guest is possible.
    Unreachable(ConnectionError),
}

#[derive(Debug)]
pub(crate) struct Follower<'a, S> {
    pub(crate) endpoint: &'a Endpoint,
    /// Bounds all waits.
    pub(crate) watch: Watch<'a>,
    pub(crate) mode: AttachMode,
    pub(crate) sink: &'a mut S,
    /// How much to follow; `None`: until the workload ends.
    pub(crate) wanted: Option<Lengths>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Bytes of each stream that are not committed yet.
    batch: [usize; 2],
    /// When to commit even a batch that is not full.
    commit_at: Option<Instant>,
    /// The workload's end, until the sink has it.
    exited: Option<Exited>,
    /// How long to wait before the next attempt to connect.
    pause: Duration,
}

impl<S: Sink> Follower<'_, S> {
    /// Follows until there is no more. Errors are the sink's. The guest then still has the batch
    /// that the sink failed to commit.
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
                // The agent was restarted.
                SessionError::Forgotten => {}
                // The VM or its agent is about to end, or is faulty.
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

    /// Does what the client wants. `None` once it is finished, else an end that it cannot see.
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
                    // The next attempt to connect reports a VMM that has ended.
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

    /// Waits before an attempt to connect, longer each time. Returns an end if the VMM has ended or
    /// the wait itself failed.
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

    /// Opens a connection; `None` if another attempt may succeed, an error if it would not.
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
            // An absent guest may come: the VMM's end is the end of it.
            Err(
                error @ (ConnectionError::Closed { .. }
                | ConnectionError::Absent { .. }
                | ConnectionError::VmmEnded),
            ) => {
                log::debug!("{}: {error}", self.endpoint);
                client.handle_closed(now);
                Ok(None)
            }
        }
    }

    /// Writes pending bytes, or else waits for bytes of the guest, a timeout of the client, or the
    /// time to commit.
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
            let written_by = (Instant::now() + WRITE_MAX).min(self.watch.deadline());
            connection.write_all(bytes, &self.watch.at(written_by))?;
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
                    // Commit at once: the first record shows other commands that there is a
                    // workload.
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

    /// Commits the batch, and acknowledges it to the guest.
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
