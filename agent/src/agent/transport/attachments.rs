//! Connections and the sessions that they are attached to: which connection gets which bytes, and
//! when. No I/O, no clock.
//!
//! ```text
//!                     ┌─▶ cursor of the owner ───▶ socket ─▶ ACK frees the ring
//! pipe ─▶ ring ───────┼─▶ cursor of an observer ─▶ socket    GAP where the ring no longer reaches
//!   (one per stream)  └─▶ (a connection that only waits has none)
//! ```
//!
//! Each attached connection has a cursor per stream. Its socket takes bytes from there on, straight
//! from the rings (see [`output`](super::output)). EXITED follows the last byte, and then the
//! connection is free for another session.
//!
//! Invariants:
//! - What a connection gets of a stream is contiguous, or a GAP names what is missing.
//! - A session has at most one owner: of two connections that ask, the one that was accepted later.
//!   A host that asks again keeps the connection of its earlier attempt open, and drops it once it
//!   is served.
//! - A slow or stuck connection delays no other one, of this session or of another.

use std::time::Instant;

use shared::message::{Attach, AttachMode, Exited, FailCode, Message, Ping, Stream};

use super::outbox::Outbox;
use super::output::Cursors;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::sessions::buffers::BufferPool;
use crate::agent::sessions::session::{Answer, Session, State};
use crate::agent::state::Request;
use crate::agent::timers::Timer;
use crate::agent::{Agent, DetachReason};

/// A connection's part in a session.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Attachment {
    pub(crate) session: SessionId,
    pub(crate) mode: AttachMode,
    /// What it gets next of each stream.
    cursors: Cursors,
    /// The answer that it will get when the session's process has been started.
    owed: Option<Answer>,
    /// Whether it was asked to acknowledge output sooner than it does by itself.
    is_hurried: bool,
}

impl Attachment {
    /// Begins at these offsets, or where the session's rings begin, and never after the end of a
    /// stream.
    pub(crate) fn new(session: &Session, mode: AttachMode, from: [Option<u64>; 2]) -> Self {
        let cursor = |stream: Stream| {
            let ring = session.ring(stream);
            let wanted = from[stream.index()].unwrap_or_else(|| ring.start());
            wanted.min(ring.end())
        };
        Self {
            session: session.id(),
            mode,
            cursors: Cursors::at([cursor(Stream::Stdout), cursor(Stream::Stderr)]),
            owed: None,
            is_hurried: false,
        }
    }

    /// Offset of the next byte; all bytes before it were sent.
    pub(crate) fn cursor(&self, stream: Stream) -> u64 {
        self.cursors.offsets()[stream.index()]
    }

    /// Its cursors, if it gets output now.
    pub(crate) fn flow(&self) -> Option<&Cursors> {
        let is_flowing = self.owed.is_none() && self.mode != AttachMode::Wait;
        is_flowing.then_some(&self.cursors)
    }

    /// Announces what the rings no longer hold, once everything before it was sent. Returns the
    /// number of gaps.
    pub(crate) fn announce_gaps(
        &mut self,
        session: &Session,
        outbox: &mut Outbox,
        buffers: &mut BufferPool,
    ) -> u64 {
        let is_due = outbox.is_empty() && self.flow().is_some_and(|it| !it.is_mid_frame());
        let mut count = 0;
        for &stream in Stream::ALL.iter().filter(|_| is_due) {
            if let Some(gap) = self.cursors.skip_gap(stream, session) {
                // An empty outbox has room.
                count += u64::from(outbox.push(&Message::Gap(gap), buffers).is_ok());
            }
        }
        count
    }

    /// The socket took `len` bytes: first of a partly written frame, then of the outbox, then of
    /// further frames. `false`: the rest of a frame is lost for lack of memory.
    #[must_use]
    pub(crate) fn handle_written(
        &mut self,
        len: usize,
        session: &Session,
        outbox: &mut Outbox,
        buffers: &mut BufferPool,
    ) -> bool {
        let mut left = len - self.cursors.advance_rest(len);
        let of_answers = left.min(outbox.pending().len());
        outbox.consume(of_answers, buffers);
        left -= of_answers;
        self.cursors.advance(left, session);
        // Only for an owner does a session with policy `block` keep unacknowledged bytes.
        let is_kept = self.mode == AttachMode::Own && !session.drops_oldest();
        is_kept || self.save_partial_frame(session, outbox, buffers)
    }

