//! What happened in a run, as lines of a sequence diagram. Nothing is told while states are
//! explored; a run that is worth telling is made again.

use std::hash::{Hash, Hasher};

use shared::message::Role;

use crate::wire::labels;

/// The lines, or nobody listens.
#[derive(Clone, Debug, Default)]
pub struct Story {
    lines: Option<Vec<String>>,
}

/// Two states are the same whatever led to them.
impl Hash for Story {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Story {
    /// One that is told.
    pub const fn told() -> Self {
        Self {
            lines: Some(Vec::new()),
        }
    }

    /// Takes the lines.
    pub fn lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }

    fn push(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// A guest writes to a host.
    pub fn guest_to_host(&mut self, guest: usize, host: usize, bytes: &[u8]) {
        self.push(|| format!("G{guest}-)H{host}: {}", labels(bytes, Role::Guest)));
    }

    /// A host connects and writes.
    pub fn host_to_guest(&mut self, host: usize, guest: usize, bytes: &[u8]) {
        self.push(|| format!("H{host}-)G{guest}: {}", labels(bytes, Role::Host)));
    }

    /// Something happens in a guest.
    pub fn note(&mut self, guest: usize, text: &str) {
        self.push(|| format!("Note over G{guest}: {text}"));
    }

    /// Something happens in a host.
    pub fn host_note(&mut self, host: usize, text: impl FnOnce() -> String) {
        self.push(|| format!("Note over H{host}: {}", text()));
    }

    /// The transport does something.
    pub fn fault(&mut self, guest: usize, text: &str) {
        self.push(|| format!("Note over T,G{guest}: {text}"));
    }
}
