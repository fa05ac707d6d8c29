//! Connections and the sessions that they are attached to: who gets which bytes, and when. No I/O,
//! no clock.
//!
//! ```text
//!                     ┌─▶ cursor of the owner ───▶ outbox ─▶ ACK frees the ring
//! pipe ─▶ ring ───────┼─▶ cursor of an observer ─▶ outbox    GAP where the ring no longer reaches
//!   (one per stream)  └─▶ (who only waits has none)
//! ```
//!
//! Each attached connection has a cursor per stream. Whenever there is more output, or more room in
//! its outbox, the outbox is filled from the cursor on; EXITED follows the last byte, and then the
//! connection is free for another session.
//!
//! Invariants:
//! - What a connection gets of a stream is contiguous, or a GAP names what is missing.
//! - A session has at most one owner. Of two connections that want to be, the one that was accepted
//!   later is, whichever asks first: a host that asks again keeps the connection of its earlier
//!   attempt open, and drops it once it is served.
//! - A connection that is slow or stuck holds up no other one, of this session or of another.

use std::time::Instant;

use shared::message::{Attach, AttachMode, Exited, FailCode, Gap, Message, Stream};

use super::ids::{ConnectionId, SessionId};
use super::outbox::Outbox;
use super::session::{Session, State};
use super::spares::Spares;
use super::state::Request;
use super::timers::Timer;
use super::{Agent, Departure};

/// The answer that a connection is to get for attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// STARTED.
    Started {
        /// Whether its request started the session.
        fresh: bool,
    },
    /// ATTACHED.
    Attached,
}

/// One connection's part in a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attachment {
    pub(super) session: SessionId,
    pub(super) mode: AttachMode,
    /// Offsets of the next bytes that it gets.
    cursors: [u64; 2],
    /// Index of the stream whose turn it is.
    turn: usize,
    /// The answer that it has not got: the session's process has not been started.
    owed: Option<Answer>,
}

impl Attachment {
    /// A part in a session, from these offsets on or from where the session's rings begin. No
    /// cursor is behind the end of its stream.
    pub(super) fn new(session: &Session, mode: AttachMode, from: [Option<u64>; 2]) -> Self {
        let cursor = |stream: Stream| {
            let ring = session.ring(stream);
            let wanted = from[stream.index()].unwrap_or_else(|| ring.start());
            wanted.min(ring.end())
        };
        Self {
            session: session.id(),
            mode,
            cursors: [cursor(Stream::Stdout), cursor(Stream::Stderr)],
            turn: 0,
            owed: None,
        }
    }

    /// Offset of the next byte of a stream that it gets: what is before it was sent.
    pub(super) fn cursor(&self, stream: Stream) -> u64 {
        self.cursors[stream.index()]
    }

    /// Fills the outbox, a frame of each stream in turn, so that one that never ends does not
    /// starve the other, however little room there is at a time. Returns the number of gaps, or
    /// `None` if nothing was added.
    pub(super) fn pump(
        &mut self,
        session: &Session,
        outbox: &mut Outbox,
        spares: &mut Spares,
    ) -> Option<u64> {
        if self.owed.is_some() || self.mode == AttachMode::Wait {
            return None;
        }
        let mut gaps = None;
        // Streams in a row that had nothing to give, or no room for it.
        let mut dry_count = 0;
        while dry_count < Stream::ALL.len() {
            match self.pump_frame(Stream::ALL[self.turn], session, outbox, spares) {
                Some(count) => {
                    gaps = Some(gaps.unwrap_or(0) + count);
                    dry_count = 0;
                }
                None => dry_count += 1,
            }
            self.turn = (self.turn + 1) % Stream::ALL.len();
        }
        gaps
    }

