//! Sessions: commands with their streams, and the connections that are attached to them.
//!
//! `exec` starts and ends them, `session` is one of them and `table` all of them; `ring`, `input`
//! and `buffers` hold their bytes; `attachments` says which connection gets which bytes.

pub(crate) mod attachments;
pub(crate) mod buffers;
pub(crate) mod children;
pub(crate) mod exec;
pub(crate) mod input;
pub(crate) mod lifetimes;
pub(crate) mod listing;
pub(crate) mod program;
pub(crate) mod ring;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod table;
pub(crate) mod workload;
