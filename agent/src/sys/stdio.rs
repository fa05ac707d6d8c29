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
//! - The child's ends are closed in the agent as soon as the child has them: the end of a stream
//!   shows only when nobody holds the other end.
//! - The two ends of a terminal are copies of one descriptor, so epoll keeps the registration of
//!   each beyond its close while the other lives. They must be deregistered before they are closed.

#![expect(unsafe_code, reason = "the calls of terminals are ioctls")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, fchown};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::message::TtySize;

use super::check;

/// The multiplexer that makes a terminal on each open.
const TERMINALS_PATH: &str = "/dev/ptmx";

/// What a pipe is made with, in bytes (`pipe(7)`).
pub(crate) const PIPE_LEN: usize = 64 * 1024;

/// What one holds through which much flows, in bytes.
const WIDE_PIPE_LEN: libc::c_int = 256 * 1024;

/// What a child's standard descriptors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// Standard input is `/dev/null`, output and errors are pipes.
    Output,
    /// Three pipes.
    InputAndOutput,
    /// A terminal of this size for all three.
    Terminal(TtySize),
}

/// The agent's end of one of them.
#[derive(Debug)]
pub(crate) struct StdioEnd(OwnedFd);

/// The agent's ends.
#[derive(Debug)]
pub(crate) struct AgentEnds {
    /// Takes what the child reads, unless that is `/dev/null`.
    pub stdin: Option<StdioEnd>,
    /// Gives what the child writes.
    pub stdout: StdioEnd,
    /// Gives what the child writes as errors; with a terminal that is output too.
    pub stderr: Option<StdioEnd>,
}

/// The child's ends.
#[derive(Debug)]
pub(super) enum ChildEnds {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    Terminal(OwnedFd),
}

/// Makes both ends.
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
    /// What is to become 0, 1 and 2, with `null` where nothing is read.
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

    /// Makes a user the owner, who may then open them by name (`/dev/stdout`, `/dev/pts/0`). Where
    /// that is not allowed, becoming that user is not either, and fails with a better message.
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
    fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self(fd))
    }

    /// Reads what is there. Zero is the end: no process holds the other end any more, which a
    /// terminal says as EIO.
    pub(crate) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match nix::sys::uio::readv(&self.0, slices) {
            Err(nix::errno::Errno::EIO) => Ok(0),
            result => Ok(result?),
        }
    }

    /// Writes as much as the other end takes. EPIPE, or EIO of a terminal: nobody reads any more.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, bytes)?)
    }

    /// Lets a pipe hold more than the 64 KiB it is made with, so that both ends do more each time
    /// that they are woken. Not every user may; a terminal has no such size.
    pub(crate) fn widen(&self) {
        let _ = fcntl(&self.0, FcntlArg::F_SETPIPE_SZ(WIDE_PIPE_LEN));
    }

    /// Whether no process holds the other end any more.
    pub(crate) fn is_hung_up(&self) -> bool {
        // Nothing is asked for: errors and hang-ups are always told.
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Sets the size of the terminal. Its foreground process group gets SIGWINCH if that is new.
    pub(crate) fn resize(&self, size: TtySize) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the request reads one `winsize` through the pointer, which is to a live one.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
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
    // Not by its path, which could be another terminal of that number, or not there.
    // SAFETY: the request takes an integer and no pointer.
    let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the call made this descriptor, and nobody else knows it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let stdout = StdioEnd(OwnedFd::from(master));
    stdout.resize(size)?;
    let agent = AgentEnds {
        stdin: Some(StdioEnd(stdout.0.try_clone()?)),
        stdout,
        stderr: None,
    };
    Ok((ChildEnds::Terminal(slave), agent))
}

impl AsFd for StdioEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Source for StdioEnd {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.0.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.0.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.0.as_raw_fd()).deregister(registry)
    }
}
