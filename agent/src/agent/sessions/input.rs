//! A session's standard input on its way to the command: bounded, with credit. No I/O, no clock.
//!
//! ```text
//! offset 0 ······ written ─────────── received ············ limit
//!   └ the command ──┘└ wait to be written ──┘└ the client may send this much more
//! ```
//!
//! A WINDOW tells the client how far it may send. One is due when half of the buffer was freed
//! since the last one, when the client has used up its credit, and when the command has closed its
//! input.
//!
//! Credit is a promise of memory. While memory is tight a client is told no more than a page. What
//! it was told before may use the part of the budget that is kept for such promises.
//!
//! Invariants:
//! - Never holds more than [`INPUT_LEN_MAX`] bytes, and the limit never goes back.
//! - Bytes are taken in order, each once: known ones are skipped, a hole is refused.
//! - The end comes after the last byte. For a terminal it is a character; see [`Input::pending`].

use shared::message::Window;

use super::buffers::BufferPool;
use super::ring::{RING_LEN_MAX, Ring};

/// Bytes that may wait for a command to read them.
pub const INPUT_LEN_MAX: usize = RING_LEN_MAX;

/// The terminal's end-of-file character (`VEOF`, `termios(3)`), twice: within a line, the first one
/// only hands over the line, and the second one is read as the end.
const END_OF_FILE: &[u8; 2] = b"\x04\x04";

/// What a client must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum InputError {
    /// Bytes before these are missing, or the end is not after the last byte.
    Hole,
    /// More bytes than there is credit for.
    OverLimit,
    /// Bytes after the end.
    BehindEnd,
    /// The agent has no memory for them.
    NoMemory,
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Input {
    ring: Ring,
    /// How far after the first unwritten byte the client may send.
    allowance: usize,
    /// Whether the command may still read it.
    is_open: bool,
    /// Whether it was cut, so that the writing end is still open although nothing is written.
    is_cut: bool,
    is_tty: bool,
    /// Whether the client has announced the end.
    is_ended: bool,
    /// End-of-file characters that are still to be written.
    ends_left: usize,
    /// The last byte that came.
    last: Option<u8>,
    /// The limit of the last WINDOW.
    limit_told: u64,
    /// Whether the client knows that it is closed.
    is_closing_told: bool,
    /// Whether the shell was asked to write the pending bytes and has not written all of them.
    is_flushing: bool,
}

impl Input {
    /// `is_wanted`: whether the client will send anything.
    pub(crate) fn new(is_wanted: bool, is_tty: bool) -> Self {
        Self {
            ring: Ring::promised(),
            allowance: INPUT_LEN_MAX,
            is_open: is_wanted,
            is_cut: false,
            is_tty,
            is_ended: false,
            ends_left: 0,
            last: None,
            limit_told: 0,
            is_closing_told: !is_wanted,
            is_flushing: false,
        }
    }

    /// Takes the memory that it needs at least. `false`: there is none.
    pub(crate) fn open(&mut self, buffers: &mut BufferPool) -> bool {
        self.renew_allowance(buffers);
        !self.is_open || self.ring.open(buffers)
    }

    /// Drops all bytes and gives all memory back.
    pub(crate) fn clear(&mut self, buffers: &mut BufferPool) {
        self.ring.clear(buffers);
    }

    /// Bytes out of the budget.
    pub(crate) fn held_len(&self) -> usize {
        self.ring.held_len()
    }

    /// Whether it may still come.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Makes the allowance what memory gives now, but keeps what the client was told.
    fn renew_allowance(&mut self, buffers: &BufferPool) {
        let told = self.limit_told.saturating_sub(self.ring.start());
        let told = usize::try_from(told).unwrap_or(INPUT_LEN_MAX);
        self.allowance = buffers.promise_len(INPUT_LEN_MAX).max(told);
    }

    /// Takes bytes from `offset` on, and skips known ones.
    pub(crate) fn handle_bytes(
        &mut self,
        offset: u64,
        bytes: &[u8],
        buffers: &mut BufferPool,
    ) -> Result<(), InputError> {
        if !self.is_open {
            return Ok(());
        }
        let received = self.ring.end();
        let end = offset.saturating_add(bytes.len() as u64);
        if offset > received {
            return Err(InputError::Hole);
        }
        if end <= received {
            return Ok(());
        }
        if self.is_ended {
            return Err(InputError::BehindEnd);
        }
        if end > self.limit() {
            return Err(InputError::OverLimit);
        }
        // The difference is below the length of `bytes`.
        let known = usize::try_from(received - offset).unwrap_or(bytes.len());
        let fresh = &bytes[known..];
        let taken = self.ring.append(fresh, buffers);
        if taken < fresh.len() {
            return Err(InputError::NoMemory);
        }
        self.last = bytes.last().copied();
        Ok(())
    }

