//! The wire protocol between `host-tool` and `guest-agent`, and the state machines of the host's
//! side of it. No I/O, no clock, no unsafe code.
//!
//! A connection is a stream of [frames](frame). The first frame each way is a
//! [HELLO](message::Hello); the client may send its request directly after it. Each request has a
//! completion frame, and only that frame means that the request was fulfilled: a successful write
//! is not delivery.
//!
//! ```text
//! host                                   guest
//!  │ HELLO, REBIND(generation) ─────────▶ │  listener taken out of the poll set and put back,
//!  │ ◀───────────────── HELLO, PROGRESS*  │  clock, entropy and identity set
//!  │ ◀──────────────────────────── REBOUND│
//!  │ (a fresh connection)                 │
//!  │ HELLO, PROBE(generation, nonce) ───▶ │  a process spawned and reaped
//!  │ ◀──────────────────── HELLO, PROBED  │
//!  │ ready                                │
//! ```
//!
//! `docs/protocol.md` is the normative description; a test executes its examples. The state machine
//! in [`exchange`] carries out a request with one completion frame. The one in [`session_client`]
//! runs a command, or attaches to one, across any number of connections.

#![forbid(unsafe_code)]

pub mod exchange;
pub mod frame;
pub mod id;
pub mod json;
pub mod limits;
pub mod message;
pub mod session_client;
mod text;
pub mod version;

pub use message::PayloadError;
