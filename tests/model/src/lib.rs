//! The handshake, explored to the last state within a bound.
//!
//! The machines are the ones that ship: the agent's core ([`agent::agent::Agent`]) and the host's
//! driver of a request ([`shared::exchange::Exchange`]). What stands around them here (event loop,
//! kernel, transport, the order of a host's phases) is small and does what the real parts do, and,
//! on request, what a defect would make them do.
//!
//! `docs/model.md` has the bounds, the figures and the counter-examples.

pub mod explore;
pub mod guest;
pub mod hasher;
pub mod host;
pub mod mutation;
pub mod property;
pub mod scenario;
pub mod story;
pub mod wire;
pub mod world;
