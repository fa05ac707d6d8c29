//! How far the save is, for whoever waits at a terminal.

use std::io::{IsTerminal, Write};

/// How far the save is, on a terminal and nowhere else.
#[derive(Debug)]
pub(super) struct Progress {
    memory_mib: u32,
    is_terminal: bool,
    shown_mib: Option<u64>,
}

impl Progress {
    /// For a machine with this much memory, most of which will be written.
    pub(super) fn new(memory_mib: u32) -> Self {
        let is_terminal = std::io::stderr().is_terminal() && log::log_enabled!(log::Level::Warn);
        Self {
            memory_mib,
            is_terminal,
            shown_mib: None,
        }
    }

    /// Shows how many bytes were written so far.
    pub(super) fn show(&mut self, bytes: u64) {
        let mib = bytes / (1024 * 1024);
        if self.is_terminal && self.shown_mib != Some(mib) {
            let mut stderr = std::io::stderr().lock();
            // A progress that cannot be shown is no reason to stop.
            let _ = write!(stderr, "\rsaving {mib} of {} MiB", self.memory_mib);
            self.shown_mib = Some(mib);
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if self.shown_mib.is_some() {
            let _ = write!(std::io::stderr().lock(), "\r{:40}\r", "");
        }
    }
}
