//! A connection's way in and out: bytes to requests, each to its conversation, and answers and
//! output back to bytes. No I/O, no clock.
//!
//! ```text
//! socket ─▶ handle_bytes ─▶ take_requests ─▶ handle_message ─▶ handle_exec, handle_rebind, …
//! socket ◀─ pending, handle_written ◀─ handle_flush ◀─ Action::Flush ◀─ send
//! ```
//!
//! The conversations are in [`rebind`](crate::agent::rebind) and its folder (REBIND, PROBE,
//! QUIESCE, checkpoints, hooks), in [`sessions`](crate::agent::sessions) (EXEC, ATTACH and what
//! follows either), in [`ending`](crate::agent::ending) (SHUTDOWN) and in
//! [`info`](crate::agent::info).

use std::time::Instant;

use log::debug;
use shared::id::Generation;
use shared::message::{Fail, FailCode, Hello, Message, Role};
use shared::version;

use super::connection::{Connection, Interest, Received, no_memory_text};
use super::outbox::OutboxError;
use super::output::{Headers, Pieces};
use crate::agent::ids::ConnectionId;
use crate::agent::sessions::session::Session;
use crate::agent::sessions::table::Table;
use crate::agent::state::Request;
use crate::agent::timers::Timer;
use crate::agent::{Agent, DetachReason};

impl Agent {
    /// The readiness that a connection waits for. `None`: it does not exist any more.
    pub fn interest(&self, id: ConnectionId) -> Option<Interest> {
        let connection = self.connections.get(&id)?;
        Some(connection.interest(session_of(&self.sessions, connection)))
    }

    pub fn handle_bytes(&mut self, id: ConnectionId, bytes: &[u8], now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let session = session_of(&self.sessions, connection);
        let is_promised = session.is_some_and(|it| it.owner == Some(id) && it.input.is_open());
        match connection.handle_bytes(bytes, is_promised, &mut self.buffers) {
            Ok(()) => self.take_requests(id, now),
            // Its session runs: a host that comes again sends what is missing.
            Err(_) if connection.attachment.is_some() => {
                debug!("{id}: no memory for its input; closing it");
                self.close(id, DetachReason::Cut, now);
            }
            Err(error) => self.refuse_protocol_error(id, &error, now),
        }
    }

    /// How many bytes should be read at once from a connection: little while memory is tight.
    pub fn read_len(&mut self, id: ConnectionId, len_max: usize) -> usize {
        if !self.buffers.is_short() {
            return len_max;
        }
        self.save_memory();
        let connection = self.connections.get(&id);
        connection.map_or(len_max, |it| it.short_read_len().min(len_max))
    }

    /// Takes a connection's requests until it has none, or may not ask for more.
    fn take_requests(&mut self, id: ConnectionId, now: Instant) {
        while let Some(connection) = self.connections.get_mut(&id) {
            match connection.poll_message(&mut self.buffers) {
                Ok(Some(Received::Message(message))) => self.handle_message(id, message, now),
                Ok(Some(Received::Input { offset, len })) => {
                    self.note_host_alive(now);
                    self.handle_stdin(id, offset, len, now);
                }
                Ok(Some(Received::TooLarge { kind, len })) => {
                    // The host asks again, and then there may be memory.
                    self.buffers.refuse();
                    self.save_memory();
                    self.send_fail(id, FailCode::Limit, no_memory_text(kind, len), now);
                }
                Ok(None) => return,
                Err(error) => return self.refuse_protocol_error(id, &error, now),
            }
        }
    }

    fn handle_message(&mut self, id: ConnectionId, message: Message, now: Instant) {
        if self.connections.get(&id).is_some_and(|it| !it.is_local()) {
            self.note_host_alive(now);
        }
        match message {
            Message::Hello(hello) => self.handle_hello(id, &hello, now),
            // In every state: a PING asks whether the agent is there.
            Message::Ping(ping) => self.send(id, &Message::Pong(ping), now),
            Message::InfoRequest => self.handle_info(id, now),
            Message::Rebind(rebind) => self.handle_rebind(id, rebind, now),
            Message::Probe(probe) => self.handle_probe(id, probe, now),
            Message::Quiesce(quiesce) => self.handle_quiesce(id, quiesce, now),
            Message::Reopen(reopen) => self.handle_reopen(id, reopen, now),
            Message::Exec(exec) => self.handle_exec(id, &exec, now),
            Message::Shutdown(shutdown) => self.handle_shutdown(id, shutdown, now),
            Message::Attach(attach) => self.handle_attach(id, attach, now),
            Message::Ack(ack) => self.handle_ack(id, ack, now),
            Message::StdinEof(eof) => self.handle_stdin_eof(id, eof, now),
            Message::Signal(signal) => self.handle_signal_request(id, signal, now),
            Message::Resize(size) => self.handle_resize(id, size),
            Message::ExitAck(ack) => self.handle_exit_ack(id, ack, now),
            Message::SessionsRequest(request) => self.handle_sessions(id, request, now),
            Message::Hooks(request) => self.handle_hooks(id, request, now),
            Message::AwaitCheckpoint(request) => self.handle_await_checkpoint(id, request, now),
            Message::CheckpointRequest(request) => self.handle_checkpoint(id, request, now),
            Message::GenerationRequest(request) => self.handle_generation_request(id, request, now),
            // Answers to requests that the agent does not make; ignored.
            Message::Pong(_) | Message::Fail(_) => {}
            // The parser refuses these from hosts and from programs in the guest.
            Message::Ok
            | Message::Progress(_)
            | Message::Rebound(_)
            | Message::Probed(_)
            | Message::Busy(_)
            | Message::Quiesced(_)
            | Message::Sever(_)
            | Message::Started(_)
            // Taken as `Received::Input`.
            | Message::Stdin(_)
            | Message::Stdout(_)
            | Message::Stderr(_)
            | Message::Exited(_)
            | Message::Attached(_)
            | Message::Gap(_)
            | Message::Window(_)
            | Message::Sessions(_)
            | Message::Checkpoint(_)
            | Message::Verdict(_)
            | Message::Generation(_)
            | Message::Hooked(_)
            | Message::Info(_) => {
                let text = format!("{} frame from the wrong side", message.kind());
                self.refuse(id, &Fail::new(FailCode::Protocol, text), now);
            }
        }
    }

