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
//! - It has its first page from [`Ring::open`] to [`Ring::close`], so that it always holds some
//!   bytes, whatever others hold. All further memory comes from a [`BufferPool`] while there is
//!   some, and goes back there when the ring is empty.
//! - Bytes stay where they are until they are released or dropped, or the ring grows, so that they
//!   can be sent without a copy.

use std::hash::{Hash, Hasher};

use super::buffers::{BufferPool, PAGE_LEN};

pub const RING_LEN_MAX: usize = 256 * 1024;

/// The memory after the page, and the room that a stream should have from which much comes at
/// once: what a pipe holds.
const FLOW_LEN: usize = 64 * 1024;

/// Room below which a ring grows from which little comes at once.
const ROOM_LEN_MIN: usize = PAGE_LEN / 2;

const _: () = assert!(RING_LEN_MAX.is_power_of_two());

/// Where the first page is.
#[derive(Clone, Debug, Default)]
enum Page {
    #[default]
    None,
    /// It has the capacity, and is not initialised before its first use.
    Aside(Vec<u8>),
    /// It is the ring's memory.
    InUse,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    /// All of it is initialised, so that bytes can be read straight into it. A page, or longer.
    memory: Vec<u8>,
    page: Page,
    /// Index in `memory` of the first byte that is held.
    head: usize,
    len: usize,
    /// Offset of the first byte that is held.
    start: u64,
    /// Whether much came at once the last time, so that much is likely to come again.
    is_flowing: bool,
    /// Whether its peer was told that it may send what comes.
    is_promised: bool,
}

impl Ring {
    /// For bytes that their sender was told to send.
    pub(crate) fn promised() -> Self {
        Self {
            is_promised: true,
            ..Self::default()
        }
    }

    /// Takes its page. Returns whether it has one.
    pub(crate) fn open(&mut self, buffers: &mut BufferPool) -> bool {
        if matches!(self.page, Page::None)
            && let Some(page) = buffers.page()
        {
            self.page = Page::Aside(page);
        }
        !matches!(self.page, Page::None)
    }

    /// Nothing will be added. Gives back the memory that the held bytes do not need.
    pub(crate) fn close(&mut self, buffers: &mut BufferPool) {
        if self.len == 0 {
            return self.clear(buffers);
        }
        let is_loose = self.len <= self.memory.len() / 2;
        if is_loose && let Some(memory) = buffers.shrunk(self.len) {
            self.move_to(memory, buffers);
        }
        self.drop_page_aside(buffers);
    }

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

    /// Bytes that it can hold without more memory.
    pub(crate) fn capacity(&self) -> usize {
        match (self.memory.len(), &self.page) {
            (0, Page::Aside(_)) => PAGE_LEN,
            (len, _) => len,
        }
    }

    /// Bytes that can be added without more memory and without dropping others.
    pub(crate) fn room(&self) -> usize {
        self.capacity() - self.len
    }

    /// Memory out of the budget.
    pub(crate) fn held_len(&self) -> usize {
        let aside_len = match self.page {
            Page::Aside(_) => PAGE_LEN,
            Page::None | Page::InUse => 0,
        };
        self.memory.len() + aside_len
    }

    /// Grows if the next bytes may need it and the budget has it.
    pub(crate) fn make_room(&mut self, buffers: &mut BufferPool) {
        if self.is_flowing && self.memory.is_empty() {
            self.memory = buffers.take(FLOW_LEN).unwrap_or_default();
        }
        let (wanted, step) = match self.is_flowing {
            true => (FLOW_LEN, FLOW_LEN),
            false => (ROOM_LEN_MIN, PAGE_LEN),
        };
        if self.room() >= wanted.min(RING_LEN_MAX - self.len) {
            return;
        }
        self.open(buffers);
        if self.room() >= wanted {
            return;
        }
        let step = (4 * self.capacity()).clamp(step, RING_LEN_MAX);
        if !self.grow(step, buffers) {
            self.grow(step / 4, buffers);
        }
    }

