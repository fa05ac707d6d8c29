//! One budget of memory for rings, standard inputs and connections, and a pool of large buffers.
//! No I/O.
//!
//! ```text
//! 0 ─────────── held ──────────▶ three quarters ──────────── limit
//! └ output, requests, answers ──────────┴ pages, promised input ─┘
//! ```
//!
//! A peer or a child decides how much is wanted: a command floods its output, a host sends long
//! requests and does not read the answers. What they get comes out of this budget, and the rest is
//! refused or waits. The last quarter is kept for the pages of sessions and for standard input that
//! was promised, so that those who have taken much cannot keep others from running.
//!
//! An empty ring holds only its page, and a flowing stream empties its ring many times a second.
//! Memory that goes back to the kernel each time returns page by page, which costs more than
//! copying the data. So a few buffers are kept for the next ring that needs one.
//!
//! Invariants:
//! - `held` is the sum of what rings, inputs, connections and the pool hold, and at most `limit`.
//! - At most [`BUFFERS_MAX`] buffers of at most [`BUFFER_LEN_MAX`] bytes are spare, and none while
//!   no connection is attached to a session: a quiet agent is small. At most [`PAGES_MAX`] pages
//!   are spare beside them.
//! - An allocation that fails is a refusal, as is one that would leave too little for small
//!   allocations, which cannot be refused: see [`GROWTH_HEADROOM_LEN`].

use std::hash::{Hash, Hasher};

use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX};
use shared::message::Message;

/// The three streams of one session, and one stream of another.
pub(crate) const BUFFERS_MAX: usize = 4;

/// No ring is longer.
pub(crate) const BUFFER_LEN_MAX: usize = 256 * 1024;

/// Bytes of a ring that are there as long as its session runs. Most commands write less.
pub(crate) const PAGE_LEN: usize = 4 * 1024;

/// Answers that every connection may hold beside the budget.
pub(crate) const ANSWER_LEN_FREE: usize = 4 * 1024;

/// Memory that must be there for a connection to be accepted. It is for what cannot fail: nodes of
/// tables, texts of refusals, the strings of a short request.
pub(crate) const HEADROOM_LEN: usize = 16 * 1024;

/// Memory that must be there for a session to start. The last of it is left to connections that ask
/// what is wrong. The C library gives longer blocks back to the kernel each time.
pub(crate) const START_HEADROOM_LEN: usize = 56 * 1024;

/// Memory that must be left by whatever grows, for sessions to start.
pub(crate) const GROWTH_HEADROOM_LEN: usize = 128 * 1024;

/// What a connection or a session takes in small allocations.
const ADMISSION_LEN: usize = 4 * 1024;

/// Spare pages: those of one session without a terminal.
const PAGES_MAX: usize = 2;

/// The share of the budget that is kept for pages and promises: one part in so many.
const KEPT_SHARE: usize = 4;

/// The share of the budget that is promised to one standard input: one part in so many.
const PROMISE_SHARE: usize = 16;

/// With less room than this, and than a quarter of the budget, the agent saves memory.
const TIGHT_LEN: usize = 2 * BUFFER_LEN_MAX;

#[derive(Clone, Debug)]
pub(crate) struct BufferPool {
    buffers: Vec<Vec<u8>>,
    /// Where each message is encoded before it is known whether its connection has room. Empty
    /// between two messages, with memory for the longest.
    encoder: Vec<u8>,
    /// Connections that are attached to a session.
    user_count: usize,
    /// Spare pages.
    pages: Vec<Vec<u8>>,
    limit: usize,
    /// What may be held by all that was not promised.
    growth_max: usize,
    /// What is held when memory becomes tight.
    tight_at: usize,
    held: usize,
    /// Memory that was there when it was tried last, less what was taken since.
    headroom: usize,
    /// Whether something was refused since the last [`Self::poll_relief`].
    has_refused: bool,
    /// Whether memory came back after that.
    has_relief: bool,
}

/// Without a limit.
impl Default for BufferPool {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl BufferPool {
    pub(crate) fn new(limit: usize) -> Self {
        let growth_max = limit - limit / KEPT_SHARE;
        Self {
            buffers: Vec::new(),
            pages: Vec::with_capacity(PAGES_MAX),
            encoder: Vec::with_capacity(HEADER_LEN + PAYLOAD_LEN_MAX),
            user_count: 0,
            limit,
            growth_max,
            tight_at: growth_max - TIGHT_LEN.min(limit / 4),
            held: 0,
            headroom: 0,
            has_refused: false,
            has_relief: false,
        }
    }

