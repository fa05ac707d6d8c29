//! A pool of large buffers. No I/O.
//!
//! An empty ring holds no memory, and a flowing stream empties its ring many times a second. Memory
//! that goes back to the kernel each time returns page by page, which costs more than copying the
//! data. So a few buffers are kept for the next ring that needs one.
//!
//! Invariants:
//! - At most [`BUFFERS_MAX`] buffers of at most [`BUFFER_LEN_MAX`] bytes.
//! - None while no connection is attached to a session: a quiet agent is small.

/// The three streams of one session, and one stream of another.
pub(crate) const BUFFERS_MAX: usize = 4;

/// No ring is longer.
pub(crate) const BUFFER_LEN_MAX: usize = 256 * 1024;

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct BufferPool {
    buffers: Vec<Vec<u8>>,
    /// Connections that are attached to a session.
    user_count: usize,
}

impl BufferPool {
    /// A buffer of at least `len` bytes with any content, if there is one.
    pub(crate) fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let index = self.buffers.iter().position(|it| it.len() >= len)?;
        Some(self.buffers.swap_remove(index))
    }

    /// Keeps a buffer, or drops it if the pool is full or has no user.
    pub(crate) fn give(&mut self, buffer: Vec<u8>) {
        let is_welcome = self.user_count > 0 && self.buffers.len() < BUFFERS_MAX;
        if is_welcome && buffer.len() <= BUFFER_LEN_MAX {
            self.buffers.push(buffer);
        }
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
            self.buffers = Vec::new();
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.buffers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_and_so_long_and_no_more() {
        let mut buffers = BufferPool::default();
        buffers.add_user();
        for len in [BUFFER_LEN_MAX + 1, BUFFER_LEN_MAX] {
            buffers.give(vec![1; len]);
        }
        assert_eq!(buffers.count(), 1);
        for _ in 0..BUFFERS_MAX {
            buffers.give(vec![1; 10]);
        }
        assert_eq!(buffers.count(), BUFFERS_MAX);
        assert!(buffers.take(BUFFER_LEN_MAX + 1).is_none());
        let taken = buffers.take(11).expect("the long one");
        assert_eq!(taken.len(), BUFFER_LEN_MAX);
        assert!(buffers.take(11).is_none());
    }

    #[test]
    fn nothing_is_kept_without_a_user() {
        let mut buffers = BufferPool::default();
        buffers.give(vec![1; 10]);
        assert_eq!(buffers.count(), 0);
        buffers.add_user();
        buffers.add_user();
        buffers.give(vec![1; 10]);
        buffers.remove_user();
        assert_eq!(buffers.count(), 1);
        buffers.remove_user();
        assert_eq!(buffers.count(), 0);
    }
}
