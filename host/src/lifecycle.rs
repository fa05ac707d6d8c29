//! A VM from a plan to a proven guest, to a snapshot, to its end.

pub mod ending;
pub mod foreground;
pub mod handshake;
pub mod hooks;
pub mod plan;
pub mod rebind;
pub mod snapshot;
pub mod start;
pub mod starting;
