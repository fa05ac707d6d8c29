//! This machine, with a deadline on everything: files, sockets, processes, signals, the clock.

pub mod clock;
pub mod deadline;
pub mod descriptors;
pub mod disk;
pub mod files;
pub mod json;
pub mod notify;
pub mod process;
pub mod random;
pub mod signals;
pub mod terminal;
pub mod uds;
