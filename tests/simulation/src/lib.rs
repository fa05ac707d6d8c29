//! The agent and many clients over a simulated kernel, with a schedule from each seed.
//!
//! Goal: in whatever order kernel, children and clients act, the invariants hold after every step.
//! No byte is lost, repeated or left unread; a command runs once and its reported end is the true
//! one. When all faults stop, a host that follows the handshake gets its guest back, and nothing is
//! left.
//!
//! Method: the machines are the ones that ship: the agent's core ([`agent::agent::Agent`]), the
//! host's driver of a request ([`shared::exchange::Exchange`]) and of a session
//! ([`shared::session_client::SessionClient`]), beside clients that follow no rules. Around them, a
//! shell does what the real one does, and a small kernel reads and writes in parts, loses edges,
//! reports events of closed sources, reuses process ids, and runs out of descriptors and memory.
//! `docs/testing.md` says how to run it.

#![expect(missing_docs, reason = "names say what most items are")]

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
