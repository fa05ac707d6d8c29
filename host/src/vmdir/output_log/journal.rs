//! Which bytes of the workload stand in the log, and the steps that put more there. No I/O, no
//! clock.
//!
//! ```text
//! output ─▶ pending ──commit──▶ [Rotate, Record,] Append, Record ──▶ acknowledged to the guest
//! ```
//!
//! Invariants:
//! - A record says how long the log is and which offsets that length stands for, together. What is
//!   behind the recorded length was not acknowledged, so it is cut off and had again.
//! - Of each stream the log holds every byte once and in order. What is missing is a line that says
//!   so.

use serde_json::{Value, json};
use shared::json::{JsonError, Object};
use shared::message::{Gap, Started, Stream};

/// Longest log file, in bytes. With the older one it is twice that.
pub const OUTPUT_LEN_MAX: u64 = 64 * 1024 * 1024;

/// The log as of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Bytes that were ever logged before the first one of the older file.
    pub older_start: u64,
    /// Bytes that were ever logged before the first one of the log file.
    pub start: u64,
    /// Bytes of the log file that count.
    pub len: u64,
    /// Whether the last line has no end yet.
    pub is_line_open: bool,
    /// Offset of the first byte of standard output that is not in the log; `None`: whichever is
    /// the first that the guest still has.
    pub stdout: Option<u64>,
    /// The same for standard error.
    pub stderr: Option<u64>,
}

impl Record {
    /// An empty log, of streams that are wanted from `from` on.
    #[must_use]
    pub const fn empty(from: Option<u64>) -> Self {
        Self {
            older_start: 0,
            start: 0,
            len: 0,
            is_line_open: false,
            stdout: from,
            stderr: from,
        }
    }

    /// Bytes that were ever logged.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The record after the log file has become the older one.
    #[must_use]
    pub const fn rotated(self) -> Self {
        Self {
            older_start: self.start,
            start: self.end(),
            len: 0,
            ..self
        }
    }

    /// Offset of the first byte of `stream` that is not in the log.
    #[must_use]
    pub const fn wanted(&self, stream: Stream) -> Option<u64> {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    const fn wanted_mut(&mut self, stream: Stream) -> &mut Option<u64> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// For the file.
    #[must_use]
    pub fn to_value(self) -> Value {
        json!({
            "older_start": self.older_start,
            "start": self.start,
            "len": self.len,
            "line_open": self.is_line_open,
            "stdout": self.stdout,
            "stderr": self.stderr,
        })
    }

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        let record = Self {
            older_start: object.number("older_start")?,
            start: object.number("start")?,
            len: object.number("len")?,
            is_line_open: object.flag("line_open")?,
            stdout: object.opt_number("stdout")?,
            stderr: object.opt_number("stderr")?,
        };
        if record.older_start > record.start {
            return Err(object.error("start", "no less than \"older_start\""));
        }
        Ok(record)
    }
}

/// What is to be done next. A crash between two steps, or in the middle of an append, loses and
/// repeats nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The log file becomes the older one.
    Rotate,
    /// These bytes go to the end of the log file, which is made if there is none.
    Append(Vec<u8>),
    /// This becomes the record, all at once.
    Record(Record),
}

/// The log's end as it is in memory.
#[derive(Debug)]
pub struct Journal {
    /// The record on disk.
    committed: Record,
    /// What it will be with `pending`; its length is not kept up to date in between.
    next: Record,
    /// Bytes that are not in the file yet.
    pending: Vec<u8>,
    len_max: u64,
}

impl Journal {
    /// A journal that goes on where `record` ends.
    #[must_use]
    pub const fn new(record: Record, len_max: u64) -> Self {
        Self {
            next: record,
            committed: record,
            pending: Vec::new(),
            len_max,
        }
    }

    /// The record on disk. What comes before its offsets may be acknowledged.
    #[must_use]
    pub const fn committed(&self) -> &Record {
        &self.committed
    }

