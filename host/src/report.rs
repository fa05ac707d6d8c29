//! What a command did, for people and for scripts: its record, its timeline, lists and progress.

pub mod chrome;
pub mod log;
pub mod output;
pub mod phase;
pub mod progress;
pub mod record;
pub mod reports;
pub mod svg;
pub mod table;
pub mod text;
pub mod timeline;

const MIB: u64 = 1024 * 1024;
