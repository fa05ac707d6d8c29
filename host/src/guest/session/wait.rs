//! The one wait of a session: for the guest, this program's streams, its signals, and the VMM.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use shared::message::Stream;

use super::Driver;
use super::error::ClientError;

/// What has become ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready {
    pub(super) connection: bool,
    pub(super) stdin: bool,
    pub(super) outlets: [bool; 2],
    pub(super) signals: bool,
    pub(super) process: bool,
    /// The terminal on standard input was closed.
    pub(super) hangup: bool,
}

/// What a descriptor in the poll set is.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Connection,
    Stdin,
    /// Standard input that is a terminal.
    Terminal,
    Outlet(Stream),
    Signals,
    Process,
}

impl Ready {
    fn set(&mut self, slot: Slot, events: PollFlags) {
        match slot {
            Slot::Connection => self.connection = true,
            Slot::Stdin => self.stdin = true,
            Slot::Terminal => {
                self.hangup = events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
                self.stdin = events.contains(PollFlags::POLLIN);
            }
            Slot::Outlet(stream) => self.outlets[stream.index()] = true,
            Slot::Signals => self.signals = true,
            Slot::Process => self.process = true,
        }
    }
}

impl Driver<'_> {
    pub(super) fn wait(&mut self, until: Instant) -> Result<Ready, ClientError> {
        let wants_write = !self.client.poll_output().is_empty();
        let mut fds = Vec::with_capacity(6);
        let mut slots = Vec::with_capacity(6);
        if let Some(connection) = &self.connection {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, self.client.wants_read());
            interest.set(PollFlags::POLLOUT, wants_write);
            if !interest.is_empty() {
                fds.push(PollFd::new(connection.as_fd(), interest));
                slots.push(Slot::Connection);
            }
        }
        if let Some(stdin) = self.stdin {
            let has_room = self.client.input_room() > 0;
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, has_room);
            // poll reports a hang-up also where no event is asked for. At the end of a pipe it
            // would do so again and again.
            if has_room || self.is_input_terminal {
                fds.push(PollFd::new(stdin, interest));
                slots.push(match self.is_input_terminal {
                    true => Slot::Terminal,
                    false => Slot::Stdin,
                });
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let outlet = &self.outlets[stream.index()];
            if outlet.is_pending() {
                fds.push(PollFd::new(outlet.as_fd(), PollFlags::POLLOUT));
                slots.push(Slot::Outlet(stream));
            }
        }
        if let Some(signals) = self.signals {
            fds.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
            slots.push(Slot::Signals);
        }
        // Once EXITED is here, or while output waits to be written, the VMM's end changes nothing.
        let may_end = !self.client.has_ended() && self.client.wants_read();
        if let Some(process) = self.watch.process().filter(|_| may_end) {
            fds.push(PollFd::new(process, PollFlags::POLLIN));
            slots.push(Slot::Process);
        }
        let mut ready = Ready::default();
        if !poll_until(&mut fds, until).map_err(ClientError::Local)? {
            return Ok(ready);
        }
        for (fd, slot) in fds.iter().zip(slots) {
            // `None` stands for events that nix does not know. A read or a write tells more.
            let events = fd.revents().unwrap_or(PollFlags::POLLIN);
            if !events.is_empty() {
                ready.set(slot, events);
            }
        }
        Ok(ready)
    }
}

/// Waits for the descriptors at most until a point in time. `false` after an interruption, which
/// leaves their events undefined.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    let timeout = TimeSpec::from(until.saturating_duration_since(Instant::now()));
    match ppoll(fds, Some(timeout), None) {
        Ok(_) => Ok(true),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
