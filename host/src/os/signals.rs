//! Signals that a command reads from a descriptor instead of dying from them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::disposition;

/// Signals that a client forwards to its command in the guest.
pub(crate) const PASSED_ON: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals that end a program, but not while its VM or its snapshot needs it.
const STOP: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Holds TERM, INT and HUP back.
pub(crate) fn block_stop_signals() -> io::Result<SigSet> {
    let mask = SigSet::from_iter(STOP);
    mask.thread_block()?;
    Ok(mask)
}

/// Holds TERM, INT and HUP back, to be read from the descriptor.
pub(crate) fn take_stop_signals() -> io::Result<SignalFd> {
    signal_fd(&block_stop_signals()?)
}

fn signal_fd(mask: &SigSet) -> io::Result<SignalFd> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    Ok(SignalFd::with_flags(mask, flags)?)
}

/// A signalfd, and the block on its signals for the rest of the process's life.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks these signals, except those that this process was started to ignore: a blocked signal
    /// is queued even if it is ignored, and `nohup` would have no effect.
    pub(crate) fn take(wanted: &[Signal]) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for &signal in wanted {
            if !disposition::is_ignored(signal as i32)? {
                mask.add(signal);
            }
        }
        mask.thread_block()?;
        Ok(Self(signal_fd(&mask)?))
    }

    /// The next pending signal, if there is one.
    pub(crate) fn next(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.0.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
        Ok(Some(Signal::try_from(number)?))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn signals_are_read_once() {
        let signals = Signals::take(&[Signal::SIGUSR2]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        raise(Signal::SIGUSR2).unwrap();
        assert_eq!(signals.next().unwrap(), Some(Signal::SIGUSR2));
        assert_eq!(signals.next().unwrap(), None);
    }
}