    fn handle_hello(&mut self, id: ConnectionId, hello: &Hello, now: Instant) {
        self.timers.stop(Timer::Hello(id));
        debug!("{id}: HELLO from version {}", hello.version.escape_debug());
        let ours = Hello {
            protocol: version::SUPPORTED,
            role: Role::Guest,
            version: self.settings.version.clone(),
            boot_id: Some(self.settings.boot_id.clone()),
            generation: self.generation,
            instance: Some(self.settings.instance),
            sessions_begun: self.serials.sessions_begun(),
        };
        match hello.negotiate() {
            Ok(_) => self.send(id, &Message::Hello(ours), now),
            Err(error) => self.refuse(id, &Fail::new(FailCode::Version, error.to_string()), now),
        }
    }

    /// Whether the root state admits the request. If not, the peer gets FAIL.
    pub(crate) fn admit(&mut self, id: ConnectionId, request: Request, now: Instant) -> bool {
        let Err(code) = self.state.admits(request) else {
            return true;
        };
        let fail = match (code, self.rebinds.failure()) {
            (FailCode::Rebind, Some(fail)) => fail.clone(),
            _ => Fail::new(code, format!("the guest is {}", self.state.name())),
        };
        self.send(id, &Message::Fail(fail), now);
        false
    }

    /// Whether `wanted` is the guest's generation. If not, the peer gets FAIL(stale).
    pub(crate) fn is_current(
        &mut self,
        id: ConnectionId,
        wanted: Generation,
        now: Instant,
    ) -> bool {
        if self.generation == Some(wanted) {
            return true;
        }
        let text = match self.generation {
            Some(current) => format!("the guest has generation {current}, not {wanted}"),
            None => format!("the guest has no generation yet, so not {wanted}"),
        };
        self.send_fail(id, FailCode::Stale, text, now);
        false
    }

    /// Adds a message to a connection's outbox. If that is full, the peer does not read and is
    /// closed.
    pub(crate) fn send(&mut self, id: ConnectionId, message: &Message, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        let outbox = &mut connection.outbox;
        let pushed = match outbox.push(message, &mut self.buffers) {
            // What is long is an answer, and this is one, too.
            Err(OutboxError::NoMemory) => {
                let kind = message.kind();
                let text = format!("the agent has no memory for {kind}");
                let fail = Message::Fail(Fail::new(FailCode::Limit, text));
                outbox.push(&fail, &mut self.buffers)
            }
            pushed => pushed,
        };
        match pushed {
            Ok(()) => connection.queue_flush(id, &mut self.actions),
            Err(OutboxError::Full) => {
                debug!("{id} does not read its answers; closing it");
                self.close(id, DetachReason::ClientLeft, now);
            }
            Err(OutboxError::NoMemory) => {
                debug!("{id}: no memory for an answer; closing it");
                self.close(id, DetachReason::Cut, now);
            }
        }
    }

    pub(crate) fn send_fail(
        &mut self,
        id: ConnectionId,
        code: FailCode,
        text: impl Into<String>,
        now: Instant,
    ) {
        self.send(id, &Message::Fail(Fail::new(code, text)), now);
    }

    /// A flush begins.
    pub fn handle_flush(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let session = session_of(&self.sessions, connection);
            self.counters.gaps += connection.handle_flush(session, &mut self.buffers);
        }
    }

    /// The bytes that the connection's socket should take next. `headers` is room for frame
    /// headers.
    pub fn pending<'a>(&'a self, id: ConnectionId, headers: &'a mut Headers) -> Pieces<'a> {
        match self.connections.get(&id) {
            Some(connection) => connection.pending(session_of(&self.sessions, connection), headers),
            None => Pieces::new(),
        }
    }

    /// The socket took `len` of the pending bytes.
    pub fn handle_written(&mut self, id: ConnectionId, len: usize, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let session = session_of(&self.sessions, connection);
        connection.handle_written(len, session, &mut self.buffers);
        if connection.is_broken {
            debug!("{id}: no memory for the rest of a frame; closing it");
            return self.close(id, DetachReason::Cut, now);
        }
        if connection.is_closing() {
            if connection.outbox.is_empty() {
                self.close(id, DetachReason::Cut, now);
            }
            return;
        }
        self.pump_connection(id, now);
        // Requests may have waited for the peer to read its answers.
        self.take_requests(id, now);
    }
}

fn session_of<'a>(sessions: &'a Table, connection: &Connection) -> Option<&'a Session> {
    sessions.get(connection.attachment.as_ref()?.session)
}
