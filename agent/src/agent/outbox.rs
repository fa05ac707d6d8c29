//! Bytes on their way to one peer: bounded, and the source of back-pressure. No I/O.
//!
//! ```text
//! 0 ········ REQUESTS_PAUSE_LEN ········ STREAM_LEN_MAX ········ LEN_MAX
//! └ anything ┴ no further request is ────┴ nothing but answers ──┴ the peer does not
//!              taken from this peer        and ends of sessions    read: it is closed
//! ```
//!
//! Invariants:
//! - Never holds more than [`LEN_MAX`] bytes.
//! - An empty outbox holds no large allocation, so that idle connections cost nothing.

use shared::frame::FrameKind;
use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX, STREAM_DATA_LEN_MAX};
use shared::message::{Chunk, Message};

/// From this many unsent bytes on, no further request is taken from the peer.
pub const REQUESTS_PAUSE_LEN: usize = 64 * 1024;

/// Most unsent bytes for which a session's output is still taken.
pub const STREAM_LEN_MAX: usize = 256 * 1024;

/// Most unsent bytes at all. A peer that lets this much wait has stopped reading.
pub const LEN_MAX: usize = STREAM_LEN_MAX + 128 * 1024;

/// An empty outbox gives back what is above this.
const IDLE_CAPACITY_MAX: usize = 4 * 1024;

/// Bytes of the longest stream frame.
const STREAM_FRAME_LEN_MAX: usize = HEADER_LEN + PAYLOAD_LEN_MAX;

const _: () = {
    assert!(REQUESTS_PAUSE_LEN < STREAM_LEN_MAX);
    // One stream frame always fits an empty outbox, so that streams make progress.
    assert!(STREAM_FRAME_LEN_MAX <= STREAM_LEN_MAX);
    // One answer of any size always fits beside a full stream.
    assert!(STREAM_LEN_MAX + HEADER_LEN + PAYLOAD_LEN_MAX <= LEN_MAX);
};

/// The outbox would hold more than [`LEN_MAX`] bytes. Nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxFull;

/// Encoded frames that wait for the socket.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that have been sent.
    sent: usize,
}

impl Outbox {
    /// Adds an answer or an announcement.
    pub fn push(&mut self, message: &Message) -> Result<(), OutboxFull> {
        let len_before = self.bytes.len();
        message.encode_into(&mut self.bytes);
        if self.pending().len() > LEN_MAX {
            self.bytes.truncate(len_before);
            return Err(OutboxFull);
        }
        Ok(())
    }

    /// Adds a session's output, which must fit [`Self::stream_room`].
    pub fn push_chunk(&mut self, kind: FrameKind, offset: u64, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.stream_room());
        Chunk::encode(kind, offset, bytes, &mut self.bytes);
    }

    /// How many bytes of output may be added: a whole frame's worth, or none.
    pub fn stream_room(&self) -> usize {
        if self.pending().len() + STREAM_FRAME_LEN_MAX <= STREAM_LEN_MAX {
            STREAM_DATA_LEN_MAX
        } else {
            0
        }
    }

    /// Whether the peer's next request may be taken.
    pub fn takes_requests(&self) -> bool {
        self.pending().len() < REQUESTS_PAUSE_LEN
    }

    /// Unsent bytes, the next one first.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.pending().is_empty()
    }

    /// Removes `len` bytes that the socket took.
    ///
    /// # Panics
    ///
    /// When more is taken than was pending, which no socket does.
    pub fn consume(&mut self, len: usize) {
        assert!(
            len <= self.pending().len(),
            "more bytes sent than were pending"
        );
        self.sent += len;
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_CAPACITY_MAX);
            self.sent = 0;
        } else if self.sent > STREAM_LEN_MAX {
            // A peer that always leaves a little unsent must not make the front grow for ever.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::message::Ping;

    fn filled(len: usize) -> Outbox {
        Outbox {
            bytes: vec![0; len],
            sent: 0,
        }
    }

    #[test]
    fn each_threshold_holds_at_the_limit_and_not_past_it() {
        assert!(filled(REQUESTS_PAUSE_LEN - 1).takes_requests());
        assert!(!filled(REQUESTS_PAUSE_LEN).takes_requests());

        let last_room = STREAM_LEN_MAX - STREAM_FRAME_LEN_MAX;
        assert_eq!(filled(last_room).stream_room(), STREAM_DATA_LEN_MAX);
        assert_eq!(filled(last_room + 1).stream_room(), 0);

        let pong = Message::Pong(Ping { nonce: 1 });
        let pong_len = pong.encode().len();
        let mut outbox = filled(LEN_MAX - pong_len);
        assert_eq!(outbox.push(&pong), Ok(()));
        assert_eq!(outbox.pending().len(), LEN_MAX);
        let mut outbox = filled(LEN_MAX - pong_len + 1);
        assert_eq!(outbox.push(&pong), Err(OutboxFull));
        assert_eq!(
            outbox.pending().len(),
            LEN_MAX - pong_len + 1,
            "a refused push adds nothing"
        );
    }

    #[test]
    fn an_empty_outbox_holds_no_large_allocation() {
        let mut outbox = Outbox::default();
        outbox.push_chunk(FrameKind::Stdout, 0, &[1; STREAM_DATA_LEN_MAX]);
        outbox.consume(outbox.pending().len());
        assert!(outbox.is_empty());
        assert!(outbox.bytes.capacity() <= IDLE_CAPACITY_MAX);
    }

    #[test]
    fn memory_stays_bounded_when_the_outbox_never_empties() {
        let mut outbox = Outbox::default();
        for round in 0..1000 {
            while outbox.stream_room() > 0 {
                outbox.push_chunk(FrameKind::Stdout, 0, &[1; STREAM_DATA_LEN_MAX]);
            }
            outbox.consume(outbox.pending().len() - 1);
            assert!(outbox.bytes.capacity() <= 4 * LEN_MAX, "round {round}");
        }
    }
}