    /// Copies the rest of a partly written frame into the outbox, so that the ring need not keep
    /// it. `false`: it is lost for lack of memory.
    #[must_use]
    pub(crate) fn save_partial_frame(
        &mut self,
        session: &Session,
        outbox: &mut Outbox,
        buffers: &mut BufferPool,
    ) -> bool {
        let take_over = |pieces: [&[u8]; 3]| outbox.take_over(pieces, buffers);
        !self.cursors.is_mid_frame() || self.cursors.take_rest(session, take_over)
    }

    /// EXITED, if it is due for this connection.
    fn exited(&self, session: &Session) -> Option<Exited> {
        let exited = session.exited()?;
        let is_at_end = |stream: &Stream| self.cursor(*stream) == session.ring(*stream).end();
        let is_due = self.mode == AttachMode::Wait || Stream::ALL.iter().all(is_at_end);
        is_due.then_some(exited)
    }
}

impl Agent {
    pub(crate) fn handle_attach(&mut self, id: ConnectionId, request: Attach, now: Instant) {
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

    /// Whether a connection may be attached to a session. If not, it gets FAIL(limit).
    pub(crate) fn is_free(&mut self, id: ConnectionId, now: Instant) -> bool {
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

    pub(crate) fn attach(
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
        self.buffers.add_user();
        // A workload's STARTED does not wait for a restart, which takes a while.
        if session.state() != State::Starting || session.is_workload() {
            self.give_answer(id, now);
        }
        self.resume_output(session_id);
        self.pump_connection(id, now);
    }

    /// Makes a connection the owner of a session, unless a later connection is. The offsets that it
    /// asks for acknowledge all bytes before them.
    fn take_ownership(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        from: [Option<u64>; 2],
        now: Instant,
    ) -> bool {
        let Some(session) = self.sessions.get(session_id) else {
            return false;
        };
        let previous = session.owner;
        if previous.is_some_and(|owner| owner > id) {
            self.supersede(id, "a later connection has attached to this session", now);
            return false;
        }
        self.save_partial_frames(session_id, now);
        let Some(session) = self.sessions.get_mut(session_id) else {
            return false;
        };
        // It may have lost its connection just now.
        let previous = session.owner;
        session.owner = Some(id);
        for &stream in Stream::ALL {
            session.release(stream, from[stream.index()].unwrap_or(0), &mut self.buffers);
        }
        self.timers.stop(Timer::Abandon(session_id));
        if let Some(previous) = previous {
            session.remove_attached(previous);
            if let Some(connection) = self.connections.get_mut(&previous) {
                connection.attachment = None;
                self.buffers.remove_user();
            }
            self.supersede(previous, "another connection attached to this session", now);
        }
        true
    }

    /// Sends the answer to EXEC or ATTACH, if it was not sent yet.
    pub(crate) fn give_answer(&mut self, id: ConnectionId, now: Instant) {
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
        let cursors = attachment.cursors.offsets();
        let message = match answer {
            Answer::Started { fresh } => {
                Message::Started(session.started(is_owner, fresh, cursors))
            }
            Answer::Attached => Message::Attached(session.started(is_owner, false, cursors)),
        };
        self.send(id, &message, now);
    }

    /// There is more output for the connections that are attached to a session.
    pub(crate) fn pump_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        for attached in session.attached() {
            if let Some(connection) = self.connections.get_mut(attached)
                && !connection.is_waiting_for_room
                && connection.has_pending(Some(session))
            {
                connection.queue_flush(*attached, &mut self.actions);
            }
        }
    }

    /// A connection's socket has taken something, or its session has ended.
    pub(crate) fn pump_connection(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(attachment) = connection.attachment else {
            return;
        };
        let Some(session) = self.sessions.get(attachment.session) else {
            return;
        };
        let gaps = connection.announce_gaps(session, &mut self.buffers);
        if gaps > 0 {
            self.counters.gaps += gaps;
            connection.queue_flush(id, &mut self.actions);
        }
        let exited = connection.attachment.and_then(|it| it.exited(session));
        if let Some(exited) = exited {
            self.send(id, &Message::Exited(exited), now);
            self.release_session(id, DetachReason::Done, now);
            self.sever_if_ending(id, now);
        }
    }

    /// A session's rings need not keep unacknowledged bytes any more. A connection is closed if
    /// there is no memory for the rest of its frame.
    pub(crate) fn save_partial_frames(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let mut broken = None;
        for attached in session.attached() {
            if let Some(connection) = self.connections.get_mut(attached) {
                connection.save_partial_frame(session, &mut self.buffers);
                broken = broken.or_else(|| connection.is_broken.then_some(*attached));
            }
        }
        if let Some(broken) = broken {
            self.close(broken, DetachReason::Cut, now);
            self.save_partial_frames(id, now);
        }
    }

    /// A full ring of a session is shorter than what clients acknowledge at once, because memory is
    /// tight. A PING asks the owner to acknowledge what it has passed on from now on.
    pub(crate) fn ask_for_ack(&mut self, id: SessionId) {
        let Some(owner) = self.sessions.get(id).and_then(|it| it.owner) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&owner) else {
            return;
        };
        let Some(attachment) = connection.attachment.as_mut().filter(|it| !it.is_hurried) else {
            return;
        };
        let ping = Message::Ping(Ping { nonce: 0 });
        if connection.outbox.push(&ping, &mut self.buffers).is_ok() {
            attachment.is_hurried = true;
            connection.queue_flush(owner, &mut self.actions);
        }
    }

