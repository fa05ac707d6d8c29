//! Waits that always end: with a descriptor, a deadline, or the end of a process.
//!
//! Every wait of this crate goes through [`Watch`]. A wait without a deadline turns a lost answer
//! into a hang, and a wait that ignores the VMM process turns a crash into a timeout. Nothing here
//! sleeps: each wait is one `ppoll` on the events that can end it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Stands for "no limit": only the end of the process ends such a wait.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The bounds of a wait: a deadline, and the life of a process where one is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch<'a> {
    deadline: Instant,
    /// A pidfd, which polls readable from the moment its process has ended.
    process: Option<BorrowedFd<'a>>,
}

impl<'a> Watch<'a> {
    /// A watch that only the deadline ends.
    pub(crate) const fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            process: None,
        }
    }

    /// A watch that also ends when the process behind `pidfd` does.
    pub(crate) const fn with_process(deadline: Instant, pidfd: Option<BorrowedFd<'a>>) -> Self {
        Self {
            deadline,
            process: pidfd,
        }
    }

    /// The same process under an earlier (or later) deadline.
    pub(crate) const fn at(self, deadline: Instant) -> Self {
        Self {
            deadline,
            process: self.process,
        }
    }

    /// When the wait ends at the latest.
    pub(crate) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The process's pidfd, for callers that poll several descriptors themselves.
    pub(crate) const fn process(&self) -> Option<BorrowedFd<'a>> {
        self.process
    }

    /// Waits for the end of the process, and returns whether it has ended by then. Without a
    /// process it does not wait.
    pub(crate) fn ends_by(&self, until: Instant) -> bool {
        let watch = Watch::until(until);
        self.process
            .is_some_and(|process| watch.readable(process).is_ok())
    }

    /// Waits until `fd` is readable. A hangup or an error counts, too: the read reports it.
    pub(crate) fn readable(&self, fd: impl AsFd) -> Result<(), WaitError> {
        self.ready(fd.as_fd(), PollFlags::POLLIN, None).map(drop)
    }

    /// Waits until `fd` is writable. A hangup or an error counts, too: the write reports it.
    pub(crate) fn writable(&self, fd: impl AsFd) -> Result<(), WaitError> {
        self.ready(fd.as_fd(), PollFlags::POLLOUT, None).map(drop)
    }

    /// Like [`readable`](Self::readable), but returns `false` once `slice` has passed, so that the
    /// caller can report progress or try again.
    pub(crate) fn readable_within(
        &self,
        fd: impl AsFd,
        slice: Duration,
    ) -> Result<bool, WaitError> {
        self.ready(fd.as_fd(), PollFlags::POLLIN, Some(slice))
    }

    /// A ready descriptor wins over an ended process, and both win over the deadline: the last
    /// output of a dying VMM explains its death, and data that has arrived is not late.
    fn ready(
        &self,
        fd: BorrowedFd<'_>,
        interest: PollFlags,
        slice: Option<Duration>,
    ) -> Result<bool, WaitError> {
        let slice_end = slice.map(|slice| Instant::now() + slice);
        loop {
            let end = slice_end.map_or(self.deadline, |end| end.min(self.deadline));
            let timeout = TimeSpec::from(end.saturating_duration_since(Instant::now()));
            // Without a process the second entry is a placeholder that is not polled.
            let process = self.process.unwrap_or(fd);
            let mut fds = [
                PollFd::new(fd, interest),
                PollFd::new(process, PollFlags::POLLIN),
            ];
            let watched = if self.process.is_some() { 2 } else { 1 };
            match ppoll(&mut fds[..watched], Some(timeout), None) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(WaitError::Io(errno.into())),
                Ok(_) => {}
            }
            if fds[0].any().unwrap_or(true) {
                return Ok(true);
            }
            if watched == 2 && fds[1].any().unwrap_or(true) {
                return Err(WaitError::ProcessExited);
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Err(WaitError::Deadline);
            }
            if slice_end.is_some_and(|end| now >= end) {
                return Ok(false);
            }
        }
    }
}

/// Why a wait ended before its descriptor was ready.
#[derive(Debug)]
pub(crate) enum WaitError {
    /// The deadline passed.
    Deadline,
    /// The watched process has ended.
    ProcessExited,
    /// The wait itself failed.
    Io(io::Error),
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => f.write_str("the deadline passed"),
            Self::ProcessExited => f.write_str("the process has ended"),
            Self::Io(_) => f.write_str("cannot wait for a descriptor"),
        }
    }
}

impl std::error::Error for WaitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            Self::Deadline | Self::ProcessExited => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(5)
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn data_that_is_there_is_not_late() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"x").unwrap();
        Watch::until(Instant::now()).readable(&theirs).unwrap();
    }

    #[test]
    fn the_deadline_ends_a_wait_for_nothing() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let result = Watch::until(soon()).readable(&theirs);
        assert!(matches!(result, Err(WaitError::Deadline)), "{result:?}");
    }

    #[test]
    fn a_slice_ends_before_the_deadline() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        assert!(
            !Watch::until(far())
                .readable_within(&theirs, Duration::from_millis(1))
                .unwrap()
        );
    }

    #[test]
    fn a_closed_peer_is_for_the_read_to_tell() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        Watch::until(far()).readable(&theirs).unwrap();
    }

    /// A socket whose peer is gone polls like the pidfd of an ended process.
    #[test]
    fn an_ended_process_ends_the_wait_but_not_before_its_last_words() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (process, ended) = UnixStream::pair().unwrap();
        drop(ended);
        let watch = Watch::with_process(far(), Some(process.as_fd()));
        assert!(matches!(
            watch.readable(&theirs),
            Err(WaitError::ProcessExited)
        ));
        ours.write_all(b"x").unwrap();
        watch.readable(&theirs).unwrap();
        watch.writable(&theirs).unwrap();
    }
}
