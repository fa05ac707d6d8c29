//! Signals as events: blocked from the first statement on and read from a descriptor.
//!
//! A child gets an empty mask and default dispositions: [`block`] also resets what this process
//! inherited as ignored, so that nothing is left to undo between the fork and the exec.

#![expect(
    unsafe_code,
    reason = "changing a disposition is unsafe; only the two fixed ones are ever set"
)]

use std::io;
use std::os::fd::AsRawFd;

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What the loop is told about. Everything else stays blocked and pending, which harms nobody.
const WATCHED: [Signal; 4] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGPWR,
];

/// Faults of this very thread. Blocking them would turn a crash with a message into a silent kill.
const SYNCHRONOUS: [Signal; 6] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGTRAP,
];

/// The readable end of the process's signals.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
}

/// Blocks every signal but the synchronous faults, and sets ignored ones back to their default.
///
/// Must be the first thing the program does: a signal that arrives earlier acts by its default.
pub(crate) fn block() -> io::Result<()> {
    let mut blocked = SigSet::all();
    for signal in SYNCHRONOUS {
        blocked.remove(signal);
    }
    blocked.thread_block()?;
    restore_defaults()
}

/// Opens the descriptor. What arrived since [`block`] is read first.
pub(crate) fn open() -> io::Result<Signals> {
    let mut watched = SigSet::empty();
    for signal in WATCHED {
        watched.add(signal);
    }
    let fd = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    Ok(Signals { fd })
}

impl Signals {
    /// The next signal, or `None` when all have been read. One `SIGCHLD` may stand for many
    /// children.
    pub(crate) fn read(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.fd.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
        Ok(Some(Signal::try_from(number)?))
    }
}

/// Rust's runtime ignores `SIGPIPE`, and a parent may have ignored others; exec would pass both on.
fn restore_defaults() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        let fixed = matches!(signal, Signal::SIGKILL | Signal::SIGSTOP);
        if !fixed && !SYNCHRONOUS.contains(&signal) {
            // SAFETY: installing the default action runs no code of ours in signal context. The
            // stack overflow handlers of the runtime are on synchronous signals, which are left
            // alone.
            unsafe { sigaction(signal, &default) }?;
        }
    }
    Ok(())
}

impl Source for Signals {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }
}