    /// Bytes that may still be taken by what grows.
    pub(crate) fn room(&self) -> usize {
        self.growth_max.saturating_sub(self.held)
    }

    /// Whether memory should be saved.
    pub(crate) fn is_tight(&self) -> bool {
        self.held > self.tight_at
    }

    /// Whether memory is needed now: the budget is nearly used up, or the allocator refuses.
    pub(crate) fn is_short(&self) -> bool {
        self.is_tight() || self.has_refused && !is_available(GROWTH_HEADROOM_LEN)
    }

    /// Whether `len` bytes can be had beside what the budget counts. Takes [`ADMISSION_LEN`] of
    /// them. To try it each time would be a large part of a short command's cost.
    pub(crate) fn admits(&mut self, len: usize) -> bool {
        if self.headroom < len {
            let is_plenty = is_available(GROWTH_HEADROOM_LEN);
            self.headroom = if is_plenty { GROWTH_HEADROOM_LEN } else { 0 };
            if !is_plenty && !is_available(len) {
                return false;
            }
        }
        self.headroom = self.headroom.saturating_sub(ADMISSION_LEN);
        true
    }

    /// What one standard input may be promised of at most `len_max` bytes: a power of two. A page
    /// while memory is tight, and little in a small guest.
    pub(crate) fn promise_len(&self, len_max: usize) -> usize {
        if self.is_tight() || self.has_refused {
            return PAGE_LEN;
        }
        let len = (self.limit / PROMISE_SHARE).clamp(PAGE_LEN, len_max);
        1 << len.ilog2()
    }

    /// Takes `len` bytes out of the budget, those that were promised also out of what is kept.
    pub(crate) fn charge(&mut self, len: usize, is_promised: bool) -> bool {
        let room = match is_promised {
            true => self.limit.saturating_sub(self.held),
            false => self.room(),
        };
        if len > room {
            self.refuse();
            return false;
        }
        self.held += len;
        true
    }

    /// Gives `len` bytes back to the budget.
    pub(crate) fn release(&mut self, len: usize) {
        self.held = self.held.saturating_sub(len);
        self.has_relief |= self.has_refused && len > 0;
    }

    /// Something was refused for lack of memory.
    pub(crate) fn refuse(&mut self) {
        self.has_refused = true;
        self.has_relief = false;
    }

    /// Whether memory came back after something was refused, so that it may be tried again. Says so
    /// once.
    pub(crate) fn poll_relief(&mut self) -> bool {
        let is_due = self.has_relief && !self.is_tight();
        if is_due {
            self.has_refused = false;
            self.has_relief = false;
        }
        is_due
    }

    /// Whether a request may take so many bytes for a moment, beside the budget.
    pub(crate) fn lends(&self, len: usize) -> bool {
        len <= self.limit && is_available(len.saturating_add(GROWTH_HEADROOM_LEN))
    }

    /// Memory for a page, not initialised, out of the part of the budget that is kept for pages.
    pub(crate) fn page(&mut self) -> Option<Vec<u8>> {
        if let Some(page) = self.pages.pop() {
            return Some(page);
        }
        self.headroom = self.headroom.saturating_sub(PAGE_LEN);
        if !self.charge(PAGE_LEN, true) {
            return None;
        }
        let mut page = Vec::new();
        if page.try_reserve_exact(PAGE_LEN).is_err() {
            self.release(PAGE_LEN);
            self.refuse();
            return None;
        }
        Some(page)
    }

    /// Takes a page back.
    pub(crate) fn give_page(&mut self, page: Vec<u8>) {
        // A page that was cloned before its first use has no memory.
        let is_whole = page.capacity() >= PAGE_LEN;
        if is_whole && self.pages.len() < PAGES_MAX && !self.has_refused && !self.is_tight() {
            self.pages.push(page);
        } else {
            self.release(PAGE_LEN);
        }
    }

