//! Both ends of a child's standard descriptors: pipes, or one terminal for all three.
//!
//! ```text
//!             pipes                              terminal
//! agent   stdin ──▶ 0 (or /dev/null)      stdin ─┐
//!         stdout ◀── 1                    stdout ┴ master ◀─▶ slave = 0, 1, 2
//!         stderr ◀── 2
//! ```
//!
//! Invariants:
//! - The agent's ends are non-blocking and the child's are not, as programs expect.
//! - The agent closes the child's ends as soon as the child has them: a stream ends only when no
//!   process holds its other end.
//! - The agent's two ends of a terminal are copies of one descriptor, so epoll keeps the
//!   registration of a closed one while the other is open. They must be deregistered before they
//!   are closed.

#![expect(unsafe_code, reason = "the calls of terminals are ioctls")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, fchown};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::message::TtySize;

use super::check;
use super::source::source_by_fd;

/// The multiplexer, which makes a new terminal on each open.
const TERMINALS_PATH: &str = "/dev/ptmx";

/// Capacity of a new pipe, in bytes (`pipe(7)`).
pub(crate) const PIPE_LEN: usize = 64 * 1024;

/// Capacity of a widened pipe, in bytes.
const WIDE_PIPE_LEN: libc::c_int = 256 * 1024;

/// The kind of a child's standard descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// Standard input is `/dev/null`, standard output and error are pipes.
    Output,
    /// Three pipes.
    InputAndOutput,
    /// A terminal of this size for all three.
    Terminal(TtySize),
}

/// The agent's end of a standard descriptor.
#[derive(Debug)]
pub(crate) struct StdioEnd {
    fd: OwnedFd,
    is_terminal: bool,
}

#[derive(Debug)]
pub(crate) struct AgentEnds {
    /// `None` if the child reads `/dev/null`.
    pub stdin: Option<StdioEnd>,
    pub stdout: StdioEnd,
    /// `None` for a terminal, where errors are output too.
    pub stderr: Option<StdioEnd>,
}

#[derive(Debug)]
pub(super) enum ChildEnds {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

pub(super) fn open(wiring: Wiring) -> io::Result<(ChildEnds, AgentEnds)> {
    match wiring {
        Wiring::Output => open_pipes(None),
        Wiring::InputAndOutput => {
            let (read, write) = pipe()?;
            open_pipes(Some((read, StdioEnd::new(write)?)))
        }
        Wiring::Terminal(size) => open_terminal(size),
    }
}

impl ChildEnds {
    /// The descriptors to become 0, 1 and 2; `null` is 0 if the child gets no input.
    pub(super) fn descriptors(&self, null: &File) -> [RawFd; 3] {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let stdin = stdin.as_ref().map_or_else(|| null.as_fd(), AsFd::as_fd);
                [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()]
            }
            Self::Terminal(slave) => [slave.as_raw_fd(); 3],
        }
    }

    /// Makes a user the owner, so that it may open them by path (`/dev/stdout`, `/dev/pts/0`). If
    /// that is not permitted, becoming the user is not either, and fails with a better message.
    pub(super) fn give_to(&self, uid: u32) {
        let give = |fd: &OwnedFd| {
            let _ = fchown(fd, Some(uid), None);
        };
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => stdin.iter().chain([stdout, stderr]).for_each(give),
            Self::Terminal(slave) => give(slave),
        }
    }
}

impl StdioEnd {
    /// An end of a pipe.
    fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            fd,
            is_terminal: false,
        })
    }

    /// Reads what is available. Zero is the end: no process holds the other end, which a terminal
    /// reports as EIO.
    pub(crate) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match nix::sys::uio::readv(&self.fd, slices) {
                Err(Errno::EIO) if self.is_terminal && self.is_hung_up() => return Ok(0),
                Err(Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Number of bytes that can be read now.
    pub(crate) fn available_len(&self) -> usize {
        let mut len: libc::c_int = 0;
        // SAFETY: the request writes one `int` through the pointer, which is to a live one.
        let result =
            check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::FIONREAD, &raw mut len) });
        let len = result.and_then(|_| usize::try_from(len).map_err(io::Error::other));
        // Pipes and terminals know the request. Were it to fail, more is read than was there, and
        // nothing is lost.
        len.unwrap_or(WIDE_PIPE_LEN as usize)
    }

    /// Writes as much as fits.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.fd, bytes)?)
    }

    /// Whether an error of [`Self::write`] means that no process holds the other end: EPIPE of a
    /// pipe, EIO of a terminal.
    pub(crate) fn is_gone(&self, err: &io::Error) -> bool {
        match err.raw_os_error() {
            Some(libc::EPIPE) => true,
            Some(libc::EIO) => self.is_terminal && self.is_hung_up(),
            _ => false,
        }
    }

    /// Gives a pipe more than its 64 KiB, so that both ends move more bytes per wake-up. Fails for
    /// some users and for terminals, which does not matter.
    pub(crate) fn widen(&self) {
        let _ = fcntl(&self.fd, FcntlArg::F_SETPIPE_SZ(WIDE_PIPE_LEN));
    }

    /// Whether no process holds the other end.
    pub(crate) fn is_hung_up(&self) -> bool {
        // Errors and hang-ups are reported without being requested.
        let mut descriptors = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Sets the terminal's size. Its foreground process group gets SIGWINCH if it changes.
    pub(crate) fn resize(&self, size: TtySize) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the request reads one `winsize` through the pointer, which is to a live one.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
        Ok(())
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

fn open_pipes(stdin: Option<(OwnedFd, StdioEnd)>) -> io::Result<(ChildEnds, AgentEnds)> {
    let (stdout_read, stdout_write) = pipe()?;
    let (stderr_read, stderr_write) = pipe()?;
    let (child_stdin, agent_stdin) = stdin.unzip();
    let child = ChildEnds::Pipes {
        stdin: child_stdin,
        stdout: stdout_write,
        stderr: stderr_write,
    };
    let agent = AgentEnds {
        stdin: agent_stdin,
        stdout: StdioEnd::new(stdout_read)?,
        stderr: Some(StdioEnd::new(stderr_read)?),
    };
    Ok((child, agent))
}

fn open_terminal(size: TtySize) -> io::Result<(ChildEnds, AgentEnds)> {
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TERMINALS_PATH)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the request reads one `int` through the pointer, which is to a live one.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // Not by its path, which could be missing, or another terminal with the same number.
    // SAFETY: the request takes an integer and no pointer.
    let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the call returned this descriptor just now and nothing else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let end = |fd| StdioEnd {
        fd,
        is_terminal: true,
    };
    let stdout = end(OwnedFd::from(master));
    stdout.resize(size)?;
    let agent = AgentEnds {
        stdin: Some(end(stdout.fd.try_clone()?)),
        stdout,
        stderr: None,
    };
    Ok((ChildEnds::Terminal(slave), agent))
}

impl AsFd for StdioEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

source_by_fd!(StdioEnd, fd);
