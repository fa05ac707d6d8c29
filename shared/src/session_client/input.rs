//! Standard input for the guest: kept until the guest has it, sent as far as the guest's credit
//! allows.
//!
//! ```text
//!  offsets    received        sent           end          limit
//!  ───────────────┼─────────────┼─────────────┼─────────────┼───▶
//!   the guest's   │ in transit  │ to be sent  │ room        │
//! ```
//!
//! Invariants:
//! - `received <= sent <= end <= limit`, and never more than [`INPUT_LEN_MAX`] bytes are held.
//! - On a fresh connection, sending continues at the `received` that the guest announces there.

use std::collections::VecDeque;

use crate::frame::FrameKind;
use crate::limits::STREAM_DATA_LEN_MAX;
use crate::message::{Chunk, Message, StdinEof, Window};

/// Most bytes of standard input that are held for the guest, as many as the guest itself holds.
pub const INPUT_LEN_MAX: usize = 256 * 1024;

/// The module documents it.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Whether this client sends any.
    is_wanted: bool,
    /// Offset of the first byte held; the guest has everything before it.
    received: u64,
    /// The bytes from `received` on.
    held: VecDeque<u8>,
    /// Number of held bytes that were sent on this connection.
    sent_len: usize,
    limit: u64,
    has_ended: bool,
    is_end_sent: bool,
    is_closed: bool,
    /// Whether the guest has announced its `received` yet.
    is_placed: bool,
}

impl Input {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self {
            is_wanted,
            ..Self::default()
        }
    }

    /// Offset behind the last byte held.
    fn end(&self) -> u64 {
        self.received.saturating_add(len_u64(self.held.len()))
    }

    /// Number of bytes that may be passed in now.
    pub(super) fn room(&self) -> usize {
        if !self.is_wanted || self.is_closed || self.has_ended {
            return 0;
        }
        let credit = self.limit.saturating_sub(self.end());
        let credit = usize::try_from(credit).unwrap_or(usize::MAX);
        credit.min(INPUT_LEN_MAX.saturating_sub(self.held.len()))
    }

    /// Holds bytes, at most [`room`](Self::room).
    pub(super) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(
            bytes.len() <= self.room(),
            "more input than there is room for"
        );
        if !self.is_closed && !self.has_ended {
            self.held.extend(bytes);
        }
    }

    pub(super) const fn end_now(&mut self) {
        self.has_ended = true;
    }

    /// Accepts the credit of a fresh connection, or says what is wrong with it.
    pub(super) fn restart(&mut self, window: &Window) -> Result<(), String> {
        if !self.is_placed {
            self.is_placed = true;
            self.received = window.received;
        }
        // The guest may have received any part of what earlier connections sent.
        self.sent_len = self.held.len();
        self.is_end_sent = false;
        self.handle_window(window)?;
        self.sent_len = 0;
        Ok(())
    }

    /// Accepts an update of the credit, or says what is wrong with it.
    pub(super) fn handle_window(&mut self, window: &Window) -> Result<(), String> {
        if window.is_closed {
            self.is_closed = true;
            self.held = VecDeque::new();
            self.sent_len = 0;
        }
        if self.is_closed || !self.is_wanted {
            return Ok(());
        }
        let gone = window.received.checked_sub(self.received);
        let gone = gone.and_then(|gone| usize::try_from(gone).ok());
        let Some(gone) = gone.filter(|gone| *gone <= self.sent_len) else {
            let (from, to) = (self.received, self.received + len_u64(self.sent_len));
            let received = window.received;
            return Err(format!(
                "standard input received up to {received}, where {from} to {to} was sent"
            ));
        };
        self.limit = self.limit.max(window.limit);
        self.held.drain(..gone);
        self.sent_len -= gone;
        self.received = window.received;
        Ok(())
    }

    /// Appends the next frame, if any.
    pub(super) fn write_frame(&mut self, out: &mut Vec<u8>) {
        if self.is_closed || !self.is_wanted {
            return;
        }
        let rest = self.held.len() - self.sent_len;
        if rest > 0 {
            let (front, back) = self.held.as_slices();
            let next = match front.get(self.sent_len..) {
                Some(front) if !front.is_empty() => front,
                _ => &back[self.sent_len - front.len()..],
            };
            let next = &next[..next.len().min(STREAM_DATA_LEN_MAX)];
            let offset = self.received + len_u64(self.sent_len);
            Chunk::encode(FrameKind::Stdin, offset, next, out);
            self.sent_len += next.len();
        } else if self.has_ended && !self.is_end_sent {
            self.is_end_sent = true;
            let offset = self.end();
            Message::StdinEof(StdinEof { offset }).encode_into(out);
        }
    }
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn window(received: u64, limit: u64) -> Window {
        Window {
            received,
            limit,
            is_closed: false,
        }
    }

    fn frames(input: &mut Input) -> usize {
        let mut count = 0;
        loop {
            let mut out = Vec::new();
            input.write_frame(&mut out);
            if out.is_empty() {
                return count;
            }
            count += 1;
        }
    }

    #[test]
    fn room_is_credit_and_has_a_limit() {
        let mut input = Input::new(true);
        assert_eq!(input.room(), 0);
        input.restart(&window(0, 10)).unwrap();
        input.push(b"abc");
        assert_eq!(input.room(), 7);
        input.handle_window(&window(0, u64::MAX)).unwrap();
        assert_eq!(input.room(), INPUT_LEN_MAX - 3);
        input.end_now();
        assert_eq!(input.room(), 0);
        let mut unwanted = Input::new(false);
        unwanted.restart(&window(0, 10)).unwrap();
        assert_eq!((unwanted.room(), frames(&mut unwanted)), (0, 0));
    }

    #[test]
    fn what_the_guest_does_not_have_is_sent_again() {
        let mut input = Input::new(true);
        input.restart(&window(0, 100_000)).unwrap();
        input.push(&[1; 70_000]);
        input.end_now();
        assert_eq!(frames(&mut input), 3);
        input.handle_window(&window(65_528, 100_000)).unwrap();
        input.restart(&window(65_530, 100_000)).unwrap();
        let mut out = Vec::new();
        input.write_frame(&mut out);
        assert_eq!(out[8..16], 65_530u64.to_le_bytes());
        assert_eq!(out.len(), 16 + 4470);
    }

    #[test]
    fn a_guest_cannot_have_what_was_not_sent_nor_lose_what_it_had() {
        let mut input = Input::new(true);
        input.restart(&window(5, 100)).unwrap();
        input.push(b"abc");
        assert!(input.handle_window(&window(6, 100)).is_err());
        frames(&mut input);
        input.handle_window(&window(8, 100)).unwrap();
        assert!(input.handle_window(&window(7, 100)).is_err());
        assert!(input.restart(&window(7, 100)).is_err());
        assert!(input.restart(&window(9, 100)).is_err());
        input.restart(&window(8, 100)).unwrap();
    }

    #[test]
    fn a_closed_input_takes_and_sends_nothing() {
        let mut input = Input::new(true);
        input.restart(&window(0, 100)).unwrap();
        input.push(b"abc");
        let closed = Window {
            is_closed: true,
            ..window(0, 100)
        };
        input.handle_window(&closed).unwrap();
        assert!(input.is_closed);
        assert_eq!((input.room(), frames(&mut input)), (0, 0));
    }
}