    /// A buffer of at least `len` bytes with any content, from the pool or from the budget. It
    /// replaces one of `old_len` bytes, which goes back with [`Self::give`].
    pub(crate) fn grow(
        &mut self,
        len: usize,
        old_len: usize,
        is_promised: bool,
    ) -> Option<Vec<u8>> {
        if let Some(spare) = self.take(len) {
            return Some(spare);
        }
        let extra = len.saturating_sub(old_len);
        if extra > self.room() {
            // They are too short.
            self.drop_spares();
            self.drop_pages();
        }
        if !self.charge(extra, is_promised) {
            return None;
        }
        self.headroom = 0;
        let Some(buffer) = zeroed(len) else {
            self.release(extra);
            self.refuse();
            return None;
        };
        // The old one is charged until it is given back.
        self.held += len - extra;
        Some(buffer)
    }

    /// A buffer of so many bytes, in the place of a longer one that goes back at once.
    pub(crate) fn shrunk(&mut self, len: usize) -> Option<Vec<u8>> {
        let buffer = zeroed(len)?;
        self.held += len;
        Some(buffer)
    }

    /// The longest spare buffer, with any content, if it has at least `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let longest = self.buffers.iter().enumerate().max_by_key(|it| it.1.len());
        let (index, _) = longest.filter(|it| it.1.len() >= len)?;
        Some(self.buffers.swap_remove(index))
    }

    /// Keeps a buffer, or drops it if the pool is full or has no user, or memory is wanted.
    pub(crate) fn give(&mut self, buffer: Vec<u8>) {
        let is_welcome = self.user_count > 0 && self.buffers.len() < BUFFERS_MAX;
        let is_large = (PAGE_LEN + 1..=BUFFER_LEN_MAX).contains(&buffer.len());
        if is_welcome && is_large && !self.has_refused && !self.is_tight() {
            self.buffers.push(buffer);
        } else {
            self.release(buffer.len());
        }
    }

    /// Hands a message as one frame to `take`.
    pub(crate) fn encoded<T>(
        &mut self,
        message: &Message,
        take: impl FnOnce(&[u8], &mut Self) -> T,
    ) -> T {
        let mut frame = std::mem::take(&mut self.encoder);
        message.encode_into(&mut frame);
        let taken = take(&frame, self);
        frame.clear();
        self.encoder = frame;
        taken
    }

    /// A connection was attached.
    pub(crate) fn add_user(&mut self) {
        self.user_count += 1;
    }

    /// A connection was detached.
    pub(crate) fn remove_user(&mut self) {
        debug_assert!(self.user_count > 0);
        self.user_count = self.user_count.saturating_sub(1);
        if self.user_count == 0 {
            self.drop_spares();
        }
    }

    fn drop_spares(&mut self) {
        for buffer in std::mem::take(&mut self.buffers) {
            self.release(buffer.len());
        }
    }

    fn drop_pages(&mut self) {
        while self.pages.pop().is_some() {
            self.release(PAGE_LEN);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Bytes of the spare buffers and pages.
    pub(crate) fn spare_len(&self) -> usize {
        let buffers: usize = self.buffers.iter().map(Vec::len).sum();
        buffers + self.pages.len() * PAGE_LEN
    }

    /// Bytes out of the budget, and the budget.
    pub(crate) fn held_of(&self) -> (usize, usize) {
        (self.held, self.limit)
    }
}

/// Spare memory decides nothing, and what is available is the allocator's.
impl Hash for BufferPool {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.user_count.hash(state);
        self.held.saturating_sub(self.spare_len()).hash(state);
        (self.has_refused, self.has_relief).hash(state);
    }
}

/// So many zeros, if that leaves headroom.
fn zeroed(len: usize) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).ok()?;
    if !is_available(GROWTH_HEADROOM_LEN) {
        return None;
    }
    buffer.resize(len, 0);
    Some(buffer)
}

