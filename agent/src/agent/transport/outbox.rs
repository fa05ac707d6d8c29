//! Answers and announcements on their way to one peer, bounded. The bound is back-pressure. No I/O.
//!
//! ```text
//! 0 ──────────────── REQUESTS_PAUSE_LEN ───────────────── ANSWERS_LEN_MAX
//! └ requests are taken ──┴ no request is taken until ─────────┴ the peer does not read:
//!                          the peer reads answers               it is closed
//! ```
//!
//! Output is not here. It waits in its session's ring until the socket takes it (see
//! [`output`](super::output)), so that it delays no request: a client behind a slow terminal can
//! still interrupt the command that floods it. Only the rest of a partly sent frame comes here,
//! when the ring cannot keep it.
//!
//! Invariants:
//! - Never holds more than [`LEN_MAX`] bytes. What exceeds [`ANSWER_LEN_FREE`] comes out of the
//!   budget (see [`buffers`](crate::agent::sessions::buffers)).
//! - An empty outbox holds no large allocation, so that idle connections cost little.

use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX};
use shared::message::Message;

use crate::agent::sessions::buffers::{
    ANSWER_LEN_FREE, BufferPool, GROWTH_HEADROOM_LEN, is_available,
};

/// With this many unsent bytes of answers no further request is taken from the peer.
pub(crate) const REQUESTS_PAUSE_LEN: usize = 64 * 1024;

/// Unsent bytes of answers at which a peer counts as not reading.
pub(crate) const ANSWERS_LEN_MAX: usize = 192 * 1024;

/// Unsent bytes in all: the rest of one frame of output, and answers.
pub(crate) const LEN_MAX: usize = ANSWERS_LEN_MAX + HEADER_LEN + PAYLOAD_LEN_MAX;

/// Capacity that an empty outbox keeps, and that every outbox may have.
const IDLE_CAPACITY_MAX: usize = ANSWER_LEN_FREE;

// An answer of any size fits after the last request was taken.
const _: () = assert!(REQUESTS_PAUSE_LEN + HEADER_LEN + PAYLOAD_LEN_MAX <= ANSWERS_LEN_MAX);

/// Why an answer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OutboxError {
    /// It would exceed [`ANSWERS_LEN_MAX`].
    Full,
    /// There is no memory for it.
    NoMemory,
}

/// Encoded frames that wait for the socket.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that have been sent.
    sent: usize,
    /// Bytes after those that belong to a partly sent frame of output.
    output_len: usize,
    /// Bytes out of the budget.
    charged: usize,
}

impl Outbox {
    pub(crate) fn push(
        &mut self,
        message: &Message,
        buffers: &mut BufferPool,
    ) -> Result<(), OutboxError> {
        buffers.encoded(message, |frame, buffers| {
            if self.answers_len() + frame.len() > ANSWERS_LEN_MAX {
                return Err(OutboxError::Full);
            }
            if !self.reserve(frame.len(), buffers) {
                return Err(OutboxError::NoMemory);
            }
            self.bytes.extend_from_slice(frame);
            Ok(())
        })
    }

    /// Takes the rest of a partly sent frame of output. It goes first: no answer can be partly
    /// sent. `false`: there is no memory for it, and the connection cannot go on.
    #[must_use]
    pub(crate) fn take_over(&mut self, pieces: [&[u8]; 3], buffers: &mut BufferPool) -> bool {
        debug_assert_eq!(self.output_len, 0);
        let len = pieces.iter().map(|piece| piece.len()).sum();
        self.drop_sent();
        if !self.reserve(len, buffers) {
            return false;
        }
        pieces
            .iter()
            .for_each(|piece| self.bytes.extend_from_slice(piece));
        self.bytes.rotate_right(len);
        self.output_len = len;
        true
    }

    /// Gets memory for `len` more bytes.
    fn reserve(&mut self, len: usize, buffers: &mut BufferPool) -> bool {
        let fits = |bytes: &Vec<u8>| len <= bytes.capacity() - bytes.len();
        if fits(&self.bytes) {
            return true;
        }
        self.drop_sent();
        if fits(&self.bytes) {
            return true;
        }
        let target = (self.bytes.len() + len).next_power_of_two();
        let is_large = target > IDLE_CAPACITY_MAX;
        let charge = match is_large {
            true => target.saturating_sub(self.charged),
            false => 0,
        };
        if !buffers.charge(charge, false) {
            return false;
        }
        let result = self.bytes.try_reserve_exact(target - self.bytes.len());
        if result.is_err() || is_large && !is_available(GROWTH_HEADROOM_LEN) {
            self.bytes.shrink_to(0);
            buffers.release(charge);
            buffers.refuse();
            return false;
        }
        self.charged += charge;
        true
    }

