//! A VM from a plan to a proven guest, to a snapshot, to its end.

pub(crate) mod ending;
pub(crate) mod foreground;
pub(crate) mod handshake;
pub(crate) mod hooks;
pub(crate) mod plan;
pub(crate) mod rebind;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod starting;