    /// Memory for the next bytes, in two pieces where the ring wraps, without growing; possibly
    /// none.
    pub(crate) fn spare(&mut self) -> [&mut [u8]; 2] {
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
            self.is_flowing = len >= PAGE_LEN;
        }
        self.len += len;
        self.give_back_if_empty(buffers);
    }

    /// Adds as many of the bytes as it has or gets room for. Returns how many.
    pub(crate) fn append(&mut self, bytes: &[u8], buffers: &mut BufferPool) -> usize {
        self.reserve(bytes.len(), buffers);
        let bytes = &bytes[..bytes.len().min(self.memory.len() - self.len)];
        let [front, back] = self.spare();
        let (to_front, to_back) = bytes.split_at(bytes.len().min(front.len()));
        front[..to_front.len()].copy_from_slice(to_front);
        back[..to_back.len()].copy_from_slice(to_back);
        self.advance(bytes.len(), buffers);
        bytes.len()
    }

    /// Adds all of the bytes, and drops the oldest ones for that, those of `bytes` included.
    pub(crate) fn append_over_oldest(&mut self, bytes: &[u8], buffers: &mut BufferPool) {
        self.reserve(bytes.len(), buffers);
        let capacity = self.memory.len();
        let kept = &bytes[bytes.len().saturating_sub(capacity)..];
        let lost = bytes.len() - kept.len();
        self.drop_front((self.len + kept.len()).saturating_sub(capacity));
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

    /// Drops all bytes and gives all memory back.
    pub(crate) fn clear(&mut self, buffers: &mut BufferPool) {
        self.drop_front(self.len);
        self.head = 0;
        self.put_away(Vec::new(), buffers);
        self.drop_page_aside(buffers);
    }

    fn drop_front(&mut self, len: usize) {
        self.head += len;
        if self.head >= self.memory.len() {
            self.head -= self.memory.len();
        }
        self.len -= len;
        self.start += len as u64;
    }

    /// Gets memory for `len` more bytes, as far as the budget goes.
    fn reserve(&mut self, len: usize, buffers: &mut BufferPool) {
        let wanted = (self.len + len).min(RING_LEN_MAX);
        self.open(buffers);
        if wanted > self.capacity() {
            let mut target = wanted.next_power_of_two();
            while target > self.capacity() && !self.grow(target, buffers) {
                target /= 2;
            }
        }
        if self.memory.is_empty()
            && let Page::Aside(page) = &mut self.page
        {
            self.memory = std::mem::take(page);
            // It has this capacity.
            self.memory.resize(PAGE_LEN, 0);
            self.page = Page::InUse;
        }
    }

    /// Moves into longer memory of at least `len` bytes, if there is some.
    fn grow(&mut self, len: usize, buffers: &mut BufferPool) -> bool {
        if len <= self.memory.len() {
            return false;
        }
        let replaced = match self.page {
            // The page stays.
            Page::InUse => 0,
            Page::None | Page::Aside(_) => self.memory.len(),
        };
        let Some(memory) = buffers.grow(len, replaced, self.is_promised) else {
            return false;
        };
        self.move_to(memory, buffers);
        true
    }

    fn move_to(&mut self, mut memory: Vec<u8>, buffers: &mut BufferPool) {
        let [front, back] = self.bytes_from(self.start, self.len);
        memory[..front.len()].copy_from_slice(front);
        memory[front.len()..self.len].copy_from_slice(back);
        self.head = 0;
        self.put_away(memory, buffers);
    }

    /// Puts other memory in the place of the present one.
    fn put_away(&mut self, memory: Vec<u8>, buffers: &mut BufferPool) {
        let before = std::mem::replace(&mut self.memory, memory);
        match self.page {
            Page::InUse => self.page = Page::Aside(before),
            Page::None | Page::Aside(_) => buffers.give(before),
        }
    }

    fn drop_page_aside(&mut self, buffers: &mut BufferPool) {
        match std::mem::take(&mut self.page) {
            Page::Aside(page) => buffers.give_page(page),
            other => self.page = other,
        }
    }

    fn give_back_if_empty(&mut self, buffers: &mut BufferPool) {
        if self.len == 0 {
            self.head = 0;
            if !matches!(self.page, Page::InUse) {
                self.put_away(Vec::new(), buffers);
            }
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
            assert!(ring.memory.len() <= RING_LEN_MAX);
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
        for round in 0..200u64 {
            ring.make_room(&mut buffers);
            let from = ring.end();
            let piece: Vec<u8> = (from..from + 50_000).map(byte).collect();
            let mut rest = &piece[..piece.len().min(ring.room())];
            let taken = rest.len();
            for slice in ring.spare() {
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
            ring.release(ring.start() + 7_777, &mut buffers);
        }
        assert_eq!(ring.memory.len(), RING_LEN_MAX);
        // No bytes come: the memory that was taken for them goes back.
        ring.release(ring.end(), &mut buffers);
        let count = buffers.count();
        ring.make_room(&mut buffers);
        assert!(!ring.spare()[0].is_empty(), "it was flowing");
        ring.advance(0, &mut buffers);
        assert_eq!((ring.memory.len(), buffers.count()), (0, count));
        ring.append(b"little", &mut buffers);
        ring.release(ring.end(), &mut buffers);
        ring.make_room(&mut buffers);
        assert_eq!(ring.capacity(), PAGE_LEN, "it flows no more");
    }

    /// Without more memory a ring goes on with what it has, at least a page.
    #[test]
    fn a_ring_without_more_memory_works_with_its_page() {
        for policy_drops in [false, true] {
            // Three quarters are for growth: less than the next step.
            let mut buffers = BufferPool::new(3 * PAGE_LEN);
            let mut ring = Ring::default();
            assert!(ring.open(&mut buffers));
            for round in 0..10 {
                ring.make_room(&mut buffers);
                assert_eq!((ring.room(), ring.held_len()), (PAGE_LEN, PAGE_LEN));
                let bytes = vec![b'x'; 3 * PAGE_LEN];
                let end = ring.end();
                if policy_drops {
                    ring.append_over_oldest(&bytes, &mut buffers);
                    assert_eq!(ring.start(), end + 2 * PAGE_LEN as u64, "round {round}");
                } else {
                    assert_eq!(ring.append(&bytes, &mut buffers), PAGE_LEN, "round {round}");
                }
                assert_eq!((ring.len(), ring.room()), (PAGE_LEN, 0));
                ring.release(ring.end(), &mut buffers);
            }
            ring.clear(&mut buffers);
            assert_eq!(buffers.held_of().0, buffers.spare_len());
        }
    }

    /// What a session that has ended keeps takes no more than that.
    #[test]
    fn a_closed_ring_holds_what_it_has_to() {
        for len in [0, 1, PAGE_LEN, PAGE_LEN + 1, RING_LEN_MAX / 2, RING_LEN_MAX] {
            let mut buffers = BufferPool::default();
            let mut ring = Ring::default();
            ring.open(&mut buffers);
            ring.append(&vec![b'y'; RING_LEN_MAX], &mut buffers);
            ring.release((RING_LEN_MAX - len) as u64, &mut buffers);
            ring.close(&mut buffers);
            assert_eq!((ring.len(), ring.end()), (len, RING_LEN_MAX as u64));
            assert!(ring.held_len() < 2 * len.max(1), "{len}");
            assert_eq!(buffers.held_of().0, ring.held_len() + buffers.spare_len());
            assert_eq!(text(&ring, ring.start(), RING_LEN_MAX).len(), len);
        }
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
        ring.clear(&mut BufferPool::default());
        assert_eq!((ring.held_len(), ring.end()), (0, RING_LEN_MAX as u64));
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
        second.append(&vec![b'x'; PAGE_LEN], &mut buffers);
        assert!(second.memory.len() >= RING_LEN_MAX);
        assert_eq!(second.len(), 100 + PAGE_LEN);
        assert_eq!(text(&second, 99, 2), b".x");
        assert!(buffers.take(0).is_none(), "small ones are not kept");
    }
}
