//! Talking to a guest: the connection, the driver that moves an exchange's bytes, and the client
//! of EXEC.
//!
//! Everything that a guest sends is taken for hostile: memory is bounded by the frame limits, its
//! texts are escaped before a terminal sees them, and a wait for it always has an end. The
//! conversations themselves are pure machines ([`shared::exchange`] and [`exec_stream`]).

pub mod connection;
pub mod driver;
pub mod exec;
mod exec_error;
pub mod exec_stream;
pub mod hybrid_vsock;

/// This program's version, as it stands in HELLO.
pub const HOST_VERSION: &str = env!("CARGO_PKG_VERSION");
