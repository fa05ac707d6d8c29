//! Bytes on their way to one peer: bounded, and the source of back-pressure. No I/O.
//!
//! ```text
//! 0 ──────────────────────── STREAM_LEN_MAX ───────────────────── LEN_MAX
//! └ output and answers ──────┴ nothing but answers and ends ──────┴ the peer does not
//!                              of sessions                          read: it is closed
//! ```
//!
//! From [`REQUESTS_PAUSE_LEN`] bytes of *answers* on, no further request is taken from the peer.
//! Output does not count for that: a client behind a slow terminal must still be able to interrupt
//! what floods it, and its acknowledgements are what makes room for more.
//!
//! Invariants:
//! - Never holds more than [`LEN_MAX`] bytes.
//! - An empty outbox holds no large allocation, so that idle connections cost nothing. While output
//!   flows it gets its memory from `Spares` and gives it back there.

use std::collections::VecDeque;
use std::ops::Range;

use shared::frame::FrameKind;
use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX, STREAM_DATA_LEN_MAX, STREAM_OFFSET_LEN};
use shared::message::{Chunk, Message};

use super::spares::Spares;

/// From this many unsent bytes of answers on, no further request is taken from the peer.
pub const REQUESTS_PAUSE_LEN: usize = 64 * 1024;

/// Most unsent bytes for which a session's output is still taken.
pub const STREAM_LEN_MAX: usize = 256 * 1024;

/// Most unsent bytes at all. A peer that lets this much wait has stopped reading.
pub const LEN_MAX: usize = STREAM_LEN_MAX + 192 * 1024;

/// An empty outbox gives back what is above this.
const IDLE_CAPACITY_MAX: usize = 4 * 1024;

/// Bytes of the longest stream frame.
const STREAM_FRAME_LEN_MAX: usize = HEADER_LEN + PAYLOAD_LEN_MAX;

