//! What a command did, for people and for scripts: its record, its timeline, lists and progress.

pub(crate) mod chrome;
pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod phase;
pub(crate) mod progress;
pub(crate) mod record;
pub(crate) mod reports;
pub(crate) mod svg;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod timeline;
