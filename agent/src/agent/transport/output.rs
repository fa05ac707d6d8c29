//! Output on its way from a session's rings to one peer: framed as it is written, never copied. No
//! I/O.
//!
//! ```text
//! ring   ··· ──────────────┬───────────────┬──────────────┬──── end
//!             was written  │ rest of a     │ frames to be │ …
//!                          │ frame, if any │ written next │
//!                          cursor
//! ```
//!
//! The socket is handed the headers and the pieces of the rings themselves. Bytes that it does not
//! take stay in the ring. A frame of which nothing was written is not remembered: the next write
//! builds frames from what the rings hold then. A frame of which a part was written has to be
//! completed first.
//!
//! Invariants:
//! - A cursor is the offset of the first byte that was not written.
//! - While a frame is partly written, the ring holds the rest. A caller that takes unacknowledged
//!   bytes from a ring moves that rest away first, with `Cursors::take_rest`.

use shared::limits::STREAM_DATA_LEN_MAX;
use shared::message::{Chunk, Gap, Stream};

use crate::agent::sessions::session::Session;

/// Frames that the socket is handed at once: what a full ring takes, and one more.
pub(crate) const FRAMES_MAX: usize = 6;

/// Pieces of those: the rest of a frame, answers, and for each frame a header and up to two pieces
/// of a ring.
pub(crate) const PIECES_MAX: usize = 3 + 1 + 3 * FRAMES_MAX;

/// Memory for the headers of frames.
pub type Headers = [[u8; Chunk::HEADER_LEN]; FRAMES_MAX];

/// What a socket should take next, in order.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    pieces: [&'a [u8]; PIECES_MAX],
    count: usize,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new() -> Self {
        Self {
            pieces: [&[]; PIECES_MAX],
            count: 0,
        }
    }

    /// Adds a piece, unless it is empty.
    pub(crate) fn push(&mut self, piece: &'a [u8]) {
        if !piece.is_empty() {
            self.pieces[self.count] = piece;
            self.count += 1;
        }
    }

    /// None of the pieces is empty.
    pub fn as_slice(&self) -> &[&'a [u8]] {
        &self.pieces[..self.count]
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.as_slice().iter().map(|piece| piece.len()).sum()
    }
}

/// A partly written frame. Its data begins at its stream's cursor.
#[derive(Clone, Copy, Debug, Hash)]
struct Part {
    stream: Stream,
    header: [u8; Chunk::HEADER_LEN],
    header_sent: usize,
    /// Offset after its last byte.
    end: u64,
}

/// One peer's progress in a session's output.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Cursors {
    /// Offsets of the next bytes.
    next: [u64; 2],
    /// Index of the stream whose turn it is.
    turn: usize,
    part: Option<Part>,
}

impl Cursors {
    pub(crate) fn at(next: [u64; 2]) -> Self {
        Self {
            next,
            turn: 0,
            part: None,
        }
    }

    pub(crate) fn offsets(&self) -> [u64; 2] {
        self.next
    }

    pub(crate) fn is_mid_frame(&self) -> bool {
        self.part.is_some()
    }

    pub(crate) fn is_behind(&self, session: &Session) -> bool {
        let is_behind = |stream: &Stream| self.next[stream.index()] < session.ring(*stream).end();
        self.is_mid_frame() || Stream::ALL.iter().any(is_behind)
    }

    /// Moves the cursor over bytes of a stream that are gone, if there are any.
    pub(crate) fn skip_gap(&mut self, stream: Stream, session: &Session) -> Option<Gap> {
        let next = &mut self.next[stream.index()];
        let (from, to) = (*next, session.ring(stream).start());
        *next = from.max(to);
        (from < to).then_some(Gap { stream, from, to })
    }

    /// Moves the cursor over the next frame. Gives its offset and the length of its data. The
    /// streams take turns, so that an endless one does not starve the other. A stream with a gap
    /// waits.
    fn next_frame(&mut self, session: &Session) -> Option<(Stream, u64, usize)> {
        for _ in Stream::ALL {
            let stream = Stream::ALL[self.turn];
            self.turn = (self.turn + 1) % Stream::ALL.len();
            let ring = session.ring(stream);
            let next = &mut self.next[stream.index()];
            if (ring.start()..ring.end()).contains(next) {
                let offset = *next;
                let len = (ring.end() - offset).min(STREAM_DATA_LEN_MAX as u64);
                *next += len;
                return Some((stream, offset, usize::try_from(len).unwrap_or(0)));
            }
        }
        None
    }

    /// The rest of the partly written frame, if there is one.
    pub(crate) fn rest<'a>(&'a self, session: &'a Session) -> [&'a [u8]; 3] {
        let Some(part) = &self.part else {
            return [&[]; 3];
        };
        let offset = self.next[part.stream.index()];
        let len = usize::try_from(part.end - offset).unwrap_or(0);
        let [head, tail] = session.ring(part.stream).bytes_from(offset, len);
        [&part.header[part.header_sent..], head, tail]
    }

    /// Hands the rest of the partly written frame to a caller that sends it: here it counts as
    /// written.
    pub(crate) fn take_rest<T>(
        &mut self,
        session: &Session,
        take: impl FnOnce([&[u8]; 3]) -> T,
    ) -> T {
        let taken = take(self.rest(session));
        if let Some(part) = self.part.take() {
            self.next[part.stream.index()] = part.end;
        }
        taken
    }

    /// Adds the next frames, with their headers.
    pub(crate) fn frames<'a>(
        mut self,
        session: &'a Session,
        headers: &'a mut Headers,
        pieces: &mut Pieces<'a>,
    ) {
        if let Some(part) = self.part {
            self.next[part.stream.index()] = part.end;
        }
        for header in headers {
            let Some((stream, offset, len)) = self.next_frame(session) else {
                return;
            };
            *header = Chunk::header(stream.frame_kind(), offset, len);
            pieces.push(header);
            let data = session.ring(stream).bytes_from(offset, len);
            data.into_iter().for_each(|piece| pieces.push(piece));
        }
    }

    /// The socket took up to `len` bytes of the partly written frame. Returns how many.
    pub(crate) fn advance_rest(&mut self, len: usize) -> usize {
        let Some(part) = &mut self.part else {
            return 0;
        };
        let of_header = len.min(part.header.len() - part.header_sent);
        part.header_sent += of_header;
        let next = &mut self.next[part.stream.index()];
        let of_data = ((len - of_header) as u64).min(part.end - *next);
        *next += of_data;
        if part.header_sent == part.header.len() && *next == part.end {
            self.part = None;
        }
        of_header + usize::try_from(of_data).unwrap_or(0)
    }

    pub(crate) fn advance(&mut self, mut len: usize, session: &Session) {
        while len > 0 {
            let Some((stream, offset, data_len)) = self.next_frame(session) else {
                return debug_assert!(false, "more bytes sent than there were frames");
            };
            if len < Chunk::HEADER_LEN + data_len {
                self.next[stream.index()] = offset;
                self.part = Some(Part {
                    stream,
                    header: Chunk::header(stream.frame_kind(), offset, data_len),
                    header_sent: 0,
                    end: offset + data_len as u64,
                });
                self.advance_rest(len);
                return;
            }
            len -= Chunk::HEADER_LEN + data_len;
        }
    }
}
