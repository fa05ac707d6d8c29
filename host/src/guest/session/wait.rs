//! The one wait of a session: for the guest, this program's streams, its signals, and the VMM.

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
}

/// What a descriptor in the poll set is.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Connection,
    Stdin,
    Outlet(Stream),
    Signals,
    Process,
}

impl Ready {
    const fn set(&mut self, slot: Slot) {
        match slot {
            Slot::Connection => self.connection = true,
            Slot::Stdin => self.stdin = true,
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
        if let Some(stdin) = self.stdin.filter(|_| self.client.input_room() > 0) {
            fds.push(PollFd::new(stdin, PollFlags::POLLIN));
            slots.push(Slot::Stdin);
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
        let timeout = TimeSpec::from(until.saturating_duration_since(Instant::now()));
        let mut ready = Ready::default();
        match ppoll(&mut fds, Some(timeout), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(ready),
            Err(errno) => return Err(ClientError::Local(errno.into())),
        }
        let found = fds
            .iter()
            .zip(slots)
            .filter(|(fd, _)| fd.any().unwrap_or(true));
        found.for_each(|(_, slot)| ready.set(slot));
        Ok(ready)
    }
}
