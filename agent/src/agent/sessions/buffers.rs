//! Large buffers between two uses. No I/O.
//!
//! Rings hold no memory while they are empty, and a stream that flows empties them many times a
//! second. Memory that goes back to the kernel each time comes anew page by page,
//! which costs more than the copying; so a few buffers wait here for whoever needs one next.
//!
//! Invariants:
//! - At most [`BUFFERS_MAX`] buffers of at most [`BUFFER_LEN_MAX`] bytes.
//! - None while no connection is attached to a session: a quiet agent is a small one.

/// Most buffers that wait: those of a session's three streams, and of another's one.
pub(crate) const BUFFERS_MAX: usize = 4;

/// Longest buffer that is kept: no ring is longer.
pub(crate) const BUFFER_LEN_MAX: usize = 256 * 1024;

/// Buffers that wait for their next use.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct BufferPool {
    buffers: Vec<Vec<u8>>,
    /// Connections that are attached to a session.
    user_count: usize,
}

impl BufferPool {
    /// A buffer of at least `len` bytes, whatever these are, if one waits.
    pub(crate) fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let index = self.buffers.iter().position(|it| it.len() >= len)?;
        Some(self.buffers.swap_remove(index))
    }

    /// Takes a buffer that is not needed now.
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

    /// A connection is attached no more.
    pub(crate) fn remove_user(&mut self) {
        debug_assert!(self.user_count > 0);
        self.user_count = self.user_count.saturating_sub(1);
        if self.user_count == 0 {
            self.buffers = Vec::new();
        }
    }

    /// Buffers that wait.
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
    fn nothing_is_kept_for_nobody() {
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
