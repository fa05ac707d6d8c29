//! The two programs as ordinary processes: no virtual machine, no privileges.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod api;
mod bench;
mod checkpoints;
mod conformance;
mod conversation;
mod cuts;
mod exec;
mod failpoints;
mod flood;
mod footprint;
mod health;
mod hooks;
mod host;
mod hostile;
mod hybrid;
mod limits;
mod logs;
mod mmds;
mod resets;
mod rivals;
mod sessions;
mod streams;
mod stress;
mod terminal;
mod vsock;
mod workload;
