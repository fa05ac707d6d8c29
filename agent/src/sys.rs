//! The agent's system calls, one file per concern.
//!
//! A function here makes one system call, or one sequence of calls that belong together, with typed
//! arguments and an `io::Result`. Policy, retries, logging and types of [`crate::agent`] are not
//! for this folder.
//!
//! Invariants:
//! - Only this folder contains `unsafe`. Each file that needs it says why in its `expect`, and each
//!   block says why the conditions of the call hold.
//! - A new descriptor becomes an `OwnedFd` on the line after the call that made it, and is created
//!   close-on-exec. A descriptor that the event loop polls is also created non-blocking.
//! - Only one function waits for children: [`process::reap`].

pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod entropy;
mod entry;
#[cfg(test)]
pub(crate) mod failing;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod modules;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod netlink;
pub(crate) mod power;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod socket;
mod source;
pub(crate) mod spawn;
pub(crate) mod stdio;
pub(crate) mod vsock;

use std::io;

/// Turns the `-1` of a failed call into the error of `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// [`check`] for calls that return a length.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
