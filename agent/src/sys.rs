//! Every system call of the agent, one file per concern.
//!
//! What belongs here: one system call (or one tight sequence that only makes sense together) with
//! typed arguments and `io::Result`. What does not: policy, retries, logging, and any type of
//! [`crate::agent`].
//!
//! Invariants:
//! - `unsafe` appears under this folder and nowhere else in the agent. Each file that needs it says
//!   why in its `expect`, and each block says which condition of the callee holds for which reason.
//! - A descriptor is an `OwnedFd` on the line after the call that made it, and is close-on-exec
//!   from birth. What the event loop polls is also non-blocking from birth.
//! - Children are waited for in one function, [`process::reap`].

pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod entropy;
mod entry;
pub(crate) mod file;
pub(crate) mod modules;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod netlink;
pub(crate) mod power;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod stdio;
pub(crate) mod vsock;

use std::io;

/// Turns the `-1` of a failed call into the error that `errno` names.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// As [`check`], for calls that return a length.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