    /// Adds one frame of a stream, behind a GAP if bytes are missing before it.
    fn pump_frame(
        &mut self,
        stream: Stream,
        session: &Session,
        outbox: &mut Outbox,
        spares: &mut Spares,
    ) -> Option<u64> {
        let ring = session.ring(stream);
        let cursor = &mut self.cursors[stream.index()];
        if outbox.stream_room() == 0 || *cursor == ring.end() {
            return None;
        }
        let mut gaps = 0;
        if *cursor < ring.start() {
            let (from, to) = (*cursor, ring.start());
            outbox.push(&Message::Gap(Gap { stream, from, to })).ok()?;
            *cursor = to;
            gaps = 1;
        }
        let (head, tail) = ring.bytes_from(*cursor, outbox.stream_room());
        let len = head.len() + tail.len();
        if len > 0 {
            outbox.push_chunk(stream.frame_kind(), *cursor, (head, tail), spares);
            *cursor += len as u64;
        }
        Some(gaps)
    }

    /// The end, if it is this connection's turn to hear of it.
    fn exited(&self, session: &Session) -> Option<Exited> {
        let exited = session.exited()?;
        let is_at_end = |stream: &Stream| self.cursor(*stream) == session.ring(*stream).end();
        let is_due = self.mode == AttachMode::Wait || Stream::ALL.iter().all(is_at_end);
        is_due.then_some(exited)
    }
}

impl Agent {
    pub(super) fn handle_attach(&mut self, id: ConnectionId, request: Attach, now: Instant) {
        if !self.admit(id, Request::Exec, now) || !self.is_free(id, now) {
            return;
        }
        if let Some(wanted) = request.generation
            && !self.is_current(id, wanted, now)
        {
            return;
        }
        let Some(session) = self.sessions.find(request.session) else {
            let text = format!("there is no session {}", request.session);
            return self.send_fail(id, FailCode::NoSession, text, now);
        };
        self.counters.attaches += 1;
        let from = [request.stdout_from, request.stderr_from];
        self.attach(id, session, request.mode, from, Answer::Attached, now);
    }

    /// Whether a connection may be attached to a session. If not, it is told.
    pub(super) fn is_free(&mut self, id: ConnectionId, now: Instant) -> bool {
        let is_free = self
            .connections
            .get(&id)
            .is_some_and(|it| it.attachment.is_none());
        if !is_free {
            let text = "this connection serves a session; use another connection";
            self.send_fail(id, FailCode::Limit, text, now);
        }
        is_free
    }

    /// Attaches a connection to a session.
    pub(super) fn attach(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        mode: AttachMode,
        from: [Option<u64>; 2],
        answer: Answer,
        now: Instant,
    ) {
        if mode == AttachMode::Own && !self.take_ownership(id, session_id, from, now) {
            return;
        }
        let (Some(session), Some(connection)) = (
            self.sessions.get_mut(session_id),
            self.connections.get_mut(&id),
        ) else {
            return;
        };
        session.insert_attached(id);
        let mut attachment = Attachment::new(session, mode, from);
        attachment.owed = Some(answer);
        connection.attachment = Some(attachment);
        self.spares.enter();
        // The workload may be waiting for a restart, which takes a while.
        if session.state() != State::Starting || session.is_workload() {
            self.give_answer(id, now);
        }
        self.resume_output(session_id, now);
        self.pump_connection(id, now);
    }

    /// Makes a connection the owner of a session, unless a later one is. What it asks for
    /// acknowledges what comes before it.
    fn take_ownership(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        from: [Option<u64>; 2],
        now: Instant,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(session_id) else {
            return false;
        };
        let previous = session.owner;
        if previous.is_some_and(|owner| owner > id) {
            self.supersede(id, "a later connection has attached to this session", now);
            return false;
        }
        session.owner = Some(id);
        for &stream in Stream::ALL {
            session.release(stream, from[stream.index()].unwrap_or(0), &mut self.spares);
        }
        self.timers.stop(Timer::Abandon(session_id));
        if let Some(previous) = previous {
            session.remove_attached(previous);
            if let Some(connection) = self.connections.get_mut(&previous) {
                connection.attachment = None;
                self.spares.leave();
            }
            self.supersede(previous, "another connection attached to this session", now);
        }
        true
    }