    /// Detaches a connection from its session.
    pub(crate) fn release_session(&mut self, id: ConnectionId, reason: DetachReason, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(attachment) = connection.attachment else {
            return;
        };
        if let Some(session) = self.sessions.get(attachment.session) {
            connection.save_partial_frame(session, &mut self.buffers);
        }
        connection.attachment = None;
        connection.served = Some((attachment.session, attachment.mode));
        let is_broken = connection.is_broken;
        self.buffers.remove_user();
        self.forget_attachment(id, attachment.session, reason, now);
        if is_broken {
            self.close(id, DetachReason::Cut, now);
        }
    }

    fn forget_attachment(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        reason: DetachReason,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get_mut(session_id) else {
            return;
        };
        let was_owner = session.remove_attached(id);
        if session.exited().is_some() {
            let results_max = self.settings.results_max;
            self.sessions.trim(results_max, &mut self.buffers);
        } else if was_owner {
            self.handle_owner_left(session_id, reason, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::sessions::ring::RING_LEN_MAX;
    use crate::agent::sessions::session::Spec;
    use crate::agent::transport::connection::Connection;
    use crate::agent::transport::output::Headers;
    use shared::frame::Decoder;
    use shared::id::ExecId;
    use shared::message::{Chunk, OutputPolicy, Role};
    use std::time::Duration;

    fn session() -> Session {
        session_with(OutputPolicy::DropOldest)
    }

    fn session_with(output: OutputPolicy) -> Session {
        let spec = Spec {
            exec: Some(ExecId::from_bytes([7; 16])),
            command: String::new(),
            generation: None,
            tty: None,
            has_input: false,
            output,
            is_detached: false,
            keep: Duration::ZERO,
            timeout: None,
        };
        let mut session = Session::new(SessionId::from_number(1), spec, Instant::now());
        session.handle_spawned(42);
        session
    }

    /// A connection that is attached like this and has nothing else to send.
    fn connection(session: &Session, mode: AttachMode) -> Connection {
        let mut connection = Connection::new(Role::Host, 0);
        connection.attachment = Some(Attachment::new(session, mode, [None; 2]));
        connection
    }

    fn pending(connection: &Connection, session: &Session) -> Vec<u8> {
        let mut headers = Headers::default();
        let pieces = connection.pending(Some(session), &mut headers);
        pieces.as_slice().concat()
    }

    fn write(connection: &mut Connection, session: &Session, len: usize) -> Vec<u8> {
        connection.announce_gaps(session, &mut BufferPool::default());
        let mut bytes = pending(connection, session);
        bytes.truncate(len);
        connection.handle_written(bytes.len(), Some(session), &mut BufferPool::default());
        bytes
    }

    /// What was written: kind, stream, first offset, and the offset after the last byte.
    fn read(bytes: &[u8]) -> Vec<(&'static str, Stream, u64, u64)> {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
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
                    Message::Pong(_) => ("pong", Stream::Stdout, 0, 0),
                    other => panic!("{other:?}"),
                },
            );
        }
        assert!(!decoder.is_mid_frame());
        taken
    }

