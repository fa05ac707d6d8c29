//! The agent and many clients over a simulated kernel, a schedule from each seed.
//!
//! Goal: whatever order kernel, children and clients find, the invariants hold after every step; no
//! byte is lost, repeated or left lying; a command runs once and its end is the true one; and when
//! the storm is over, a host that follows the handshake gets its guest back and nothing is left.
//!
//! Method: the machines are the ones that ship: the agent's core ([`agent::agent::Agent`]), the
//! host's driver of a request ([`shared::exchange::Exchange`]) and of a session
//! ([`shared::session_client::SessionClient`]), beside clients that keep to no rules. Around them
//! is a small kernel, which reads and writes in parts, loses edges, reports what was closed, uses
//! process ids again and runs out of descriptors and memory, and a shell that does what the real
//! one does. `docs/testing.md` says how it is run.

pub mod check;
pub mod client;
pub mod commands;
pub mod guest;
pub mod kernel;
mod metadata;
pub mod pattern;
pub mod random;
pub mod raw;
pub mod requests;
pub mod run;
pub mod schedule;
mod stdio;
pub mod tally;