    /// Tells a connection that it is attached, if it has not been told.
    pub(super) fn give_answer(&mut self, id: ConnectionId, now: Instant) {
        let attachment = self
            .connections
            .get_mut(&id)
            .and_then(|it| it.attachment.as_mut());
        let Some(attachment) = attachment else {
            return;
        };
        let (Some(answer), Some(session)) = (
            attachment.owed.take(),
            self.sessions.get_mut(attachment.session),
        ) else {
            return;
        };
        let is_owner = attachment.mode == AttachMode::Own;
        let cursors = attachment.cursors;
        let message = match answer {
            Answer::Started { fresh } => {
                Message::Started(session.started(is_owner, fresh, cursors))
            }
            Answer::Attached => Message::Attached(session.started(is_owner, false, cursors)),
        };
        self.send(id, &message, now);
    }

    /// There is more output for everybody who is attached to a session.
    pub(super) fn pump_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        for attached in session.attached() {
            if let Some(connection) = self.connections.get_mut(attached)
                && let Some(gaps) = connection.pump(session, &mut self.spares)
            {
                self.counters.gaps += gaps;
                connection.queue_flush(*attached, &mut self.actions);
            }
        }
    }

    /// There may be room for output in a connection's outbox, or its session has ended.
    pub(super) fn pump_connection(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(attachment) = connection.attachment else {
            return;
        };
        let Some(session) = self.sessions.get(attachment.session) else {
            return;
        };
        if let Some(gaps) = connection.pump(session, &mut self.spares) {
            self.counters.gaps += gaps;
            connection.queue_flush(id, &mut self.actions);
        }
        let exited = connection.attachment.and_then(|it| it.exited(session));
        if let Some(exited) = exited {
            self.send(id, &Message::Exited(exited), now);
            self.release_session(id, Departure::Served, now);
        }
    }

    /// Takes a connection's session from it.
    pub(super) fn release_session(&mut self, id: ConnectionId, departure: Departure, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(attachment) = connection.attachment.take() else {
            return;
        };
        connection.served = Some((attachment.session, attachment.mode));
        self.spares.leave();
        let Some(session) = self.sessions.get_mut(attachment.session) else {
            return;
        };
        let was_owner = session.remove_attached(id);
        if session.exited().is_some() {
            self.sessions.trim();
        } else if was_owner {
            self.handle_owner_left(attachment.session, departure, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::outbox::STREAM_LEN_MAX;
    use crate::agent::ring::RING_LEN_MAX;
    use crate::agent::session::Terms;
    use shared::frame::Decoder;
    use shared::id::ExecId;
    use shared::message::{OutputPolicy, Role};
    use std::time::Duration;

    fn session() -> Session {
        let terms = Terms {
            exec: Some(ExecId::from_bytes([7; 16])),
            command: String::new(),
            generation: None,
            tty: None,
            has_input: false,
            output: OutputPolicy::DropOldest,
            is_detached: false,
            keep: Duration::ZERO,
            timeout: None,
        };
        let mut session = Session::new(SessionId::from_number(1), terms, Instant::now());
        session.handle_spawned(42);
        session
    }

    /// What was added: the stream, the first offset and the one behind the last byte.
    fn take(outbox: &mut Outbox) -> Vec<(&'static str, Stream, u64, u64)> {
        let mut decoder = Decoder::new();
        decoder.push(outbox.pending());
        outbox.consume(outbox.pending().len(), &mut Spares::default());
        let mut taken = Vec::new();
        while let Some(frame) = decoder.poll_frame().expect("frames") {
            taken.push(
                match Message::parse(frame, Role::Guest).expect("messages") {
                    Message::Stdout(chunk) => {
                        let end = chunk.offset + chunk.bytes.len() as u64;
                        ("chunk", Stream::Stdout, chunk.offset, end)
                    }
                    Message::Stderr(chunk) => {
                        let end = chunk.offset + chunk.bytes.len() as u64;
                        ("chunk", Stream::Stderr, chunk.offset, end)
                    }
                    Message::Gap(gap) => ("gap", gap.stream, gap.from, gap.to),
                    other => panic!("{other:?}"),
                },
            );
        }
        taken
    }

    #[test]
    fn cursors_begin_where_they_may() {
        let mut session = session();
        session.handle_output(Stream::Stdout, &[0; 10], &mut Spares::default());
        session.release(Stream::Stdout, 4, &mut Spares::default());
        for (from, cursor) in [
            (None, 4),
            (Some(2), 2),
            (Some(7), 7),
            (Some(10), 10),
            (Some(11), 10),
        ] {
            let attachment = Attachment::new(&session, AttachMode::Observe, [from, None]);
            assert_eq!(attachment.cursor(Stream::Stdout), cursor, "{from:?}");
        }
    }

    #[test]
    fn each_stream_has_its_turn_until_the_outbox_is_full() {
        let mut session = session();
        session.handle_output(
            Stream::Stdout,
            &vec![0; RING_LEN_MAX],
            &mut Spares::default(),
        );
        session.handle_output(Stream::Stderr, b"err", &mut Spares::default());
        let mut attachment = Attachment::new(&session, AttachMode::Own, [None; 2]);
        let mut outbox = Outbox::default();
        assert_eq!(
            attachment.pump(&session, &mut outbox, &mut Spares::default()),
            Some(0)
        );
        assert!(outbox.pending().len() <= STREAM_LEN_MAX && outbox.stream_room() == 0);
        assert_eq!(
            attachment.pump(&session, &mut outbox, &mut Spares::default()),
            None
        );
        let taken = take(&mut outbox);
        assert_eq!(taken[1], ("chunk", Stream::Stderr, 0, 3));
        let mut next = 0;
        for (_, _, from, to) in taken.iter().filter(|it| it.1 == Stream::Stdout) {
            assert_eq!(*from, next);
            next = *to;
        }
        assert_eq!(next, attachment.cursor(Stream::Stdout));
        // With room for one frame at a time both still get on.
        session.handle_output(
            Stream::Stdout,
            &vec![0; RING_LEN_MAX],
            &mut Spares::default(),
        );
        session.handle_output(
            Stream::Stderr,
            &vec![0; RING_LEN_MAX],
            &mut Spares::default(),
        );
        attachment.pump(&session, &mut outbox, &mut Spares::default());
        let cursors = attachment.cursors;
        for _ in 0..2 {
            while outbox.stream_room() == 0 {
                outbox.consume(1, &mut Spares::default());
            }
            attachment.pump(&session, &mut outbox, &mut Spares::default());
        }
        assert!(attachment.cursors[0] > cursors[0] && attachment.cursors[1] > cursors[1]);
    }

    #[test]
    fn what_the_ring_no_longer_has_is_a_gap() {
        let mut session = session();
        let mut attachment = Attachment::new(&session, AttachMode::Observe, [None; 2]);
        let mut outbox = Outbox::default();
        session.handle_output(
            Stream::Stdout,
            &vec![0; RING_LEN_MAX + 5],
            &mut Spares::default(),
        );
        assert_eq!(
            attachment.pump(&session, &mut outbox, &mut Spares::default()),
            Some(1)
        );
        let taken = take(&mut outbox);
        assert_eq!(taken[0], ("gap", Stream::Stdout, 0, 5));
        assert_eq!(taken[1].2, 5);
        attachment.pump(&session, &mut outbox, &mut Spares::default());
        take(&mut outbox);
        // All of it is gone at the end.
        session.handle_output(Stream::Stdout, b"more", &mut Spares::default());
        session.clear_output();
        let end = RING_LEN_MAX as u64 + 9;
        assert_eq!(
            attachment.pump(&session, &mut outbox, &mut Spares::default()),
            Some(1)
        );
        assert_eq!(take(&mut outbox), [("gap", Stream::Stdout, end - 4, end)]);
    }

    #[test]
    fn who_waits_gets_no_output() {
        let mut session = session();
        session.handle_output(Stream::Stdout, b"output", &mut Spares::default());
        let mut attachment = Attachment::new(&session, AttachMode::Wait, [None; 2]);
        assert_eq!(
            attachment.pump(&session, &mut Outbox::default(), &mut Spares::default()),
            None
        );
    }
}
