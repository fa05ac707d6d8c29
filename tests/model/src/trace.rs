//! What happened in a run, as lines of a sequence diagram. The exploration records nothing; an
//! interesting run is repeated with a trace.

use std::hash::{Hash, Hasher};

use shared::message::Role;

use crate::wire::labels;

/// `None` while states are explored.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    lines: Option<Vec<String>>,
}

/// Two states are the same whatever led to them.
impl Hash for Trace {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Trace {
    pub const fn recorded() -> Self {
        Self {
            lines: Some(Vec::new()),
        }
    }

    pub fn lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }

    fn push(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    pub fn guest_to_host(&mut self, guest: usize, host: usize, bytes: &[u8]) {
        self.push(|| format!("G{guest}-)H{host}: {}", labels(bytes, Role::Guest)));
    }

    pub fn host_to_guest(&mut self, host: usize, guest: usize, bytes: &[u8]) {
        self.push(|| format!("H{host}-)G{guest}: {}", labels(bytes, Role::Host)));
    }

    pub fn note(&mut self, guest: usize, text: &str) {
        self.push(|| format!("Note over G{guest}: {text}"));
    }

    pub fn host_note(&mut self, host: usize, text: impl FnOnce() -> String) {
        self.push(|| format!("Note over H{host}: {}", text()));
    }

    pub fn fault(&mut self, guest: usize, text: &str) {
        self.push(|| format!("Note over T,G{guest}: {text}"));
    }
}
