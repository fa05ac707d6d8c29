//! The two programs as ordinary processes: no virtual machine, no privileges.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod conversation;
mod exec;
mod footprint;
mod health;
mod host;
mod hostile;
mod logs;
mod stress;
