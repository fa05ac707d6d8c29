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
//! - What its buffers hold beyond [`DECODER_LEN_FREE`] and the outbox's idle capacity comes out of
//!   the budget. Without memory its request is refused, or the connection.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use shared::PayloadError;
use shared::frame::{Decoder, FrameError, FrameKind, NoMemory, SMALL_LEN};
use shared::id::Nonce;
use shared::json;
use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX};
use shared::message::{AttachMode, Chunk, Fail, FailCode, Message, Role};

use super::attachments::Attachment;
use super::outbox::Outbox;
use super::output::{Headers, Pieces};
use crate::agent::action::Action;
use crate::agent::ids::{ConnectionId, SessionId};
use crate::agent::sessions::buffers::{BufferPool, GROWTH_HEADROOM_LEN, is_available};
use crate::agent::sessions::input::InputError;
use crate::agent::sessions::session::Session;

/// Received bytes that every connection may hold: a request of usual length, or input within the
/// least credit.
pub(crate) const DECODER_LEN_FREE: usize = SMALL_LEN;

/// Received bytes that a program in the guest may make the agent hold. It has short requests only,
/// but can announce a longer frame.
const LOCAL_LEN_MAX: usize = 2 * (HEADER_LEN + PAYLOAD_LEN_MAX);

/// A payload of this length is parsed without asking whether there is memory: it takes less than
/// the headroom.
const PARSED_FREELY_LEN: usize = 512;

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
    /// A request whose parts would take more memory than there is.
    TooLarge {
        kind: FrameKind,
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
    /// There is no memory for the bytes of a frame.
    NoMemory {
        announced: Option<(FrameKind, usize)>,
    },
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
            Self::Input(InputError::NoMemory) => {
                "the agent has no memory for standard input".into()
            }
            Self::NoMemory { announced } => match announced {
                Some((kind, len)) => no_memory_text(*kind, *len),
                None => "the agent has no memory for another request".to_owned(),
            },
        };
        let code = match self {
            Self::Input(InputError::NoMemory) | Self::NoMemory { .. } => FailCode::Limit,
            Self::Input(_)
            | Self::Frame(_)
            | Self::Payload(_)
            | Self::HelloMissing
            | Self::HelloRepeated
            | Self::HelloRole(_)
            | Self::NotAttached
            | Self::NotOwner
            | Self::AckBeyondSent => FailCode::Protocol,
        };
        Fail::new(code, text)
    }
}

