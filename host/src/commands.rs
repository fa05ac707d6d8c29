//! One file for each command: it reads its arguments, has the work done, and prints.

pub mod attach;
pub mod bench;
pub mod boot;
pub mod doctor;
pub mod environment;
pub mod exec;
pub mod kill;
pub mod logs;
pub mod ls;
pub mod probe;
pub mod ps;
pub mod restore;
pub mod snapshot;
pub mod snapshots;
pub mod stop;
pub mod stress;
pub mod target;
pub mod wait;
