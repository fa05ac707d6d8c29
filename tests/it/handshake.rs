//! What a guest and its host say to each other around a snapshot: QUIESCE, REBIND, PROBE, and what
//! the programs of the guest learn of it.

pub(crate) mod checkpoints;
mod conversation;
mod failpoints;
mod hooks;
mod hybrid;
mod mmds;
mod resets;
mod rivals;
mod vsock;
