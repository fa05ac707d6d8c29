//! The bytes of one stream that may still be wanted: bounded, with offsets that only grow. No I/O.
//!
//! ```text
//! offset 0 ········ start ───────────────── end
//!   └ acknowledged, ──┘└ kept: at most ──────┘└ not written yet
//!     or dropped         RING_LEN_MAX bytes
//! ```
//!
//! Invariants:
//! - `start` and `end` never go back, and `end - start` is the number of bytes held.
//! - Never holds more than [`RING_LEN_MAX`] bytes.
//! - An empty ring holds no allocation, so that quiet sessions cost little. While output flows, the
//!   memory comes from a [`BufferPool`] and goes back there.
//! - Bytes stay where they are until they are released or dropped, or the ring grows, so that they
//!   can be sent without a copy.

use std::hash::{Hash, Hasher};

use super::buffers::BufferPool;

pub const RING_LEN_MAX: usize = 256 * 1024;

/// Most commands write less.
const CAPACITY_FIRST: usize = 4 * 1024;

const _: () = assert!(RING_LEN_MAX.is_power_of_two());

#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    /// All of it is initialised, so that bytes can be read straight into it.
    memory: Vec<u8>,
    /// Index in `memory` of the first byte that is held.
    head: usize,
    len: usize,
    /// Offset of the first byte that is held.
    start: u64,
    /// Whether much came at once the last time, so that much is likely to come again.
    is_flowing: bool,
}

impl Ring {
    /// Offset of the first byte that is held.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Offset after the last byte: the length of the stream so far.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can be added without dropping others.
    pub(crate) fn room(&self) -> usize {
        RING_LEN_MAX - self.len
    }

    /// Memory for the next bytes, in two pieces where the ring wraps, without growing; possibly
    /// none. [`Self::advance`] must follow, even if no bytes came.
    pub(crate) fn spare(&mut self, buffers: &mut BufferPool) -> [&mut [u8]; 2] {
        if self.memory.is_empty() && self.is_flowing {
            self.memory = buffers.take(0).unwrap_or_default();
        }
        let end = self.head + self.len;
        if end < self.memory.len() {
            let (front, back) = self.memory.split_at_mut(end);
            [back, &mut front[..self.head]]
        } else {
            let tail = end - self.memory.len();
            [&mut self.memory[tail..self.head], &mut []]
        }
    }

    /// The first `len` bytes of the spare memory were filled with the stream's next bytes.
    pub(crate) fn advance(&mut self, len: usize, buffers: &mut BufferPool) {
        debug_assert!(len <= self.memory.len() - self.len);
        if len > 0 {
            self.is_flowing = len > CAPACITY_FIRST;
        }
        self.len += len;
        self.give_back_if_empty(buffers);
    }

    /// Adds as many of the bytes as there is room for. Returns how many.
    pub(crate) fn append(&mut self, bytes: &[u8], buffers: &mut BufferPool) -> usize {
        let bytes = &bytes[..bytes.len().min(self.room())];
        self.reserve(bytes.len(), buffers);
        let [front, back] = self.spare(buffers);
        let (to_front, to_back) = bytes.split_at(bytes.len().min(front.len()));
        front[..to_front.len()].copy_from_slice(to_front);
        back[..to_back.len()].copy_from_slice(to_back);
        self.advance(bytes.len(), buffers);
        bytes.len()
    }

    /// Adds all of the bytes, and drops the oldest ones for that.
    pub(crate) fn append_over_oldest(&mut self, bytes: &[u8], buffers: &mut BufferPool) {
        let kept = &bytes[bytes.len().saturating_sub(RING_LEN_MAX)..];
        let lost = bytes.len() - kept.len();
        let excess = kept.len().saturating_sub(self.room());
        self.drop_front(excess);
        self.start += lost as u64;
        self.append(kept, buffers);
    }

    /// At most `len_max` bytes from `offset` on, which must be held or the end. They come in two
    /// pieces where the ring wraps; the first one is empty only if there are none.
    pub(crate) fn bytes_from(&self, offset: u64, len_max: usize) -> [&[u8]; 2] {
        debug_assert!((self.start..=self.end()).contains(&offset));
        let skip = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let len = self.len.saturating_sub(skip).min(len_max);
        let mut from = self.head.saturating_add(skip);
        if from >= self.memory.len() {
            from = from
                .saturating_sub(self.memory.len())
                .min(self.memory.len());
        }
        let from_front = len.min(self.memory.len() - from);
        [
            &self.memory[from..from + from_front],
            &self.memory[..len - from_front],
        ]
    }