    /// Bytes that wait for a commit.
    #[must_use]
    pub const fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// A connection was attached. A guest whose streams are shorter than what was had of them has
    /// begun anew: its agent was started again.
    pub fn handle_attached(&mut self, started: &Started) {
        let streams = [
            (Stream::Stdout, started.stdout_from),
            (Stream::Stderr, started.stderr_from),
        ];
        let is_shorter = |&(stream, from): &(Stream, u64)| {
            self.next.wanted(stream).is_some_and(|wanted| from < wanted)
        };
        if streams.iter().any(is_shorter) {
            self.mark("the workload's output begins anew");
            for (stream, from) in streams {
                *self.next.wanted_mut(stream) = Some(from);
                // Asking for what had not come yet has given up what there was.
                if from > 0 {
                    self.mark_lost(stream, 0, from);
                }
            }
        }
        for (stream, from) in streams {
            self.next.wanted_mut(stream).get_or_insert(from);
        }
    }

    /// The next bytes of `stream` came.
    pub fn handle_output(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.next.is_line_open = *last != b'\n';
        self.pending.extend_from_slice(bytes);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let wanted = self.next.wanted_mut(stream);
        *wanted = Some(wanted.unwrap_or(0).saturating_add(len));
    }

    /// The next bytes of a stream are gone.
    pub fn handle_gap(&mut self, gap: Gap) {
        self.mark_lost(gap.stream, gap.from, gap.to);
        *self.next.wanted_mut(gap.stream) = Some(gap.to);
    }

    fn mark_lost(&mut self, stream: Stream, from: u64, to: u64) {
        self.mark(&format!("{stream} bytes {from} to {to} are lost"));
    }

    /// Puts a line of our own into the log.
    fn mark(&mut self, text: &str) {
        if self.next.is_line_open {
            self.pending.push(b'\n');
        }
        self.next.is_line_open = false;
        self.pending
            .extend_from_slice(format!("[host-tool: {text}]\n").as_bytes());
    }

    /// Whether there is something to commit.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || self.next != self.committed
    }

    /// The steps that make everything so far durable, in order. Once they are done, and not
    /// before, [`handle_committed`](Self::handle_committed) is called.
    pub fn poll_commit(&mut self) -> Vec<Step> {
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

    /// The steps of the last commit are done.
    pub fn handle_committed(&mut self) {
        debug_assert!(self.pending.is_empty(), "a commit in the middle of output");
        self.committed = self.next;
    }
}

#[cfg(test)]
mod tests {
    use shared::message::Window;

    use super::*;

    fn attached(stdout_from: u64, stderr_from: u64) -> Started {
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

    /// What a fresh journal logs when `feed` has brought something in.
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
    fn streams_are_interleaved_as_they_come() {
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
    fn a_gap_is_one_line_of_its_own() {
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
    fn an_agent_that_was_started_again_begins_anew() {
        let feed = |journal: &mut Journal| {
            journal.handle_output(Stream::Stdout, b"abc");
            journal.handle_attached(&attached(2, 0));
            journal.handle_output(Stream::Stdout, b"x");
        };
        let expected = "abc\n[host-tool: the workload's output begins anew]\n\
                        [host-tool: stdout bytes 0 to 2 are lost]\nx";
        assert_eq!(check(Some(0), feed, expected).stdout, Some(3));
    }

    #[test]
    fn a_full_log_makes_room_before_it_is_too_long() {
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

    #[test]
    fn a_record_survives_its_file() {
        for record in [
            Record::empty(None),
            Record {
                older_start: 1,
                start: 2,
                len: 3,
                is_line_open: true,
                stdout: Some(4),
                stderr: Some(u64::MAX),
            },
        ] {
            let text = record.to_value().to_string();
            let object = Object::parse(text.as_bytes()).unwrap();
            assert_eq!(Record::from_object(&object).unwrap(), record);
        }
        let text = br#"{"older_start":3,"start":2,"len":0,"line_open":false}"#;
        let object = Object::parse(text).unwrap();
        Record::from_object(&object).unwrap_err();
    }
}
