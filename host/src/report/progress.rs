//! The progress of a long step, for a user at a terminal.

use std::io::{IsTerminal, Write};

use crate::values::MIB;

/// Shown only if standard error is a terminal. Dropping it clears the line.
#[derive(Debug)]
pub(crate) struct Progress {
    verb: &'static str,
    total_mib: u64,
    is_terminal: bool,
    shown_mib: Option<u64>,
}

impl Progress {
    /// For a step called `verb` ("saving") of about `total` bytes.
    pub(crate) fn new(verb: &'static str, total: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal() && log::log_enabled!(log::Level::Warn);
        Self {
            verb,
            total_mib: total.div_ceil(MIB),
            is_terminal,
            shown_mib: None,
        }
    }

    /// Shows how many bytes are done.
    pub(crate) fn show(&mut self, bytes: u64) {
        let mib = bytes / MIB;
        if self.is_terminal && self.shown_mib != Some(mib) {
            let mut stderr = std::io::stderr().lock();
            // The step must not fail because its progress cannot be shown.
            let _ = write!(stderr, "\r{} {mib} of {} MiB", self.verb, self.total_mib);
            self.shown_mib = Some(mib);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown_mib.is_some() {
            let _ = write!(std::io::stderr().lock(), "\r{:40}\r", "");
        }
    }
}