    /// The client announces that the stream ends at `offset`.
    pub(crate) fn handle_end(&mut self, offset: u64) -> Result<(), InputError> {
        if !self.is_open {
            return Ok(());
        }
        if offset != self.ring.end() {
            return Err(InputError::Hole);
        }
        if !self.is_ended {
            self.is_ended = true;
            let is_mid_line = !matches!(self.last, None | Some(b'\n' | b'\r'));
            self.ends_left = match self.is_tty {
                true => 1 + usize::from(is_mid_line),
                false => 0,
            };
        }
        Ok(())
    }

    /// Bytes to be written next. After the last one a terminal gets its end-of-file character: once
    /// at the start of a line, twice within one.
    pub(crate) fn pending(&self) -> &[u8] {
        match self.ring.bytes_from(self.ring.start(), INPUT_LEN_MAX) {
            [&[], _] => &END_OF_FILE[..self.ends_left],
            [bytes, _] => bytes,
        }
    }

    /// The command took `len` of the pending bytes.
    pub(crate) fn handle_written(&mut self, len: usize, buffers: &mut BufferPool) {
        debug_assert!(len <= self.pending().len());
        if self.ring.is_empty() {
            self.ends_left = self.ends_left.saturating_sub(len);
        } else {
            self.ring.release(self.ring.start() + len as u64, buffers);
        }
        if self.pending().is_empty() {
            self.is_flushing = false;
        }
    }

    /// The command does not read it any more. Returns whether the writing end was open.
    pub(crate) fn close(&mut self, buffers: &mut BufferPool) -> bool {
        self.ring.clear(buffers);
        self.ends_left = 0;
        self.is_flushing = false;
        std::mem::take(&mut self.is_open) | std::mem::take(&mut self.is_cut)
    }

    /// Nothing more can be written. Returns the number of bytes that were, unless it was closed.
    pub(crate) fn cut(&mut self, buffers: &mut BufferPool) -> Option<u64> {
        if !self.is_open {
            return None;
        }
        let written = self.ring.start();
        self.close(buffers);
        self.is_cut = true;
        Some(written)
    }

    /// Whether the shell has to be asked to write the pending bytes. Asks once: the shell then
    /// continues until everything is written.
    pub(crate) fn poll_flush(&mut self) -> bool {
        let is_due = !self.is_flushing && !self.pending().is_empty();
        self.is_flushing |= is_due;
        is_due
    }

    /// Whether everything up to the announced end is written. Then closes it.
    pub(crate) fn poll_end(&mut self, buffers: &mut BufferPool) -> bool {
        let is_due = self.is_open && self.is_ended && !self.is_tty && self.ring.is_empty();
        is_due && self.close(buffers)
    }

    /// The WINDOW that is due, if one is. Gives it once.
    pub(crate) fn poll_window(&mut self, buffers: &BufferPool) -> Option<Window> {
        self.renew_allowance(buffers);
        let is_due = if self.is_open {
            let fresh = self.limit().saturating_sub(self.limit_told);
            let is_used_up = self.ring.end() >= self.limit_told;
            !self.is_ended && (fresh >= self.allowance as u64 / 2 || is_used_up && fresh > 0)
        } else {
            !self.is_closing_told
        };
        is_due.then(|| self.tell_window())
    }

    /// A WINDOW for a client that is about to send.
    pub(crate) fn tell_window(&mut self) -> Window {
        let window = self.window();
        self.limit_told = window.limit;
        self.is_closing_told = window.is_closed;
        window
    }

    pub(crate) fn window(&self) -> Window {
        Window {
            received: self.ring.end(),
            limit: self.limit(),
            is_closed: !self.is_open,
        }
    }