const _: () = {
    assert!(REQUESTS_PAUSE_LEN < STREAM_LEN_MAX);
    // One stream frame always fits an empty outbox, so that streams make progress.
    assert!(STREAM_FRAME_LEN_MAX <= STREAM_LEN_MAX);
    // One more answer of any size always fits, also beside a full stream.
    assert!(STREAM_LEN_MAX + REQUESTS_PAUSE_LEN + HEADER_LEN + PAYLOAD_LEN_MAX <= LEN_MAX);
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
    /// Bytes sent since the beginning.
    sent_total: u64,
    /// Answers that have not been sent whole, as the bytes between two totals.
    answers: VecDeque<Range<u64>>,
    /// Bytes of those.
    answers_len: u64,
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
        self.note_answer((self.bytes.len() - len_before) as u64);
        Ok(())
    }

    /// The last `len` bytes are an answer. Answers without output between them count as one.
    fn note_answer(&mut self, len: u64) {
        let end = self.sent_total + self.pending().len() as u64;
        self.answers_len += len;
        match self.answers.back_mut() {
            Some(last) if last.end == end - len => last.end = end,
            Some(_) | None => self.answers.push_back(end - len..end),
        }
    }

    /// Adds a session's output, in two pieces as its ring has it, which must fit
    /// [`Self::stream_room`].
    pub(super) fn push_chunk(
        &mut self,
        kind: FrameKind,
        offset: u64,
        (head, tail): (&[u8], &[u8]),
        spares: &mut Spares,
    ) {
        let len = head.len() + tail.len();
        debug_assert!(len <= self.stream_room());
        self.reserve(HEADER_LEN + STREAM_OFFSET_LEN + len, spares);
        Chunk::encode_pieces(kind, offset, [head, tail], &mut self.bytes);
    }

    /// Makes room for `len` bytes: at the front, in a spare buffer, or else in a longer one.
    fn reserve(&mut self, len: usize, spares: &mut Spares) {
        if self.bytes.len() + len <= self.bytes.capacity() {
            return;
        }
        self.bytes.drain(..self.sent);
        self.sent = 0;
        let wanted = self.bytes.len() + len;
        if wanted > self.bytes.capacity().max(IDLE_CAPACITY_MAX)
            && let Some(mut spare) = spares.take(wanted)
        {
            spare.extend_from_slice(&self.bytes);
            give_back(std::mem::replace(&mut self.bytes, spare), spares);
        }
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
        self.answers_len < REQUESTS_PAUSE_LEN as u64
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
    pub(super) fn consume(&mut self, len: usize, spares: &mut Spares) {
        assert!(
            len <= self.pending().len(),
            "more bytes sent than were pending"
        );
        self.sent += len;
        self.sent_total += len as u64;
        self.forget_sent_answers();
        if self.sent == self.bytes.len() {
            self.sent = 0;
            self.bytes.clear();
            if self.bytes.capacity() > IDLE_CAPACITY_MAX {
                give_back(std::mem::take(&mut self.bytes), spares);
            }
        } else if self.sent > STREAM_LEN_MAX {
            // A peer that always leaves a little unsent must not make the front grow for ever.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    fn forget_sent_answers(&mut self) {
        while let Some(first) = self.answers.front_mut() {
            let sent_until = self.sent_total.clamp(first.start, first.end);
            self.answers_len -= sent_until - first.start;
            first.start = sent_until;
            if !first.is_empty() {
                return;
            }
            self.answers.pop_front();
        }
    }
}

/// What is large enough may be of use to others.
fn give_back(bytes: Vec<u8>, spares: &mut Spares) {
    if bytes.capacity() > IDLE_CAPACITY_MAX {
        spares.give(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::message::Ping;

    fn filled(len: usize) -> Outbox {
        Outbox {
            bytes: vec![0; len],
            ..Outbox::default()
        }
    }

    #[test]
    fn each_threshold_holds_at_the_limit_and_not_past_it() {
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

    /// Requests wait for their peer to read answers, and not for it to read output.
    #[test]
    fn only_answers_hold_requests_back() {
        let pong = Message::Pong(Ping { nonce: 1 });
        let pong_len = pong.encode().len();
        let mut outbox = Outbox::default();
        let push_chunk = |outbox: &mut Outbox| {
            let len = outbox.stream_room();
            let bytes = vec![1; len];
            outbox.push_chunk(
                FrameKind::Stdout,
                0,
                bytes.split_at(len / 3),
                &mut Spares::default(),
            );
        };
        push_chunk(&mut outbox);
        let chunks_len = outbox.pending().len();
        let count = REQUESTS_PAUSE_LEN.div_ceil(pong_len);
        for index in 0..count {
            assert!(outbox.takes_requests(), "after {index} answers");
            outbox.push(&pong).expect("room");
        }
        assert!(!outbox.takes_requests());
        outbox.push_chunk(FrameKind::Stdout, 0, (b"x", b"y"), &mut Spares::default());
        outbox.consume(chunks_len, &mut Spares::default());
        assert!(!outbox.takes_requests(), "not one answer is sent");
        outbox.consume(pong_len, &mut Spares::default());
        assert!(outbox.takes_requests());
        outbox.consume(outbox.pending().len(), &mut Spares::default());
        assert_eq!((outbox.answers_len, outbox.answers.len()), (0, 0));
    }

    #[test]
    fn an_empty_outbox_holds_no_large_allocation() {
        let mut outbox = Outbox::default();
        outbox.push_chunk(
            FrameKind::Stdout,
            0,
            (&[1; STREAM_DATA_LEN_MAX], &[]),
            &mut Spares::default(),
        );
        outbox.consume(outbox.pending().len(), &mut Spares::default());
        assert!(outbox.is_empty());
        assert!(outbox.bytes.capacity() <= IDLE_CAPACITY_MAX);
    }

    #[test]
    fn memory_stays_bounded_when_the_outbox_never_empties() {
        let mut outbox = Outbox::default();
        for round in 0..1000 {
            while outbox.stream_room() > 0 {
                outbox.push_chunk(
                    FrameKind::Stdout,
                    0,
                    (&[1; STREAM_DATA_LEN_MAX], &[]),
                    &mut Spares::default(),
                );
            }
            outbox.consume(outbox.pending().len() - 1, &mut Spares::default());
            assert!(outbox.bytes.capacity() <= 4 * LEN_MAX, "round {round}");
        }
    }
}
