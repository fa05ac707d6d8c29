//! Sessions: commands with their streams, and the workload.
//!
//! `exec` starts and ends them; `session` is one of them and `table` all of them; `ring`, `input`
//! and `buffers` hold their bytes; `children` are their processes, and `faults` is what was cut or
//! lost of them. Which connection gets which bytes is in
//! [`transport`](super::transport).

pub(crate) mod buffers;
pub(crate) mod children;
pub(crate) mod exec;
pub(crate) mod faults;
pub(crate) mod forgotten;
pub(crate) mod input;
pub(crate) mod lifetimes;
pub(crate) mod listing;
pub(crate) mod ring;
pub(crate) mod session;
pub(crate) mod table;
pub(crate) mod workload;
