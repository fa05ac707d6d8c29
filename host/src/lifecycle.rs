//! The life of a VM: its plan, its start up to a proven guest, its snapshots and its end.

pub(crate) mod ending;
pub(crate) mod foreground;
pub(crate) mod handshake;
pub(crate) mod hooks;
pub(crate) mod plan;
pub(crate) mod rebind;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod starting;
