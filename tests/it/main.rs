//! The two programs as ordinary processes: no virtual machine, no privileges.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod agent;
mod api;
mod exec;
mod handshake;
mod host;
mod hostile;
mod sessions;
