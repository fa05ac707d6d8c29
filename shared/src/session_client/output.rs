//! One output stream of a session: what was received, passed on, and acknowledged.

use crate::message::{Exited, Gap, Stream};

/// Number of bytes passed on that are acknowledged at once: a quarter of the guest's ring, so that
/// the ring does not fill while the client keeps up.
pub const ACK_LEN: u64 = 64 * 1024;

/// One output stream. All offsets count bytes from the stream's first one.
#[derive(Debug)]
pub(super) struct Output {
    stream: Stream,
    /// Offset of the next expected byte; `None` until the guest has announced one.
    next: Option<u64>,
    /// Number of bytes received and not passed on.
    backlog: u64,
    /// Whether the backlog contains a GAP, so that the offset of its first byte is unknown.
    has_gap_ahead: bool,
    /// The offset acknowledged last.
    acked: u64,
}

impl Output {
    pub(super) const fn new(stream: Stream, from: Option<u64>) -> Self {
        Self {
            stream,
            next: from,
            backlog: 0,
            has_gap_ahead: false,
            acked: 0,
        }
    }

    /// The offset to request on the next connection: everything before it was received.
    pub(super) const fn from(&self) -> Option<u64> {
        self.next
    }

    pub(super) const fn backlog(&self) -> u64 {
        self.backlog
    }

    /// Sets the offset at which the guest begins on a fresh connection, or says what is wrong with
    /// it. A higher offset than requested must be followed by a GAP.
    pub(super) fn restart(&mut self, from: u64, is_first: bool) -> Result<(), String> {
        match self.next {
            Some(next) if from >= next => {}
            // A client that requested an offset beyond the end gets the next byte there is.
            Some(_) if is_first => self.next = Some(from),
            Some(next) => return Err(self.hole(from, next)),
            None => self.next = Some(from),
        }
        // The requested offset acknowledges everything before it.
        self.acked = self.next.unwrap_or(from);
        Ok(())
    }

    /// Accepts a chunk of `len` bytes, or says what is wrong with it.
    pub(super) fn advance(&mut self, offset: u64, len: u64) -> Result<(), String> {
        let next = self.next.unwrap_or(0);
        let end = offset.checked_add(len).filter(|_| offset == next);
        self.next = Some(end.ok_or_else(|| self.hole(offset, next))?);
        self.backlog += len;
        Ok(())
    }

    /// Accepts a GAP, or says what is wrong with it.
    pub(super) fn skip(&mut self, gap: Gap) -> Result<(), String> {
        let next = self.next.unwrap_or(0);
        if gap.from != next || gap.to <= gap.from {
            return Err(format!(
                "GAP of {} at {}, not {next}",
                self.stream, gap.from
            ));
        }
        self.next = Some(gap.to);
        self.has_gap_ahead = self.backlog > 0;
        Ok(())
    }

    /// Checks where EXITED ends the stream.
    pub(super) fn check_end(&self, exited: &Exited) -> Result<(), String> {
        let end = match self.stream {
            Stream::Stdout => exited.stdout_end,
            Stream::Stderr => exited.stderr_end,
        };
        match self.next.unwrap_or(0) {
            next if next == end => Ok(()),
            next => {
                let stream = self.stream;
                Err(format!(
                    "EXITED ends {stream} at {end} where {next} was expected"
                ))
            }
        }
    }

    /// `len` bytes of the backlog were passed on.
    pub(super) fn consume(&mut self, len: u64) {
        debug_assert!(len <= self.backlog, "more passed on than received");
        self.backlog = self.backlog.saturating_sub(len);
        self.has_gap_ahead &= self.backlog > 0;
    }

    /// The offset to acknowledge, if at least `len_min` bytes were passed on since the last one.
    pub(super) fn take_ack(&mut self, len_min: u64) -> Option<u64> {
        if self.has_gap_ahead {
            return None;
        }
        let consumed = self.next.unwrap_or(0).saturating_sub(self.backlog);
        if consumed <= self.acked || consumed - self.acked < len_min {
            return None;
        }
        self.acked = consumed;
        Some(consumed)
    }

    fn hole(&self, received: u64, expected: u64) -> String {
        let kind = self.stream.frame_kind();
        format!("{kind} at offset {received} where {expected} was expected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: u64, to: u64) -> Gap {
        Gap {
            stream: Stream::Stdout,
            from,
            to,
        }
    }

    #[test]
    fn a_quarter_of_a_ring_is_acknowledged_at_once() {
        let mut output = Output::new(Stream::Stdout, Some(0));
        output.restart(0, true).unwrap();
        output.advance(0, ACK_LEN + 5).unwrap();
        assert_eq!(output.take_ack(ACK_LEN), None);
        output.consume(ACK_LEN - 1);
        assert_eq!(output.take_ack(ACK_LEN), None);
        output.consume(1);
        assert_eq!(output.take_ack(ACK_LEN), Some(ACK_LEN));
        output.consume(5);
        assert_eq!(output.take_ack(ACK_LEN), None);
        assert_eq!(output.take_ack(1), Some(ACK_LEN + 5));
        assert_eq!(output.take_ack(1), None);
    }

    #[test]
    fn nothing_before_a_gap_is_acknowledged_as_if_it_were_behind_it() {
        let mut output = Output::new(Stream::Stdout, Some(0));
        output.advance(0, 10).unwrap();
        output.skip(gap(10, 100)).unwrap();
        output.advance(100, 5).unwrap();
        output.consume(3);
        assert_eq!(output.take_ack(1), None);
        output.consume(12);
        assert_eq!(output.take_ack(1), Some(105));
    }

    #[test]
    fn holes_are_refused() {
        let mut output = Output::new(Stream::Stdout, None);
        output.restart(7, true).unwrap();
        assert!(output.advance(8, 1).is_err());
        assert!(output.advance(6, 1).is_err());
        assert!(output.skip(gap(8, 9)).is_err());
        output.advance(7, 1).unwrap();
        assert!(output.restart(7, false).is_err());
        output.restart(9, false).unwrap();
        assert!(output.advance(9, 1).is_err(), "no GAP said so");
        output.skip(gap(8, u64::MAX)).unwrap();
        assert!(
            output.advance(u64::MAX, 1).is_err(),
            "no offset is beyond the last"
        );
    }

    #[test]
    fn an_offset_beyond_the_end_is_where_the_stream_ends() {
        let mut output = Output::new(Stream::Stdout, Some(100));
        output.restart(10, true).unwrap();
        output.advance(10, 1).unwrap();
    }
}
