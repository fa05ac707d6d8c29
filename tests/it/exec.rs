//! Commands that `host-tool exec` runs in a guest: how they start and end, their streams and their
//! terminal, many of them at once, and connections that break meanwhile.

mod conformance;
mod cuts;
mod flood;
mod leaving;
mod running;
mod streams;
mod terminal;
