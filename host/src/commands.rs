//! One file for each command: it reads its arguments, has the work done, and prints.

pub(crate) mod attach;
pub(crate) mod bench;
pub(crate) mod boot;
pub(crate) mod doctor;
pub(crate) mod environment;
pub(crate) mod exec;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod ls;
mod machine;
pub(crate) mod probe;
pub(crate) mod ps;
pub(crate) mod restore;
pub(crate) mod snapshot;
pub(crate) mod snapshots;
pub(crate) mod stop;
pub(crate) mod stress;
pub(crate) mod target;
pub(crate) mod wait;
