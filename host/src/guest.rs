//! Talks to a guest: connections, the driver of an exchange, and the driver of a session.
//!
//! A guest is not trusted. Frame limits bound the memory that it can use, its texts are escaped
//! before a terminal shows them, and every wait for it has an end. The
//! conversations themselves are pure machines ([`shared::exchange`], [`shared::session_client`]).

pub(crate) mod address;
pub(crate) mod answer;
pub(crate) mod connection;
pub(crate) mod driver;
pub(crate) mod fault;
pub mod hybrid_vsock;
pub(crate) mod outlet;
pub(crate) mod requests;
pub(crate) mod session;

/// This program's version in HELLO.
pub(crate) const HOST_VERSION: &str = env!("CARGO_PKG_VERSION");
