//! Talking to a guest: the connection, the driver that moves an exchange's bytes, and the one that
//! moves a session's.
//!
//! Everything that a guest sends is taken for hostile: memory is bounded by the frame limits, its
//! texts are escaped before a terminal sees them, and a wait for it always has an end. The
//! conversations themselves are pure machines ([`shared::exchange`], [`shared::session_client`]).

pub(crate) mod address;
pub(crate) mod answer;
pub(crate) mod connection;
pub(crate) mod driver;
pub mod hybrid_vsock;
pub(crate) mod outlet;
pub(crate) mod requests;
pub(crate) mod session;

/// This program's version, as it stands in HELLO.
pub(crate) const HOST_VERSION: &str = env!("CARGO_PKG_VERSION");