    /// Offset up to which the client may send.
    fn limit(&self) -> u64 {
        if self.is_open {
            self.ring.start() + self.allowance as u64
        } else {
            self.limit_told.max(self.ring.end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = INPUT_LEN_MAX as u64;

    fn open() -> Input {
        let mut input = Input::new(true, false);
        input.tell_window();
        input
    }

    fn take(input: &mut Input, offset: u64, bytes: &[u8]) -> Result<(), InputError> {
        input.handle_bytes(offset, bytes, &mut BufferPool::default())
    }

    fn write(input: &mut Input, mut len: usize) {
        while len > 0 {
            let piece = input.pending().len().min(len);
            input.handle_written(piece, &mut BufferPool::default());
            len -= piece;
        }
    }

    #[test]
    fn bytes_are_taken_once_in_order_and_within_the_limit() {
        let cases: [(u64, usize, Result<(), InputError>, u64); 8] = [
            (10, 0, Ok(()), 10),
            (10, 1, Ok(()), 11),
            (11, 1, Err(InputError::Hole), 10),
            (0, 10, Ok(()), 10),
            (4, 10, Ok(()), 14),
            (10, INPUT_LEN_MAX - 10, Ok(()), MAX),
            (10, INPUT_LEN_MAX - 9, Err(InputError::OverLimit), 10),
            (u64::MAX, 1, Err(InputError::Hole), 10),
        ];
        for (offset, len, expected, received) in cases {
            let mut input = open();
            take(&mut input, 0, b"0123456789").expect("taken");
            let result = take(&mut input, offset, &vec![b'x'; len]);
            assert_eq!(result, expected, "{len} bytes at {offset}");
            assert_eq!(input.window().received, received);
        }
    }

    #[test]
    fn the_end_is_behind_the_last_byte() {
        let mut input = open();
        take(&mut input, 0, b"abc").expect("taken");
        assert_eq!(input.handle_end(2), Err(InputError::Hole));
        assert_eq!(input.handle_end(4), Err(InputError::Hole));
        assert_eq!(input.handle_end(3), Ok(()));
        assert_eq!(input.handle_end(3), Ok(()), "said again");
        assert_eq!(take(&mut input, 1, b"bc"), Ok(()), "sent again");
        assert_eq!(take(&mut input, 3, b"d"), Err(InputError::BehindEnd));
        assert!(
            !input.poll_end(&mut BufferPool::default()),
            "bytes are waiting"
        );
        write(&mut input, 3);
        assert!(
            input.poll_end(&mut BufferPool::default())
                && !input.poll_end(&mut BufferPool::default())
        );
        assert_eq!(take(&mut input, 9, b"late"), Ok(()), "ignored");
        assert_eq!(input.handle_end(99), Ok(()), "ignored");
    }

    #[test]
    fn a_window_is_due_at_half_or_without_credit_or_closed() {
        let half = INPUT_LEN_MAX / 2;
        // Bytes sent, bytes written, and whether a WINDOW is due.
        for (sent, written, is_due) in [
            (half, half - 1, false),
            (half, half, true),
            (INPUT_LEN_MAX - 1, 1, false),
            (INPUT_LEN_MAX, 0, false),
            (INPUT_LEN_MAX, 1, true),
        ] {
            let mut input = open();
            take(&mut input, 0, &vec![b'x'; sent]).expect("within the limit");
            write(&mut input, written);
            let window = input.poll_window(&BufferPool::default());
            assert_eq!(window.is_some(), is_due, "{sent} and {written}");
            if let Some(window) = window {
                assert_eq!(window.received, sent as u64);
                assert_eq!(
                    (window.limit, window.is_closed),
                    (MAX + written as u64, false)
                );
                assert_eq!(input.poll_window(&BufferPool::default()), None, "told once");
            }
        }
        let mut input = open();
        assert!(input.close(&mut BufferPool::default()));
        let window = input
            .poll_window(&BufferPool::default())
            .expect("it is closed");
        assert_eq!((window.limit, window.is_closed), (MAX, true));
        assert_eq!(input.poll_window(&BufferPool::default()), None, "told once");
        assert_eq!(
            Input::new(false, false).poll_window(&BufferPool::default()),
            None,
            "STARTED says so"
        );
    }

    #[test]
    fn a_terminal_is_given_its_end_of_file_character() {
        let cases: [(&[u8], &[u8]); 4] = [
            (b"", b"\x04"),
            (b"line\n", b"\x04"),
            (b"line\r", b"\x04"),
            (b"half", b"\x04\x04"),
        ];
        for (bytes, expected) in cases {
            let mut input = Input::new(true, true);
            take(&mut input, 0, bytes).expect("taken");
            input.handle_end(bytes.len() as u64).expect("taken");
            write(&mut input, bytes.len());
            assert_eq!(input.pending(), expected);
            write(&mut input, expected.len());
            assert!(input.pending().is_empty());
            assert!(
                !input.poll_end(&mut BufferPool::default()),
                "of a terminal nothing is closed"
            );
            assert_eq!(input.window().received, bytes.len() as u64);
        }
    }

    #[test]
    fn the_shell_is_asked_to_write_once() {
        let mut input = open();
        assert!(!input.poll_flush(), "there is nothing");
        take(&mut input, 0, b"ab").expect("taken");
        assert!(input.poll_flush() && !input.poll_flush());
        input.handle_written(1, &mut BufferPool::default());
        take(&mut input, 2, b"c").expect("taken");
        assert!(!input.poll_flush(), "the shell continues by itself");
        write(&mut input, 2);
        take(&mut input, 3, b"d").expect("taken");
        assert!(input.poll_flush());
    }
}
