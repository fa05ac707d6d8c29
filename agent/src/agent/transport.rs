//! Connections to hosts and to programs of the guest: the listener, bytes to requests, and answers
//! and output back to bytes.
//!
//! `connection` is one of them and `connections` all of them; `dispatch` finds the conversation
//! that a request belongs to.

pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod dispatch;
pub(crate) mod listener;
pub(crate) mod outbox;
pub(crate) mod output;
