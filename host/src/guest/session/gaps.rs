//! Messages about lost output.

use shared::message::Gap;

/// Most gaps that are announced one by one. A guest that sends gaps without end must not fill a
/// standard error that is read late or never, which would block this program.
const GAPS_SAID_MAX: u64 = 64;

/// The gaps of a session so far.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    count: u64,
    /// Bytes of the gaps that were not announced.
    rest_len: u64,
}

impl Gaps {
    pub(super) fn note(&mut self, gap: Gap) {
        let Gap { stream, from, to } = gap;
        let len = to - from;
        self.count += 1;
        if self.count <= GAPS_SAID_MAX {
            log::warn!("{len} bytes of {stream} are lost, from offset {from} to {to}");
        } else {
            self.rest_len = self.rest_len.saturating_add(len);
        }
    }

    /// Announces the rest in one line.
    pub(super) fn say_rest(&self) {
        if let Some(more) = self
            .count
            .checked_sub(GAPS_SAID_MAX)
            .filter(|more| *more > 0)
        {
            let len = self.rest_len;
            log::warn!("{len} bytes of output are lost in {more} more places");
        }
    }
}
