//! Bytes of one stream that may still be wanted: bounded, with offsets that only grow. No I/O.
//!
//! ```text
//! offset 0 ········ start ───────────────── end
//!   └ acknowledged, ──┘└ kept: at most ──────┘└ not written yet
//!     or given way       RING_LEN_MAX bytes
//! ```
//!
//! Invariants:
//! - `start` and `end` never go back, and `end - start` is the number of bytes held.
//! - Never holds more than [`RING_LEN_MAX`] bytes.
//! - An empty ring holds no allocation, so that quiet sessions cost nothing. While output flows it
//!   gets its memory from [`Spares`] and gives it back there.

use std::collections::VecDeque;

use super::spares::Spares;

/// Most bytes that are kept of one stream.
pub const RING_LEN_MAX: usize = 256 * 1024;

/// The first allocation. Most commands write less.
const CAPACITY_FIRST: usize = 4 * 1024;

/// The kept part of a stream.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    /// Offset of the first byte that is held.
    start: u64,
}

impl Ring {
    /// Offset of the first byte that is held.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the last byte: the length of the stream so far.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Bytes that are held.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that can be added before older ones are in the way.
    pub(super) fn room(&self) -> usize {
        RING_LEN_MAX - self.bytes.len()
    }

    /// Adds as many of the bytes as there is room for, and returns how many.
    pub(super) fn append(&mut self, bytes: &[u8], spares: &mut Spares) -> usize {
        let len = bytes.len().min(self.room());
        self.reserve(len, spares);
        self.bytes.extend(&bytes[..len]);
        len
    }

    /// Adds all of the bytes; the oldest ones give way.
    pub(super) fn append_over_oldest(&mut self, bytes: &[u8], spares: &mut Spares) {
        let kept = &bytes[bytes.len().saturating_sub(RING_LEN_MAX)..];
        let lost = (bytes.len() - kept.len()) as u64;
        let excess = kept.len().saturating_sub(self.room());
        self.bytes.drain(..excess);
        self.start += excess as u64 + lost;
        self.reserve(kept.len(), spares);
        self.bytes.extend(kept);
    }

    /// At most `len_max` bytes from `offset` on, which must be within what is held. They come in
    /// two pieces where the ring wraps; the first one is empty only if there are none.
    pub(super) fn bytes_from(&self, offset: u64, len_max: usize) -> (&[u8], &[u8]) {
        debug_assert!((self.start..=self.end()).contains(&offset));
        let skip = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (head, tail) = self.bytes.as_slices();
        let (from_head, from_tail) = match skip.checked_sub(head.len()) {
            None => (&head[skip..], tail),
            Some(skip) => (tail.get(skip..).unwrap_or(&[]), &[][..]),
        };
        let from_head = &from_head[..from_head.len().min(len_max)];
        let from_tail = &from_tail[..from_tail.len().min(len_max - from_head.len())];
        (from_head, from_tail)
    }

