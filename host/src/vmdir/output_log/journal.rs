//! What the log holds of the workload's output, and the steps that append more. No I/O, no clock.
//!
//! ```text
//! output ─▶ pending ──commit──▶ [Rotate, Record,] Append, Record ──▶ acknowledged to the guest
//! ```
//!
//! Invariants:
//! - One record states both the log's length and the stream offsets that this length stands for.
//!   Bytes behind the recorded length were not acknowledged: they are cut off, and the guest sends
//!   them again.
//! - The log holds every byte of each stream once and in order. A line states where bytes are lost.

use shared::message::{Gap, Started, Stream};

use super::record::Record;

/// Longest log file, in bytes. The older file can be as long.
pub(crate) const OUTPUT_LEN_MAX: u64 = 64 * 1024 * 1024;

/// A part of a commit. The process may be killed between two steps or within an append: no byte is
/// lost or repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Rename the log file to be the older file.
    Rotate,
    /// Append to the log file, creating it if necessary.
    Append(Vec<u8>),
    /// Replace the record, atomically.
    Record(Record),
}

/// The end of the log, with what is not on disk yet.
#[derive(Debug)]
pub(crate) struct Journal {
    /// The record on disk.
    committed: Record,
    /// What it will be with `pending`, apart from the length, which `poll_commit` sets.
    next: Record,
    /// Bytes that are not in the file yet.
    pending: Vec<u8>,
    len_max: u64,
}

impl Journal {
    /// Continues where `record` ends. The log file is rotated when it would exceed `len_max`.
    pub(crate) const fn new(record: Record, len_max: u64) -> Self {
        Self {
            next: record,
            committed: record,
            pending: Vec::new(),
            len_max,
        }
    }

    /// The record on disk. The guest may be told that all before its offsets is logged.
    pub(crate) const fn committed(&self) -> &Record {
        &self.committed
    }

    /// Bytes that wait for a commit.
    pub(crate) const fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// A connection was attached. If the guest's streams are shorter than what we logged, its agent
    /// has restarted, and offsets start over.
    pub(crate) fn handle_attached(&mut self, started: &Started) {
        let streams = [
            (Stream::Stdout, started.stdout_from),
            (Stream::Stderr, started.stderr_from),
        ];
        let is_shorter = |&(stream, from): &(Stream, u64)| {
            self.next.wanted(stream).is_some_and(|wanted| from < wanted)
        };
        if streams.iter().any(is_shorter) {
            self.mark("the agent was restarted; the workload's output starts over");
            for (stream, from) in streams {
                *self.next.wanted_mut(stream) = Some(from);
                // We asked for later bytes than the new streams have. The guest took this as leave
                // to drop the earlier ones.
                if from > 0 {
                    self.mark_lost(stream, 0, from);
                }
            }
        }
        for (stream, from) in streams {
            self.next.wanted_mut(stream).get_or_insert(from);
        }
    }

    /// The next bytes of `stream` arrived.
    pub(crate) fn handle_output(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.next.is_line_open = *last != b'\n';
        self.pending.extend_from_slice(bytes);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let wanted = self.next.wanted_mut(stream);
        *wanted = Some(wanted.unwrap_or(0).saturating_add(len));
    }

    /// The guest has dropped the next bytes of a stream.
    pub(crate) fn handle_gap(&mut self, gap: Gap) {
        self.mark_lost(gap.stream, gap.from, gap.to);
        *self.next.wanted_mut(gap.stream) = Some(gap.to);
    }

    fn mark_lost(&mut self, stream: Stream, from: u64, to: u64) {
        self.mark(&format!("{stream} bytes {from} to {to} are lost"));
    }

    /// Adds a line of our own to the log.
    fn mark(&mut self, text: &str) {
        if self.next.is_line_open {
            self.pending.push(b'\n');
        }
        self.next.is_line_open = false;
        self.pending
            .extend_from_slice(format!("[host-tool: {text}]\n").as_bytes());
    }