    /// Drops the bytes before `offset`.
    pub(crate) fn release(&mut self, offset: u64, buffers: &mut BufferPool) {
        let len = offset.min(self.end()).saturating_sub(self.start);
        // What is held fits memory, so a part of it does.
        self.drop_front(usize::try_from(len).unwrap_or(usize::MAX));
        self.give_back_if_empty(buffers);
    }

    pub(crate) fn clear(&mut self) {
        self.drop_front(self.len);
        self.memory = Vec::new();
        self.head = 0;
    }

    fn drop_front(&mut self, len: usize) {
        self.head += len;
        if self.head >= self.memory.len() {
            self.head -= self.memory.len();
        }
        self.len -= len;
        self.start += len as u64;
    }

    /// Grows into a buffer of the pool, or else to the next power of two.
    fn reserve(&mut self, len: usize, buffers: &mut BufferPool) {
        let wanted = self.len + len;
        if wanted <= self.memory.len() {
            return;
        }
        let spare = match wanted > CAPACITY_FIRST {
            true => buffers.take(wanted),
            false => None,
        };
        let capacity = wanted.next_power_of_two().max(CAPACITY_FIRST);
        let mut memory = spare.unwrap_or_else(|| vec![0; capacity]);
        let [front, back] = self.bytes_from(self.start, self.len);
        memory[..front.len()].copy_from_slice(front);
        memory[front.len()..self.len].copy_from_slice(back);
        self.head = 0;
        give_back(std::mem::replace(&mut self.memory, memory), buffers);
    }

    fn give_back_if_empty(&mut self, buffers: &mut BufferPool) {
        if self.len == 0 {
            self.head = 0;
            give_back(std::mem::take(&mut self.memory), buffers);
        }
    }
}

/// Spare memory decides nothing.
impl Hash for Ring {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.start.hash(state);
        for piece in self.bytes_from(self.start, self.len) {
            state.write(piece);
        }
        self.len.hash(state);
    }
}

