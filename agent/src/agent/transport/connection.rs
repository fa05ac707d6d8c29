//! One connection: HELLO first, then one request after the other. No I/O, no clock.
//!
//! ```text
//!                 HELLO          refused, severed          all sent, or too slow
//! AwaitingHello ─────────▶ Open ──────────────────▶ Closing ──────────────▶ closed
//!       └── no common version, or an error ─────────▲
//! ```
//!
//! Invariants:
//! - The first frame is HELLO, and no later one is.
//! - A closing connection takes no more input. Its last frames are flushed for a limited time.
//! - No request is taken while many answers wait to be read by the peer.
//! - It serves one session at a time. Frames for a session that has ended may still arrive.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use shared::PayloadError;
use shared::frame::{Decoder, FrameError, FrameKind};
use shared::id::Nonce;
use shared::message::{AttachMode, Chunk, Fail, FailCode, Message, Role};

use super::attachments::Attachment;
use super::outbox::Outbox;
use super::output::{Headers, Pieces};
use crate::agent::action::Action;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::sessions::input::InputError;
use crate::agent::sessions::session::Session;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    AwaitingHello,
    Open,
    /// Refused or severed; ends when its outbox is empty.
    Closing,
}

/// The readiness of a socket that the loop has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interest {
    /// Something to read, or the end.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
}

#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// STDIN. The decoder still holds its data, see [`Connection::input`].
    Input {
        offset: u64,
        len: usize,
    },
}

/// What ends a connection with FAIL(protocol).
#[derive(Debug)]
pub(crate) enum ProtocolError {
    Frame(FrameError),
    Payload(PayloadError),
    HelloMissing,
    HelloRepeated,
    /// HELLO came from a side that does not connect here; this one was expected.
    HelloRole(Role),
    /// A frame for a session came, and this connection never had one.
    NotAttached,
    NotOwner,
    AckBeyondSent,
    Input(InputError),
}

impl ProtocolError {
    pub(crate) fn to_fail(&self) -> Fail {
        let text = match self {
            Self::Frame(error) => error.to_string(),
            Self::Payload(error) => match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
            Self::HelloMissing => "the first frame must be HELLO".to_owned(),
            Self::HelloRepeated => "HELLO was sent twice".to_owned(),
            Self::HelloRole(expected) => format!("HELLO must have the role {expected}"),
            Self::NotAttached => "this connection has no session".to_owned(),
            Self::NotOwner => "only the owner may send standard input".to_owned(),
            Self::AckBeyondSent => "ACK of bytes that were not sent".to_owned(),
            Self::Input(InputError::Hole) => "standard input with bytes missing".to_owned(),
            Self::Input(InputError::OverLimit) => "standard input over its limit".to_owned(),
            Self::Input(InputError::BehindEnd) => "standard input after its end".to_owned(),
        };
        Fail::new(FailCode::Protocol, text)
    }
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Connection {
    /// The side of its peer.
    role: Role,
    phase: Phase,
    decoder: Decoder,
    pub(crate) outbox: Outbox,
    /// The listener's serial when the connection was accepted.
    pub(crate) accepted_under: u64,
    pub(crate) attachment: Option<Attachment>,
    /// The last session that it served to its end, and how it was attached.
    pub(crate) served: Option<(SessionId, AttachMode)>,
    /// Whether a flush was requested and not performed yet.
    pub(crate) is_flush_queued: bool,
    /// Whether the last flush ended for lack of room, so that the next one waits for room.
    pub(crate) is_waiting_for_room: bool,
    /// The probe whose process has not been reaped yet.
    pub(crate) probe: Option<PendingProbe>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PendingProbe {
    pub(crate) nonce: Nonce,
    /// When the process was requested.
    pub(crate) started_at: Instant,
}

impl Connection {
    pub(crate) fn new(role: Role, accepted_under: u64) -> Self {
        Self {
            role,
            phase: Phase::AwaitingHello,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            accepted_under,
            attachment: None,
            served: None,
            is_flush_queued: false,
            is_waiting_for_room: false,
            probe: None,
        }
    }

    /// A closing connection drops the bytes.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.phase != Phase::Closing {
            self.decoder.push(bytes);
        }
    }

    /// The data of the last [`Received::Input`], which has `len` bytes.
    pub(crate) fn input(&self, len: usize) -> &[u8] {
        self.decoder.payload(len)
    }