pub(crate) fn no_memory_text(kind: FrameKind, len: usize) -> String {
    format!("the agent has no memory for {kind} with {len} bytes")
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Connection {
    /// The side of its peer.
    role: Role,
    phase: Phase,
    decoder: Decoder,
    /// Bytes out of the budget for received bytes.
    charged: usize,
    pub(crate) outbox: Outbox,
    /// Whether the rest of a frame is lost for lack of memory, so that it cannot go on.
    pub(crate) is_broken: bool,
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
            charged: 0,
            outbox: Outbox::default(),
            is_broken: false,
            accepted_under,
            attachment: None,
            served: None,
            is_flush_queued: false,
            is_waiting_for_room: false,
            probe: None,
        }
    }

    /// A closing connection drops the bytes. `is_promised`: it was told that it may send input.
    pub(crate) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        is_promised: bool,
        buffers: &mut BufferPool,
    ) -> Result<(), ProtocolError> {
        if self.phase == Phase::Closing {
            return Ok(());
        }
        let taken = self.decoder.try_push(bytes);
        let taken = taken.and_then(|()| self.update_charge(is_promised, buffers));
        taken.map_err(|NoMemory| ProtocolError::NoMemory {
            announced: self.decoder.announced(),
        })
    }

    /// Makes the charge agree with what the decoder holds.
    fn update_charge(
        &mut self,
        is_promised: bool,
        buffers: &mut BufferPool,
    ) -> Result<(), NoMemory> {
        let len = self.decoder.memory_len();
        let held = len.saturating_sub(DECODER_LEN_FREE);
        if held <= self.charged {
            buffers.release(self.charged - held);
            self.charged = held;
            return Ok(());
        }
        let is_too_long = self.is_local() && len > LOCAL_LEN_MAX;
        if is_too_long
            || !is_available(GROWTH_HEADROOM_LEN)
            || !buffers.charge(held - self.charged, is_promised)
        {
            buffers.refuse();
            return Err(NoMemory);
        }
        self.charged = held;
        Ok(())
    }

    /// Frees the buffers that hold nothing.
    pub(crate) fn save_memory(&mut self, buffers: &mut BufferPool) {
        if self.charged > 0 {
            self.decoder.release_memory();
            // It does not grow.
            let _ = self.update_charge(false, buffers);
        }
    }

    /// Gives all memory back.
    pub(crate) fn clear(&mut self, buffers: &mut BufferPool) {
        self.decoder = Decoder::new();
        buffers.release(std::mem::take(&mut self.charged));
        self.outbox.clear(buffers);
    }

    /// Bytes out of the budget.
    pub(crate) fn held_len(&self) -> usize {
        self.charged + self.outbox.charged()
    }

    /// Bytes that should be read at once while memory is tight.
    pub(crate) fn short_read_len(&self) -> usize {
        let room = DECODER_LEN_FREE.saturating_sub(self.decoder.held_len());
        room.max(PARSED_FREELY_LEN)
    }

    /// The data of the last [`Received::Input`], which has `len` bytes.
    pub(crate) fn input(&self, len: usize) -> &[u8] {
        self.decoder.payload(len)
    }

    /// The peer's next message, unless the connection is closing or owes too many answers.
    pub(crate) fn poll_message(
        &mut self,
        buffers: &mut BufferPool,
    ) -> Result<Option<Received>, ProtocolError> {
        if self.phase == Phase::Closing || !self.outbox.takes_requests() {
            return Ok(None);
        }
        let is_awaiting_hello = self.is_awaiting_hello();
        let Some(frame) = self.decoder.poll_frame().map_err(ProtocolError::Frame)? else {
            if self.charged > 0 {
                // The decoder may have freed memory, and has not taken any.
                let _ = self.update_charge(true, buffers);
            }
            return Ok(None);
        };
        if frame.kind == FrameKind::Stdin && self.role == Role::Host && !is_awaiting_hello {
            let (offset, data) = Chunk::parse(frame).map_err(ProtocolError::Payload)?;
            let len = data.len();
            return Ok(Some(Received::Input { offset, len }));
        }
        let (kind, len) = (frame.kind, frame.payload.len());
        if len > PARSED_FREELY_LEN && !buffers.lends(json::parsed_len_max(frame.payload)) {
            return Ok(Some(Received::TooLarge { kind, len }));
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
    pub(crate) fn handle_flush(
        &mut self,
        session: Option<&Session>,
        buffers: &mut BufferPool,
    ) -> u64 {
        self.is_flush_queued = false;
        let gaps = session.map_or(0, |session| self.announce_gaps(session, buffers));
        self.is_waiting_for_room = self.has_pending(session);
        gaps
    }

    pub(crate) fn handle_written(
        &mut self,
        len: usize,
        session: Option<&Session>,
        buffers: &mut BufferPool,
    ) {
        match self.attachment.as_mut().zip(session) {
            Some((attachment, session)) => {
                let is_whole = attachment.handle_written(len, session, &mut self.outbox, buffers);
                self.is_broken |= !is_whole;
            }
            None => self.outbox.consume(len, buffers),
        }
        self.is_waiting_for_room = self.has_pending(session);
    }

    /// See [`Attachment::announce_gaps`].
    pub(crate) fn announce_gaps(&mut self, session: &Session, buffers: &mut BufferPool) -> u64 {
        let attachment = self.attachment.as_mut();
        attachment.map_or(0, |it| it.announce_gaps(session, &mut self.outbox, buffers))
    }

    /// See [`Attachment::save_partial_frame`].
    pub(crate) fn save_partial_frame(&mut self, session: &Session, buffers: &mut BufferPool) {
        if let Some(attachment) = &mut self.attachment {
            let is_whole = attachment.save_partial_frame(session, &mut self.outbox, buffers);
            self.is_broken |= !is_whole;
        }
    }

    /// Takes no more input, and ends when everything has been sent.
    pub(crate) fn close_after_flush(&mut self, buffers: &mut BufferPool) {
        self.phase = Phase::Closing;
        self.decoder = Decoder::new();
        buffers.release(std::mem::take(&mut self.charged));
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