    /// Gives all memory back.
    pub(crate) fn clear(&mut self, buffers: &mut BufferPool) {
        self.bytes = Vec::new();
        self.sent = 0;
        self.output_len = 0;
        buffers.release(std::mem::take(&mut self.charged));
    }

    /// Bytes out of the budget.
    pub(crate) fn charged(&self) -> usize {
        self.charged
    }

    fn drop_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
    }

    pub(crate) fn takes_requests(&self) -> bool {
        self.answers_len() < REQUESTS_PAUSE_LEN
    }

    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending().is_empty()
    }

    fn answers_len(&self) -> usize {
        self.pending().len() - self.output_len
    }

    /// # Panics
    ///
    /// If more bytes are consumed than were pending, which no socket does.
    pub(crate) fn consume(&mut self, len: usize, buffers: &mut BufferPool) {
        assert!(
            len <= self.pending().len(),
            "more bytes sent than were pending"
        );
        self.sent += len;
        self.output_len = self.output_len.saturating_sub(len);
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
            if self.bytes.capacity() > IDLE_CAPACITY_MAX {
                self.clear(buffers);
            }
        } else if self.sent > REQUESTS_PAUSE_LEN {
            // A peer that always leaves a little unsent must not make the front grow for ever.
            self.drop_sent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::message::Ping;

    const PONG: Message = Message::Pong(Ping { nonce: 1 });

    fn filled(len: usize) -> Outbox {
        Outbox {
            bytes: vec![0; len],
            ..Outbox::default()
        }
    }

    #[test]
    fn each_threshold_holds_at_the_limit_and_not_past_it() {
        assert!(filled(REQUESTS_PAUSE_LEN - 1).takes_requests());
        assert!(!filled(REQUESTS_PAUSE_LEN).takes_requests());

        let pong_len = PONG.encode().len();
        let mut outbox = filled(ANSWERS_LEN_MAX - pong_len);
        assert_eq!(outbox.push(&PONG, &mut BufferPool::default()), Ok(()));
        assert_eq!(outbox.pending().len(), ANSWERS_LEN_MAX);
        let mut outbox = filled(ANSWERS_LEN_MAX - pong_len + 1);
        assert_eq!(
            outbox.push(&PONG, &mut BufferPool::default()),
            Err(OutboxError::Full)
        );
        assert_eq!(
            outbox.pending().len(),
            ANSWERS_LEN_MAX - pong_len + 1,
            "a refused push adds nothing"
        );
    }

    /// Unread answers hold requests back; unread output does not.
    #[test]
    fn only_answers_hold_requests_back() {
        let mut outbox = filled(REQUESTS_PAUSE_LEN - 1);
        let rest: [&[u8]; 3] = [b"head", &vec![1; PAYLOAD_LEN_MAX], b""];
        assert!(outbox.take_over(rest, &mut BufferPool::default()));
        assert_eq!(outbox.pending()[..5], *b"head\x01");
        assert!(outbox.takes_requests());
        outbox
            .push(&PONG, &mut BufferPool::default())
            .expect("room");
        assert!(!outbox.takes_requests());
        outbox.consume(4 + PAYLOAD_LEN_MAX, &mut BufferPool::default());
        assert!(!outbox.takes_requests(), "not one answer is sent");
        outbox.consume(PONG.encode().len(), &mut BufferPool::default());
        assert!(outbox.takes_requests());
        outbox.consume(outbox.pending().len(), &mut BufferPool::default());
        assert!(outbox.is_empty() && outbox.output_len == 0);
    }

    #[test]
    fn an_empty_outbox_holds_no_large_allocation() {
        let mut outbox = filled(PAYLOAD_LEN_MAX);
        outbox.consume(outbox.pending().len(), &mut BufferPool::default());
        assert!(outbox.is_empty());
        assert!(outbox.bytes.capacity() <= IDLE_CAPACITY_MAX);
    }

    #[test]
    fn memory_stays_bounded_when_the_outbox_never_empties() {
        let mut outbox = Outbox::default();
        for round in 0..1000 {
            while outbox.takes_requests() {
                outbox
                    .push(&PONG, &mut BufferPool::default())
                    .expect("room");
            }
            outbox.consume(outbox.pending().len() - 1, &mut BufferPool::default());
            assert!(outbox.bytes.capacity() <= 4 * LEN_MAX, "round {round}");
        }
    }
}
