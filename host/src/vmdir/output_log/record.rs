//! `output.json`: how much of the log counts, and which stream offsets that stands for.

use serde_json::{Value, json};
use shared::json::{JsonError, Object};
use shared::message::Stream;

/// The log as of one commit. Positions in the log count from the first byte that was ever logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Position of the older file's first byte.
    pub(crate) older_start: u64,
    /// Position of the log file's first byte.
    pub(crate) start: u64,
    /// Bytes of the log file that count.
    pub(crate) len: u64,
    /// Whether the last line lacks its newline.
    pub(crate) is_line_open: bool,
    /// Offset of the first byte of standard output that is not in the log; `None`: the first byte
    /// that the guest still has.
    pub(crate) stdout: Option<u64>,
    /// The same for standard error.
    pub(crate) stderr: Option<u64>,
}

impl Record {
    /// An empty log of streams from offset `from` on.
    pub(crate) const fn empty(from: Option<u64>) -> Self {
        Self {
            older_start: 0,
            start: 0,
            len: 0,
            is_line_open: false,
            stdout: from,
            stderr: from,
        }
    }

    /// Position behind the last byte.
    pub(crate) const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The record after the log file became the older file.
    pub(crate) const fn rotated(self) -> Self {
        Self {
            older_start: self.start,
            start: self.end(),
            len: 0,
            ..self
        }
    }

    /// Offset of the first byte of `stream` that is not in the log.
    pub(crate) const fn wanted(&self, stream: Stream) -> Option<u64> {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    pub(super) const fn wanted_mut(&mut self, stream: Stream) -> &mut Option<u64> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    pub(crate) fn to_value(self) -> Value {
        json!({
            "older_start": self.older_start,
            "start": self.start,
            "len": self.len,
            "line_open": self.is_line_open,
            "stdout": self.stdout,
            "stderr": self.stderr,
        })
    }

    pub(crate) fn from_object(object: &Object) -> Result<Self, JsonError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