    #[test]
    fn cursors_begin_where_they_may() {
        let mut session = session();
        session.handle_output(Stream::Stdout, &[0; 10], &mut BufferPool::default());
        session.release(Stream::Stdout, 4, &mut BufferPool::default());
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
    fn each_stream_has_its_turn() {
        let mut session = session();
        for (stream, len) in [(Stream::Stdout, RING_LEN_MAX), (Stream::Stderr, 70_000)] {
            session.handle_output(stream, &vec![0; len], &mut BufferPool::default());
        }
        let mut connection = connection(&session, AttachMode::Own);
        let mut bytes = Vec::new();
        while connection.has_pending(Some(&session)) {
            bytes.extend(write(&mut connection, &session, usize::MAX));
        }
        let taken = read(&bytes);
        let streams: Vec<_> = taken.iter().map(|it| it.1).collect();
        assert_eq!(streams[..4], [Stream::ALL, Stream::ALL].concat());
        for (stream, end) in [(Stream::Stdout, RING_LEN_MAX), (Stream::Stderr, 70_000)] {
            let mut next = 0;
            for (_, _, from, to) in taken.iter().filter(|it| it.1 == stream) {
                assert_eq!(*from, next);
                next = *to;
            }
            assert_eq!(next, end as u64);
        }
    }

    /// Frames stay whole however the socket cuts them, and whether or not the ring keeps the rest
    /// of a frame. Answers come between frames.
    #[test]
    fn frames_survive_every_split() {
        let expected = [
            ("chunk", Stream::Stdout, 0, 9),
            ("pong", Stream::Stdout, 0, 0),
            ("chunk", Stream::Stderr, 0, 5),
        ];
        for mode in [AttachMode::Own, AttachMode::Observe] {
            for lets_go in [false, true] {
                for split in 1..Chunk::HEADER_LEN + 9 {
                    let mut session = session_with(OutputPolicy::Block);
                    session.handle_output(Stream::Stdout, b"123456789", &mut BufferPool::default());
                    let mut connection = connection(&session, mode);
                    let mut bytes = write(&mut connection, &session, split);
                    let pong = Message::Pong(Ping { nonce: 1 });
                    connection
                        .outbox
                        .push(&pong, &mut BufferPool::default())
                        .expect("room");
                    session.handle_output(Stream::Stderr, b"error", &mut BufferPool::default());
                    if lets_go {
                        connection.save_partial_frame(&session, &mut BufferPool::default());
                    }
                    if lets_go || mode == AttachMode::Observe {
                        session.release(Stream::Stdout, 9, &mut BufferPool::default());
                    }
                    while connection.has_pending(Some(&session)) {
                        bytes.extend(write(&mut connection, &session, 3));
                    }
                    assert_eq!(read(&bytes), expected, "{mode} {lets_go} {split}");
                }
            }
        }
    }

    #[test]
    fn what_the_ring_no_longer_has_is_a_gap() {
        let mut session = session();
        let mut connection = connection(&session, AttachMode::Observe);
        let output = vec![0; RING_LEN_MAX + 5];
        session.handle_output(Stream::Stdout, &output, &mut BufferPool::default());
        let taken = read(&write(&mut connection, &session, usize::MAX));
        assert_eq!(taken[0], ("gap", Stream::Stdout, 0, 5));
        assert_eq!(taken[1].2, 5);
        // Bytes that are dropped while a frame is partly written are announced after that frame.
        session.handle_output(Stream::Stdout, b"more", &mut BufferPool::default());
        let mut bytes = write(&mut connection, &session, Chunk::HEADER_LEN + 1);
        session.handle_output(Stream::Stdout, &output, &mut BufferPool::default());
        for _ in 0..2 {
            // The rest of the frame and the GAP, before the next frame has begun; then the next
            // frame.
            bytes.extend(write(&mut connection, &session, 3));
            while !connection.outbox.is_empty() {
                let len = connection.outbox.pending().len();
                bytes.extend(write(&mut connection, &session, len));
            }
            session.handle_output(Stream::Stdout, b"12345", &mut BufferPool::default());
        }
        while connection.has_pending(Some(&session)) {
            bytes.extend(write(&mut connection, &session, usize::MAX));
        }
        let taken = read(&bytes);
        let (first, end) = (RING_LEN_MAX as u64 + 5, session.ring(Stream::Stdout).end());
        assert_eq!(taken[0], ("chunk", Stream::Stdout, first, first + 4));
        let mut next = first;
        for (_, _, from, to) in &taken {
            assert_eq!(*from, next);
            next = *to;
        }
        assert_eq!(next, end);
        let gaps = taken.iter().filter(|it| it.0 == "gap");
        assert_eq!(gaps.count(), 2, "{taken:?}");
        // All of it is gone at the end.
        session.handle_output(Stream::Stdout, b"last", &mut BufferPool::default());
        session.clear_output(&mut BufferPool::default());
        let taken = read(&write(&mut connection, &session, usize::MAX));
        assert_eq!(taken, [("gap", Stream::Stdout, end, end + 4)]);
    }

    #[test]
    fn a_waiting_connection_gets_no_output() {
        let mut session = session();
        session.handle_output(Stream::Stdout, b"output", &mut BufferPool::default());
        let connection = connection(&session, AttachMode::Wait);
        assert!(!connection.has_pending(Some(&session)));
        assert!(pending(&connection, &session).is_empty());
    }
}
