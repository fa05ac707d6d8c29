//! Payloads of STDOUT, STDERR and STDIN, ACK, GAP, STDIN_EOF, WINDOW and RESIZE.

use std::fmt;

use super::error::PayloadError;
use super::keyword::keywords;
use crate::frame::{Frame, FrameKind};
use crate::json::{JsonError, Object, ToJson, object};
use crate::limits::{HEADER_LEN, STREAM_DATA_LEN_MAX, STREAM_OFFSET_LEN};

keywords! {
    /// One of a session's two output streams.
    Stream {
        /// Standard output; of a session with a terminal, all output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
    }
}

impl Stream {
    /// The frame that carries the stream's bytes.
    #[must_use]
    pub const fn frame_kind(self) -> FrameKind {
        match self {
            Self::Stdout => FrameKind::Stdout,
            Self::Stderr => FrameKind::Stderr,
        }
    }

    /// 0 or 1, as an index into an array with an item for each stream.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

keywords! {
    /// What the guest does when a session's output ring is full.
    OutputPolicy {
        /// It stops reading, so the command blocks.
        Block = "block",
        /// It drops the oldest bytes. Clients that did not get them receive a GAP.
        DropOldest = "drop_oldest",
    }
}

/// STDOUT, STDERR or STDIN: bytes of a stream.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Number of bytes of the stream before these.
    pub offset: u64,
    /// At most [`STREAM_DATA_LEN_MAX`] bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes at {})", self.bytes.len(), self.offset)
    }
}

impl Chunk {
    /// Number of bytes before the data of a stream frame: header and offset.
    pub const HEADER_LEN: usize = HEADER_LEN + STREAM_OFFSET_LEN;

    /// The header and offset before `len` bytes of data that the sender does not copy.
    ///
    /// # Panics
    ///
    /// When `len` is more than [`STREAM_DATA_LEN_MAX`].
    #[must_use]
    pub fn header(kind: FrameKind, offset: u64, len: usize) -> [u8; Self::HEADER_LEN] {
        assert!(len <= STREAM_DATA_LEN_MAX, "stream data over its limit");
        let mut bytes = [0; Self::HEADER_LEN];
        let payload_len = u32::try_from(STREAM_OFFSET_LEN + len).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&payload_len.to_le_bytes());
        bytes[4] = kind.code();
        bytes[HEADER_LEN..].copy_from_slice(&offset.to_le_bytes());
        bytes
    }

    /// Appends a stream frame with data from the sender's buffer.
    ///
    /// # Panics
    ///
    /// When `bytes` is longer than [`STREAM_DATA_LEN_MAX`]. Senders read no more at once.
    pub fn encode(kind: FrameKind, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&Self::header(kind, offset, bytes.len()));
        out.extend_from_slice(bytes);
    }

    /// The offset and the data of a stream frame, without copying.
    ///
    /// # Errors
    ///
    /// When the payload is shorter than an offset.
    pub fn parse(frame: Frame<'_>) -> Result<(u64, &[u8]), PayloadError> {
        let kind = frame.kind;
        let (offset, bytes) = frame
            .payload
            .split_first_chunk::<STREAM_OFFSET_LEN>()
            .ok_or(PayloadError::Truncated { kind })?;
        Ok((u64::from_le_bytes(*offset), bytes))
    }

    pub(super) fn read(frame: Frame<'_>) -> Result<Self, PayloadError> {
        let (offset, bytes) = Self::parse(frame)?;
        let bytes = bytes.to_vec();
        Ok(Self { offset, bytes })
    }

    pub(super) fn write(&self, kind: FrameKind, out: &mut Vec<u8>) {
        Self::encode(kind, self.offset, &self.bytes, out);
    }
}

/// ACK: the host has consumed every byte before `offset`, so the guest need not keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ack {
    /// The stream.
    pub stream: Stream,
    /// Total bytes consumed. The guest ignores a smaller offset than before.
    pub offset: u64,
}

impl Ack {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            stream: object.parsed("stream", "stdout or stderr")?,
            offset: object.number("offset")?,
        })
    }
}

impl ToJson for Ack {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "offset": self.offset,
            "stream": self.stream,
        });
    }
}

/// GAP: the guest dropped bytes of a stream. The stream continues at `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gap {
    /// The stream.
    pub stream: Stream,
    /// Offset of the first missing byte.
    pub from: u64,
    /// Offset after the last missing byte; above `from`.
    pub to: u64,
}

impl Gap {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let gap = Self {
            stream: object.parsed("stream", "stdout or stderr")?,
            from: object.number("from")?,
            to: object.number("to")?,
        };
        if gap.from < gap.to {
            Ok(gap)
        } else {
            Err(object.error("to", "more than \"from\""))
        }
    }
}

impl ToJson for Gap {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "from": self.from,
            "stream": self.stream,
            "to": self.to,
        });
    }
}

/// STDIN_EOF: the end of standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StdinEof {
    /// Total bytes of standard input.
    pub offset: u64,
}

impl StdinEof {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            offset: object.number("offset")?,
        })
    }
}

impl ToJson for StdinEof {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "offset": self.offset,
        });
    }
}

/// WINDOW: the guest's credit for standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Total bytes that the guest has, so that the host need not keep them.
    pub received: u64,
    /// Offset up to which the host may send. Never decreases; at least `received`.
    pub limit: u64,
    /// No process reads standard input any more, so the host should not send more.
    pub is_closed: bool,
}

impl Window {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let window = Self {
            received: object.number("received")?,
            limit: object.number("limit")?,
            is_closed: object.flag("closed")?,
        };
        if window.received <= window.limit {
            Ok(window)
        } else {
            Err(object.error("limit", "no less than \"received\""))
        }
    }
}

impl ToJson for Window {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "closed": self.is_closed,
            "limit": self.limit,
            "received": self.received,
        });
    }
}

/// RESIZE, and the terminal of an EXEC: a size in characters (`TIOCSWINSZ`, `tty_ioctl(4)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TtySize {
    /// Number of lines.
    pub rows: u16,
    /// Number of characters in a line.
    pub cols: u16,
}

impl TtySize {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            rows: object.number("rows")?,
            cols: object.number("cols")?,
        })
    }
}

impl ToJson for TtySize {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "cols": self.cols,
            "rows": self.rows,
        });
    }
}