    /// Whether a commit is needed.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || self.next != self.committed
    }

    /// The steps that commit everything so far, in order. Call
    /// [`handle_committed`](Self::handle_committed) once they are done.
    pub(crate) fn poll_commit(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        let pending_len = u64::try_from(pending.len()).unwrap_or(u64::MAX);
        let mut next = Record {
            older_start: self.committed.older_start,
            start: self.committed.start,
            len: self.committed.len,
            ..self.next
        };
        let is_full = next.len.saturating_add(pending_len) > self.len_max;
        if is_full && next.len > 0 {
            next = next.rotated();
            steps.push(Step::Rotate);
            steps.push(Step::Record(self.committed.rotated()));
        }
        next.len = next.len.saturating_add(pending_len);
        if pending_len > 0 {
            steps.push(Step::Append(pending));
        }
        if next != self.committed {
            steps.push(Step::Record(next));
        }
        self.next = next;
        steps
    }

    pub(crate) fn handle_committed(&mut self) {
        debug_assert!(self.pending.is_empty(), "a commit in the middle of output");
        self.committed = self.next;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use shared::message::Window;

    use super::*;

    pub(crate) fn attached(stdout_from: u64, stderr_from: u64) -> Started {
        Started {
            session: 1,
            id: None,
            pid: 2,
            fresh: false,
            tty: false,
            stdout_from,
            stderr_from,
            stdin: Window {
                received: 0,
                limit: 0,
                is_closed: true,
            },
        }
    }

    /// Checks what a new journal logs of the input that `feed` gives it.
    #[track_caller]
    fn check(from: Option<u64>, feed: impl FnOnce(&mut Journal), expected: &str) -> Record {
        let mut journal = Journal::new(Record::empty(from), 1000);
        feed(&mut journal);
        let mut text = Vec::new();
        for step in journal.poll_commit() {
            if let Step::Append(bytes) = step {
                text.extend(bytes);
            }
        }
        journal.handle_committed();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        journal.committed
    }

    #[test]
    fn streams_are_interleaved_as_they_arrive() {
        let feed = |journal: &mut Journal| {
            journal.handle_attached(&attached(0, 0));
            journal.handle_output(Stream::Stdout, b"one\n");
            journal.handle_output(Stream::Stderr, b"two\n");
            journal.handle_output(Stream::Stdout, b"three");
            journal.handle_output(Stream::Stdout, b"");
        };
        let record = check(Some(0), feed, "one\ntwo\nthree");
        assert_eq!((record.stdout, record.stderr), (Some(9), Some(4)));
        assert_eq!((record.len, record.is_line_open), (13, true));
    }

    #[test]
    fn a_gap_has_a_line_of_its_own() {
        let gap = |from, to| Gap {
            stream: Stream::Stdout,
            from,
            to,
        };
        let feed = |journal: &mut Journal| {
            journal.handle_output(Stream::Stdout, b"ab");
            journal.handle_gap(gap(2, 200));
            journal.handle_output(Stream::Stdout, b"c\n");
            journal.handle_gap(gap(202, 203));
            journal.handle_output(Stream::Stdout, b"d\n");
        };
        let expected = "ab\n[host-tool: stdout bytes 2 to 200 are lost]\nc\n\
                        [host-tool: stdout bytes 202 to 203 are lost]\nd\n";
        assert_eq!(check(Some(0), feed, expected).stdout, Some(205));
    }

    #[test]
    fn a_clone_begins_with_what_its_guest_has() {
        let feed = |journal: &mut Journal| {
            journal.handle_attached(&attached(700, 0));
            journal.handle_output(Stream::Stdout, b"x");
        };
        let record = check(None, feed, "x");
        assert_eq!((record.stdout, record.stderr), (Some(701), Some(0)));
    }

    #[test]
    fn a_restarted_agent_starts_over() {
        let feed = |journal: &mut Journal| {
            journal.handle_output(Stream::Stdout, b"abc");
            journal.handle_attached(&attached(2, 0));
            journal.handle_output(Stream::Stdout, b"x");
        };
        let expected = "abc\n[host-tool: the agent was restarted; the workload's output starts \
                        over]\n\
                        [host-tool: stdout bytes 0 to 2 are lost]\nx";
        assert_eq!(check(Some(0), feed, expected).stdout, Some(3));
    }

    #[test]
    fn a_full_log_is_rotated_before_it_is_too_long() {
        let mut journal = Journal::new(Record::empty(Some(0)), 4);
        journal.handle_output(Stream::Stdout, b"abcd");
        assert_eq!(journal.poll_commit().len(), 2, "full is not too long");
        journal.handle_committed();
        assert_eq!(journal.poll_commit(), []);
        journal.handle_output(Stream::Stdout, b"e");
        let steps = journal.poll_commit();
        assert_eq!(steps[0], Step::Rotate);
        assert_eq!(steps[2], Step::Append(b"e".to_vec()));
        journal.handle_committed();
        let record = journal.committed();
        assert_eq!((record.older_start, record.start, record.len), (0, 4, 1));
        assert_eq!(steps[3], Step::Record(*record));
    }
}
