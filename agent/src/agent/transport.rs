//! Connections to hosts and to programs of the guest.
//!
//! `listener` accepts; `connection` is one of them and `connections` all of them; `dispatch` takes
//! bytes to requests, and answers and output back to bytes; `attachments` and `streams` tie a
//! connection to a session.

pub(crate) mod attachments;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod dispatch;
pub(crate) mod listener;
pub(crate) mod outbox;
pub(crate) mod output;
pub(crate) mod streams;