    /// The peer's next message, unless the connection is closing or owes too many answers.
    pub(crate) fn poll_message(&mut self) -> Result<Option<Received>, ProtocolError> {
        if self.phase == Phase::Closing || !self.outbox.takes_requests() {
            return Ok(None);
        }
        let is_awaiting_hello = self.is_awaiting_hello();
        let Some(frame) = self.decoder.poll_frame().map_err(ProtocolError::Frame)? else {
            return Ok(None);
        };
        if frame.kind == FrameKind::Stdin && self.role == Role::Host && !is_awaiting_hello {
            let (offset, data) = Chunk::parse(frame).map_err(ProtocolError::Payload)?;
            let len = data.len();
            return Ok(Some(Received::Input { offset, len }));
        }
        let message = match self.role {
            Role::Local => Message::from_local(frame),
            Role::Host | Role::Guest => Message::from_host(frame),
        };
        let message = message.map_err(ProtocolError::Payload)?;
        match (&message, is_awaiting_hello) {
            (Message::Hello(hello), true) if hello.role == self.role => self.phase = Phase::Open,
            (Message::Hello(_), true) => return Err(ProtocolError::HelloRole(self.role)),
            (Message::Hello(_), false) => return Err(ProtocolError::HelloRepeated),
            (_, true) => return Err(ProtocolError::HelloMissing),
            (_, false) => {}
        }
        Ok(Some(Received::Message(message)))
    }

    /// Requests a flush, unless one is requested already.
    pub(crate) fn queue_flush(&mut self, id: ConnectionId, actions: &mut VecDeque<Action>) {
        if !self.is_flush_queued {
            self.is_flush_queued = true;
            actions.push_back(Action::Flush(id));
        }
    }

    pub(crate) fn has_pending(&self, session: Option<&Session>) -> bool {
        let flow = self.attachment.as_ref().and_then(Attachment::flow);
        let is_behind = flow
            .zip(session)
            .is_some_and(|(it, session)| it.is_behind(session));
        is_behind || !self.outbox.is_empty()
    }

    /// The bytes that the socket should take next.
    pub(crate) fn pending<'a>(
        &'a self,
        session: Option<&'a Session>,
        headers: &'a mut Headers,
    ) -> Pieces<'a> {
        let flow = self.attachment.as_ref().and_then(Attachment::flow);
        let mut pieces = Pieces::new();
        let Some((cursors, session)) = flow.zip(session) else {
            pieces.push(self.outbox.pending());
            return pieces;
        };
        let rest = cursors.rest(session);
        rest.into_iter().for_each(|piece| pieces.push(piece));
        pieces.push(self.outbox.pending());
        cursors.frames(session, headers, &mut pieces);
        pieces
    }

    /// A flush begins. Returns the number of gaps that it will announce.
    pub(crate) fn handle_flush(&mut self, session: Option<&Session>) -> u64 {
        self.is_flush_queued = false;
        let gaps = session.map_or(0, |session| self.announce_gaps(session));
        self.is_waiting_for_room = self.has_pending(session);
        gaps
    }

    pub(crate) fn handle_written(&mut self, len: usize, session: Option<&Session>) {
        match self.attachment.as_mut().zip(session) {
            Some((attachment, session)) => {
                attachment.handle_written(len, session, &mut self.outbox);
            }
            None => self.outbox.consume(len),
        }
        self.is_waiting_for_room = self.has_pending(session);
    }

    /// See [`Attachment::announce_gaps`].
    pub(crate) fn announce_gaps(&mut self, session: &Session) -> u64 {
        let attachment = self.attachment.as_mut();
        attachment.map_or(0, |it| it.announce_gaps(session, &mut self.outbox))
    }

    /// See [`Attachment::save_partial_frame`].
    pub(crate) fn save_partial_frame(&mut self, session: &Session) {
        if let Some(attachment) = &mut self.attachment {
            attachment.save_partial_frame(session, &mut self.outbox);
        }
    }

    /// Takes no more input, and ends when everything has been sent.
    pub(crate) fn close_after_flush(&mut self) {
        self.phase = Phase::Closing;
        self.decoder = Decoder::new();
    }

    /// Whether the peer is a program in the guest. A reset or rebind leaves such a connection
    /// alone.
    pub(crate) fn is_local(&self) -> bool {
        self.role == Role::Local
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    pub(crate) fn is_awaiting_hello(&self) -> bool {
        self.phase == Phase::AwaitingHello
    }

    pub(crate) fn interest(&self, session: Option<&Session>) -> Interest {
        Interest {
            readable: self.phase != Phase::Closing && self.outbox.takes_requests(),
            writable: self.has_pending(session),
        }
    }
}
