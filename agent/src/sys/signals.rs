//! Signals as events: blocked by the program's first statement and read from a descriptor.
//!
//! A child gets an empty mask and default dispositions. [`block`] also resets inherited
//! dispositions of this process, so that only the mask has to be changed between clone and exec.

#![expect(
    unsafe_code,
    reason = "changing a disposition is unsafe; only the two fixed ones are ever set"
)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;

use super::source::source_by_fd;

/// The signals that the event loop handles. All others stay blocked and pending.
const WATCHED: [Signal; 4] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGPWR,
];

/// Faults of the thread itself. If these were blocked, a crash would print no message.
const SYNCHRONOUS: [Signal; 6] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGTRAP,
];

/// A signalfd.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
}

/// Blocks every signal but the synchronous faults, and gives all others their default disposition.
pub(crate) fn block() -> io::Result<()> {
    let mut blocked = SigSet::all();
    for signal in SYNCHRONOUS {
        blocked.remove(signal);
    }
    blocked.thread_block()?;
    restore_defaults()
}

/// Opens the descriptor. Signals that arrived since [`block`] are read from it too.
pub(crate) fn open() -> io::Result<Signals> {
    let mut watched = SigSet::empty();
    for signal in WATCHED {
        watched.add(signal);
    }
    let fd = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    Ok(Signals { fd })
}

impl Signals {
    /// The next signal; `None` if all have been read. One `SIGCHLD` may stand for several children.
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.fd.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
        Ok(Some(Signal::try_from(number)?))
    }
}

/// Rust's runtime ignores `SIGPIPE`, and a parent may have ignored others; children would inherit
/// it.
fn restore_defaults() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        let fixed = matches!(signal, Signal::SIGKILL | Signal::SIGSTOP);
        if !fixed && !SYNCHRONOUS.contains(&signal) {
            // SAFETY: the default action runs none of our code in signal context. The runtime's
            // handlers for stack overflow are on synchronous signals, which are not changed.
            unsafe { sigaction(signal, &default) }?;
        }
    }
    Ok(())
}

source_by_fd!(Signals, fd);