/// A large buffer may be of use to another ring.
fn give_back(memory: Vec<u8>, buffers: &mut BufferPool) {
    if memory.len() > CAPACITY_FIRST {
        buffers.give(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize) -> Ring {
        let mut ring = Ring::default();
        assert_eq!(
            ring.append(&vec![b'.'; len], &mut BufferPool::default()),
            len
        );
        ring
    }

    fn text(ring: &Ring, offset: u64, len_max: usize) -> Vec<u8> {
        let [head, tail] = ring.bytes_from(offset, len_max);
        assert!(!head.is_empty() || tail.is_empty(), "from {offset}");
        [head, tail].concat()
    }

    #[test]
    fn append_stops_at_the_limit() {
        for (held, added, taken) in [
            (0, RING_LEN_MAX, RING_LEN_MAX),
            (0, RING_LEN_MAX + 1, RING_LEN_MAX),
            (RING_LEN_MAX - 3, 3, 3),
            (RING_LEN_MAX - 3, 4, 3),
            (RING_LEN_MAX, 1, 0),
        ] {
            let mut ring = filled(held);
            assert_eq!(
                ring.append(&vec![b'x'; added], &mut BufferPool::default()),
                taken,
                "{held} and {added}"
            );
            assert_eq!((ring.start(), ring.end()), (0, (held + taken) as u64));
            assert_eq!(ring.room(), RING_LEN_MAX - held - taken);
        }
    }

    #[test]
    fn the_oldest_bytes_give_way_and_no_others() {
        for (held, added, start) in [
            (0, RING_LEN_MAX, 0),
            (0, RING_LEN_MAX + 1, 1),
            (RING_LEN_MAX - 3, 3, 0),
            (RING_LEN_MAX - 3, 4, 1),
            (RING_LEN_MAX, 1, 1),
            (7, 3 * RING_LEN_MAX, 7 + 2 * RING_LEN_MAX as u64),
        ] {
            let mut ring = filled(held);
            ring.append_over_oldest(&vec![b'x'; added], &mut BufferPool::default());
            let end = (held + added) as u64;
            assert_eq!(
                (ring.start(), ring.end()),
                (start, end),
                "{held} and {added}"
            );
            assert_eq!(text(&ring, end - 1, 9), b"x");
            assert!(ring.memory.len() <= RING_LEN_MAX);
        }
    }

    #[test]
    fn bytes_are_found_by_their_offset_wherever_the_ring_wraps() {
        let (mut ring, mut buffers) = (Ring::default(), BufferPool::default());
        buffers.add_user();
        buffers.give(vec![0; RING_LEN_MAX]);
        let byte = |offset: u64| u8::try_from(offset % 251).expect("below 251");
        for round in 0..40u64 {
            let from = ring.end();
            let piece: Vec<u8> = (from..from + 50_000).map(byte).collect();
            ring.append_over_oldest(&piece, &mut buffers);
            for offset in [ring.start(), ring.start() + 1, from, ring.end() - 1] {
                let expected: Vec<u8> = (offset..ring.end()).take(60_000).map(byte).collect();
                assert_eq!(text(&ring, offset, 60_000), expected, "round {round}");
            }
            assert_eq!(text(&ring, ring.end(), 5), b"");
            ring.release(ring.start() + 7_777, &mut buffers);
        }
    }

    /// As the shell fills it: in place as far as its memory goes, and the rest appended.
    #[test]
    fn bytes_can_be_read_right_into_it() {
        let (mut ring, mut buffers) = (Ring::default(), BufferPool::default());
        buffers.add_user();
        let byte = |offset: u64| u8::try_from(offset % 251).expect("below 251");
        for round in 0..40u64 {
            let from = ring.end();
            let piece: Vec<u8> = (from..from + 50_000).map(byte).collect();
            let mut rest = &piece[..piece.len().min(ring.room())];
            let taken = rest.len();
            for slice in ring.spare(&mut buffers) {
                let (now, later) = rest.split_at(rest.len().min(slice.len()));
                slice[..now.len()].copy_from_slice(now);
                rest = later;
            }
            ring.advance(taken - rest.len(), &mut buffers);
            assert_eq!(ring.append(rest, &mut buffers), rest.len());
            for offset in [ring.start(), from, ring.end()] {
                let expected: Vec<u8> = (offset..ring.end()).map(byte).collect();
                assert_eq!(text(&ring, offset, RING_LEN_MAX), expected, "{round}");
            }
            ring.release(ring.start() + 47_777, &mut buffers);
        }
        assert_eq!(ring.memory.len(), RING_LEN_MAX);
        // No bytes come: the memory that was taken for them goes back.
        ring.release(ring.end(), &mut buffers);
        let count = buffers.count();
        assert!(!ring.spare(&mut buffers)[0].is_empty(), "it was flowing");
        ring.advance(0, &mut buffers);
        assert_eq!((ring.memory.len(), buffers.count()), (0, count));
        ring.append(b"little", &mut buffers);
        ring.release(ring.end(), &mut buffers);
        assert!(ring.spare(&mut buffers)[0].is_empty(), "it flows no more");
    }

    #[test]
    fn release_moves_the_start_forward_only() {
        let mut ring = filled(10);
        for (offset, start) in [(0, 0), (4, 4), (2, 4), (10, 10), (99, 10)] {
            ring.release(offset, &mut BufferPool::default());
            assert_eq!((ring.start(), ring.end()), (start, 10), "{offset}");
        }
    }

    #[test]
    fn an_empty_ring_holds_no_memory() {
        let mut ring = filled(RING_LEN_MAX);
        assert!(ring.memory.len() <= RING_LEN_MAX);
        ring.clear();
        assert_eq!((ring.memory.len(), ring.end()), (0, RING_LEN_MAX as u64));
        ring.append(b"on", &mut BufferPool::default());
        assert_eq!(ring.end(), RING_LEN_MAX as u64 + 2);
    }

    /// While a stream flows, one buffer goes back and forth.
    #[test]
    fn what_one_ring_gives_back_the_next_one_grows_into() {
        let mut buffers = BufferPool::default();
        buffers.add_user();
        let mut first = filled(RING_LEN_MAX);
        first.release(first.end(), &mut buffers);
        let mut second = filled(100);
        second.append(&vec![b'x'; CAPACITY_FIRST], &mut buffers);
        assert!(second.memory.len() >= RING_LEN_MAX);
        assert_eq!(second.len(), 100 + CAPACITY_FIRST);
        assert_eq!(text(&second, 99, 2), b".x");
        assert!(buffers.take(0).is_none(), "small ones are not kept");
    }
}