    /// Forgets every byte before `offset`, as far as there are any.
    pub(super) fn release(&mut self, offset: u64, spares: &mut Spares) {
        let len = offset.min(self.end()).saturating_sub(self.start);
        // What is held fits memory, so a part of it does.
        self.bytes
            .drain(..usize::try_from(len).unwrap_or(usize::MAX));
        self.start += len;
        if self.bytes.is_empty() {
            give_back(std::mem::take(&mut self.bytes), spares);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.start = self.end();
        self.bytes = VecDeque::new();
    }

    /// Grows into a spare buffer, or else by doubling, and never beyond the limit.
    fn reserve(&mut self, len: usize, spares: &mut Spares) {
        let wanted = self.bytes.len() + len;
        let capacity = self.bytes.capacity();
        if wanted <= capacity {
            return;
        }
        let doubled = (capacity * 2).clamp(CAPACITY_FIRST, RING_LEN_MAX);
        if wanted > CAPACITY_FIRST
            && let Some(spare) = spares.take(wanted)
        {
            let (head, tail) = self.bytes.as_slices();
            let mut bytes = VecDeque::from(spare);
            bytes.extend(head);
            bytes.extend(tail);
            give_back(std::mem::replace(&mut self.bytes, bytes), spares);
        } else {
            self.bytes
                .reserve_exact(wanted.max(doubled) - self.bytes.len());
        }
    }
}

/// What is large enough may be of use to others.
fn give_back(bytes: VecDeque<u8>, spares: &mut Spares) {
    if bytes.capacity() > CAPACITY_FIRST {
        spares.give(Vec::from(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize) -> Ring {
        let mut ring = Ring::default();
        assert_eq!(ring.append(&vec![b'.'; len], &mut Spares::default()), len);
        ring
    }

    fn text(ring: &Ring, offset: u64, len_max: usize) -> Vec<u8> {
        let (head, tail) = ring.bytes_from(offset, len_max);
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
                ring.append(&vec![b'x'; added], &mut Spares::default()),
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
            ring.append_over_oldest(&vec![b'x'; added], &mut Spares::default());
            let end = (held + added) as u64;
            assert_eq!(
                (ring.start(), ring.end()),
                (start, end),
                "{held} and {added}"
            );
            assert_eq!(text(&ring, end - 1, 9), b"x");
            assert!(ring.bytes.capacity() <= RING_LEN_MAX);
        }
    }

    #[test]
    fn bytes_are_found_by_their_offset_wherever_the_ring_wraps() {
        let (mut ring, mut spares) = (Ring::default(), Spares::default());
        spares.enter();
        spares.give(Vec::with_capacity(RING_LEN_MAX));
        let byte = |offset: u64| u8::try_from(offset % 251).expect("below 251");
        for round in 0..40u64 {
            let from = ring.end();
            let piece: Vec<u8> = (from..from + 50_000).map(byte).collect();
            ring.append_over_oldest(&piece, &mut spares);
            for offset in [ring.start(), ring.start() + 1, from, ring.end() - 1] {
                let expected: Vec<u8> = (offset..ring.end()).take(60_000).map(byte).collect();
                assert_eq!(text(&ring, offset, 60_000), expected, "round {round}");
            }
            assert_eq!(text(&ring, ring.end(), 5), b"");
            ring.release(ring.start() + 7_777, &mut spares);
        }
    }

    #[test]
    fn release_moves_the_start_forward_only() {
        let mut ring = filled(10);
        for (offset, start) in [(0, 0), (4, 4), (2, 4), (10, 10), (99, 10)] {
            ring.release(offset, &mut Spares::default());
            assert_eq!((ring.start(), ring.end()), (start, 10), "{offset}");
        }
    }

    #[test]
    fn an_empty_ring_holds_no_memory() {
        let mut ring = filled(RING_LEN_MAX);
        assert!(ring.bytes.capacity() <= RING_LEN_MAX);
        ring.clear();
        assert_eq!(
            (ring.bytes.capacity(), ring.end()),
            (0, RING_LEN_MAX as u64)
        );
        ring.append(b"on", &mut Spares::default());
        assert_eq!(ring.end(), RING_LEN_MAX as u64 + 2);
    }

    /// While a stream flows, one buffer goes back and forth.
    #[test]
    fn what_one_ring_gives_back_the_next_one_grows_into() {
        let mut spares = Spares::default();
        spares.enter();
        let mut first = filled(RING_LEN_MAX);
        first.release(first.end(), &mut spares);
        let mut second = filled(100);
        second.append(&vec![b'x'; CAPACITY_FIRST], &mut spares);
        assert!(second.bytes.capacity() >= RING_LEN_MAX);
        assert_eq!(second.len(), 100 + CAPACITY_FIRST);
        assert_eq!(text(&second, 99, 2), b".x");
        assert!(spares.take(0).is_none(), "small ones are not kept");
    }
}
