//! Frames that belong to a connection's session: ACK, STDIN, STDIN_EOF, RESIZE, EXIT_ACK. No I/O,
//! no clock.
//!
//! None of these frames has an answer of its own, so that unread answers never delay what a client
//! streams. They may cross with EXITED: a frame for a session that has just ended is ignored.
//!
//! Invariants:
//! - Only an owner changes anything. An observer's ACK is checked and ignored.
//! - A frame that cannot have been meant ends the connection and changes nothing.

use std::time::Instant;

use shared::message::{Ack, AttachMode, ExitAck, Message, StdinEof, TtySize};

use super::attachments::Attachment;
use super::connection::{Connection, ProtocolError};
use crate::agent::action::Action;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::sessions::buffers::BufferPool;
use crate::agent::sessions::input::{Input, InputError};
use crate::agent::sessions::session::State;
use crate::agent::{Agent, DetachReason};

impl Agent {
    pub(crate) fn handle_ack(&mut self, id: ConnectionId, ack: Ack, now: Instant) {
        let attachment = match self.attachment_of(id) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => return,
            Err(error) => return self.refuse_protocol_error(id, &error, now),
        };
        match attachment.mode {
            AttachMode::Wait => {}
            AttachMode::Own | AttachMode::Observe if ack.offset > attachment.cursor(ack.stream) => {
                self.refuse_protocol_error(id, &ProtocolError::AckBeyondSent, now);
            }
            AttachMode::Observe => {}
            AttachMode::Own => {
                if let Some(session) = self.sessions.get_mut(attachment.session) {
                    session.release(ack.stream, ack.offset, &mut self.buffers);
                    self.resume_output(attachment.session);
                }
            }
        }
    }

    /// The `len` bytes of data are still in the connection's decoder.
    pub(crate) fn handle_stdin(&mut self, id: ConnectionId, offset: u64, len: usize, now: Instant) {
        self.take_input(id, now, |connection, input, buffers| {
            input.handle_bytes(offset, connection.input(len), buffers)
        });
    }

    pub(crate) fn handle_stdin_eof(&mut self, id: ConnectionId, eof: StdinEof, now: Instant) {
        self.take_input(id, now, |_, input, _| input.handle_end(eof.offset));
    }

    /// Hands something to the standard input of an owner's session.
    fn take_input(
        &mut self,
        id: ConnectionId,
        now: Instant,
        take: impl FnOnce(&Connection, &mut Input, &mut BufferPool) -> Result<(), InputError>,
    ) {
        let attachment = match self.attachment_of(id) {
            Ok(Some(attachment)) => attachment,
            Ok(None) => return,
            Err(error) => return self.refuse_protocol_error(id, &error, now),
        };
        let session = self.sessions.get_mut(attachment.session);
        let taken = match (attachment.mode, session.zip(self.connections.get(&id))) {
            (AttachMode::Own, Some((session, connection))) => {
                take(connection, &mut session.input, &mut self.buffers)
                    .map_err(ProtocolError::Input)
            }
            (AttachMode::Own, None) => Ok(()),
            (AttachMode::Observe | AttachMode::Wait, _) => Err(ProtocolError::NotOwner),
        };
        match taken {
            Ok(()) => self.advance_input(attachment.session, now),
            // A host that comes again sends what is missing.
            Err(ProtocolError::Input(InputError::NoMemory)) => {
                self.advance_input(attachment.session, now);
                self.close(id, DetachReason::Cut, now);
            }
            Err(error) => self.refuse_protocol_error(id, &error, now),
        }
    }

    pub(crate) fn handle_resize(&mut self, id: ConnectionId, size: TtySize) {
        // A client's terminal may change its size at any time, even if its request started no
        // session.
        let Ok(Some(attachment)) = self.attachment_of(id) else {
            return;
        };
        let session = attachment.session;
        let has_tty = self.sessions.get(session).is_some_and(|it| {
            it.spec().tty.is_some() && matches!(it.state(), State::Starting | State::Running)
        });
        if has_tty && attachment.mode == AttachMode::Own {
            self.actions.push_back(Action::ResizeTty { session, size });
        }
    }

    /// Drops the output, unless an observer or waiting connection acknowledges the end.
    pub(crate) fn handle_exit_ack(&mut self, id: ConnectionId, ack: ExitAck, now: Instant) {
        let session_id = SessionId::from_number(ack.session);
        let served = self
            .connections
            .get(&id)
            .and_then(|connection| connection.served);
        let is_bystander = matches!(
            served,
            Some((session, AttachMode::Observe | AttachMode::Wait)) if session == session_id
        );
        let session = self.sessions.get(session_id);
        if is_bystander || session.is_none_or(|it| it.exited().is_none()) {
            return;
        }
        self.save_partial_frames(session_id, now);
        if let Some(session) = self.sessions.get_mut(session_id) {
            session.clear_output(&mut self.buffers);
        }
    }

    /// None if the connection's session has ended; an error if it never had one.
    fn attachment_of(&self, id: ConnectionId) -> Result<Option<Attachment>, ProtocolError> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(None);
        };
        match (connection.attachment, connection.served) {
            (Some(attachment), _) => Ok(Some(attachment)),
            (None, Some(_)) => Ok(None),
            (None, None) => Err(ProtocolError::NotAttached),
        }
    }

    /// Bytes that the session's standard input should take next.
    pub fn input_pending(&self, id: SessionId) -> &[u8] {
        self.sessions
            .get(id)
            .map_or(&[], |session| session.input.pending())
    }

    /// The session's standard input took `len` of the pending bytes.
    pub fn handle_input_written(&mut self, id: SessionId, len: usize, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.input.handle_written(len, &mut self.buffers);
            self.advance_input(id, now);
        }
    }

    /// The command has closed its standard input.
    pub fn handle_input_closed(&mut self, id: SessionId, now: Instant) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.input.close(&mut self.buffers);
            self.advance_input(id, now);
        }
    }

    /// The command has ended.
    pub(crate) fn close_input(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if session.input.close(&mut self.buffers) && session.spec().tty.is_none() {
            self.actions.push_back(Action::CloseInput(id));
        }
        self.advance_input(id, now);
    }

    /// Moves a session's standard input on: bytes to the command, the end, and credit to the owner.
    pub(crate) fn advance_input(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if session.state() == State::Starting {
            return;
        }
        if session.input.poll_flush() {
            self.actions.push_back(Action::FlushInput(id));
        }
        if session.input.poll_end(&mut self.buffers) {
            self.actions.push_back(Action::CloseInput(id));
        }
        if let Some(owner) = session.owner
            && let Some(window) = session.input.poll_window(&self.buffers)
        {
            self.send(owner, &Message::Window(window), now);
        }
    }
}