/// Whether so much memory can be had now. The agent has one thread, so it still can afterwards.
pub(crate) fn is_available(len: usize) -> bool {
    let mut probe: Vec<u8> = Vec::new();
    let result = probe.try_reserve_exact(len);
    // Or else the compiler leaves the allocation out and calls it a success.
    std::hint::black_box(&mut probe);
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool with one user and these spare buffers.
    fn pool(limit: usize, spares: &[usize]) -> BufferPool {
        let mut buffers = BufferPool::new(limit);
        buffers.add_user();
        for &len in spares {
            assert!(buffers.charge(len, false));
            buffers.give(vec![1; len]);
        }
        buffers
    }

    #[test]
    fn so_many_and_so_long_and_no_more() {
        let mut buffers = pool(usize::MAX, &[BUFFER_LEN_MAX + 1, PAGE_LEN, BUFFER_LEN_MAX]);
        assert_eq!((buffers.count(), buffers.held_of().0), (1, BUFFER_LEN_MAX));
        for _ in 0..BUFFERS_MAX {
            let buffer = buffers.grow(PAGE_LEN + 1, 0, false).expect("no limit");
            buffers.give(buffer);
            let buffer = vec![1; PAGE_LEN + 1];
            assert!(buffers.charge(buffer.len(), false));
            buffers.give(buffer);
        }
        assert_eq!(buffers.count(), BUFFERS_MAX);
        assert_eq!(buffers.held_of().0, buffers.spare_len());
        assert!(buffers.take(BUFFER_LEN_MAX + 1).is_none());
        let taken = buffers.take(PAGE_LEN).expect("the long one");
        assert_eq!(taken.len(), BUFFER_LEN_MAX);
        assert!(buffers.take(BUFFER_LEN_MAX).is_none());
    }

    #[test]
    fn nothing_is_kept_without_a_user() {
        let mut buffers = BufferPool::default();
        buffers.give(vec![1; PAGE_LEN + 1]);
        assert_eq!(buffers.count(), 0);
        buffers.add_user();
        buffers.add_user();
        buffers.give(vec![1; PAGE_LEN + 1]);
        buffers.remove_user();
        assert_eq!(buffers.count(), 1);
        buffers.remove_user();
        assert_eq!((buffers.count(), buffers.held_of().0), (0, 0));
    }

    /// What is held, what is wanted, whether it was promised, and whether it is there.
    #[test]
    fn the_last_quarter_is_for_what_was_promised() {
        let limit = 1024 * 1024;
        let growth_max = limit / 4 * 3;
        for (held, wanted, is_promised, is_granted) in [
            (0, growth_max, false, true),
            (0, growth_max + 1, false, false),
            (growth_max - 10, 10, false, true),
            (growth_max - 10, 11, false, false),
            (growth_max, 1, false, false),
            (growth_max, limit - growth_max, true, true),
            (growth_max, limit - growth_max + 1, true, false),
            (limit, 1, true, false),
            (limit, 0, false, true),
            (0, usize::MAX, true, false),
        ] {
            let row = (held, wanted, is_promised);
            let mut buffers = BufferPool::new(limit);
            assert!(buffers.charge(held, true));
            assert_eq!(buffers.charge(wanted, is_promised), is_granted, "{row:?}");
            let expected = held + if is_granted { wanted } else { 0 };
            assert_eq!(buffers.held_of().0, expected, "{row:?}");
            let is_page = buffers.page().is_some();
            assert_eq!(is_page, expected + PAGE_LEN <= limit, "{row:?}");
        }
    }

    #[test]
    fn spare_buffers_make_room_for_a_longer_one() {
        let len = PAGE_LEN * 4;
        let mut buffers = pool(len * 8, &[len, len]);
        // Six of eight are for growth, and two are spare.
        assert!(buffers.grow(5 * len, 0, false).is_some());
        assert_eq!((buffers.count(), buffers.held_of().0), (0, 5 * len));
        assert!(buffers.grow(2 * len, 0, false).is_none());
        assert!(
            buffers.grow(6 * len, 5 * len, false).is_some(),
            "in its place"
        );
    }

    #[test]
    fn relief_is_told_once_and_only_after_a_refusal() {
        let limit = 1024 * 1024;
        let mut buffers = BufferPool::new(limit);
        assert!(buffers.charge(limit / 4 * 3, false));
        buffers.release(1);
        assert!(!buffers.poll_relief(), "nothing was refused");
        assert!(!buffers.charge(2, false));
        assert!(!buffers.poll_relief(), "nothing came back");
        buffers.release(1);
        assert!(!buffers.poll_relief(), "it is not enough");
        buffers.release(limit / 2);
        assert!(buffers.poll_relief() && !buffers.poll_relief());
    }
}
