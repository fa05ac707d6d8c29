//! Explores the handshake to the last state within a bound.
//!
//! The machines are the ones that ship: the agent's core ([`agent::agent::Agent`]) and the host's
//! driver of a request ([`shared::exchange::Exchange`]). Around them, a small event loop, kernel,
//! transport and sequence of phases do what the real parts do, or what a defect would make them do.
//!
//! `docs/model.md` has the bounds, the figures and the counter-examples.
#![expect(missing_docs, reason = "names say what most items are")]

pub mod explore;
pub mod guest;
pub mod hasher;
pub mod host;
pub mod mutation;
pub mod property;
pub mod scenario;
pub mod trace;
pub mod wire;
pub mod world;
