//! This machine, with a deadline on everything: files, sockets, processes, signals, the clock.

pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod descriptors;
pub(crate) mod dir;
pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod json;
pub(crate) mod lock;
pub(crate) mod mark;
pub(crate) mod notify;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod trust;
pub(crate) mod uds;
