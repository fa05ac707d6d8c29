//! Standard output or standard error of this program, written without waiting for its reader.
//!
//! A slow reader must not keep the client from answering the guest, forwarding input, or handling
//! signals. The descriptor may be shared with other programs, such as the shell, so it must not be
//! made non-blocking. Instead:
//!
//! - A file takes everything at once. So does a descriptor that is not open for writing: it fails.
//! - A pipe or a terminal is opened again under `/proc/self/fd`, non-blocking. The new file
//!   description is this program's own, so the flag affects no other program.
//! - Where that is not possible (a socket, no `/proc`, another user's pipe), pieces of `PIECE_LEN`
//!   are written while it polls writable. A pipe takes such a piece without waiting. A terminal may
//!   take as long as it needs to show the piece.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;

/// What a pipe that polls writable takes without waiting (`PIPE_BUF`, pipe(7)).
const PIECE_LEN: usize = 4096;

/// How bytes are written to this kind of descriptor.
#[derive(Debug)]
enum Way {
    Whole,
    NonBlocking(OwnedFd),
    Pieces,
}

/// One output. It keeps what cannot be written yet; its user limits how much that is.
#[derive(Debug)]
pub(crate) struct Outlet<'a> {
    fd: BorrowedFd<'a>,
    way: Way,
    is_terminal: bool,
    /// A ring: with a reader that is always a little behind, it is never empty.
    pending: VecDeque<u8>,
}

impl<'a> Outlet<'a> {
    pub(crate) fn new(fd: BorrowedFd<'a>) -> Self {
        Self {
            fd,
            way: way(fd),
            is_terminal: fd.is_terminal(),
            pending: VecDeque::new(),
        }
    }

    /// Whether there are bytes that could not be written yet.
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether it was a terminal from the start: one that was closed no longer tells.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Takes all of `bytes`. Returns how many were written, earlier ones included.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_pending() {
            self.pending.extend(bytes);
            return self.flush();
        }
        let result = self.write(bytes);
        let len = result.as_ref().map_or(0, |len| *len);
        self.pending.extend(&bytes[len..]);
        result
    }

    /// Drops what could not be written, and returns how much that was.
    pub(crate) fn discard(&mut self) -> usize {
        let len = self.pending.len();
        self.pending.clear();
        len
    }

    /// Writes as much of the pending bytes as possible, and returns how many.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let mut len = 0;
        // The ring has two pieces. The second is next only after all of the first was written.
        while self.is_pending() {
            let (front, _) = self.pending.as_slices();
            let (front_len, written) = (front.len(), self.write(front)?);
            self.pending.drain(..written);
            len += written;
            if written < front_len {
                break;
            }
        }
        Ok(len)
    }

    /// Writes as much of `bytes` as the descriptor takes without waiting.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut len = 0;
        while len < bytes.len() {
            let rest = &bytes[len..];
            let result = match &self.way {
                Way::Whole => write(self.fd, rest),
                Way::NonBlocking(fd) => write(fd, rest),
                Way::Pieces if !polls_writable(self.fd)? => break,
                Way::Pieces => write(self.fd, &rest[..rest.len().min(PIECE_LEN)]),
            };
            match result {
                Ok(written) => len += written,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(len)
    }
}

impl AsFd for Outlet<'_> {
    /// What to wait for until more can be written.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::NonBlocking(fd) => fd.as_fd(),
            Way::Whole | Way::Pieces => self.fd,
        }
    }
}

fn way(fd: BorrowedFd<'_>) -> Way {
    let Ok(stat) = fstat(fd) else {
        return Way::Pieces;
    };
    // Opened anew for writing, it would take what this descriptor must refuse.
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    if flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDONLY) {
        return Way::Whole;
    }
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG | SFlag::S_IFBLK => Way::Whole,
        SFlag::S_IFIFO | SFlag::S_IFCHR => {
            open_anew(fd).map_or(Way::Pieces, |file| Way::NonBlocking(file.into()))
        }
        _ => Way::Pieces,
    }
}

fn open_anew(fd: BorrowedFd<'_>) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn polls_writable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Fills `outlet` until it takes no more, then empties the reader: every byte is there once.
    #[track_caller]
    fn check(outlet: &mut Outlet<'_>, mut reader: impl Read) {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
        let mut written = outlet.push(&bytes).unwrap();
        assert!(outlet.is_pending());
        let mut received = Vec::new();
        while received.len() < bytes.len() {
            let mut piece = vec![0; 65_536];
            let len = reader.read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..len]);
            written += outlet.flush().unwrap();
        }
        assert!(received == bytes && written == bytes.len() && !outlet.is_pending());
    }

    #[test]
    fn a_full_pipe_holds_nobody_and_keeps_its_mode() {
        let (reader, writer) = io::pipe().unwrap();
        let mut outlet = Outlet::new(writer.as_fd());
        assert!(
            matches!(outlet.way, Way::NonBlocking(_)),
            "{:?}",
            outlet.way
        );
        check(&mut outlet, reader);
        let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
        let (reader, writer) = io::pipe().unwrap();
        let mut outlet = Outlet::new(writer.as_fd());
        outlet.way = Way::Pieces;
        check(&mut outlet, reader);
    }

    /// A pipe's end for reading could be opened anew for writing.
    #[test]
    fn a_descriptor_that_is_not_open_for_writing_fails() {
        let (reader, _writer) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        for fd in [reader.as_fd(), null.as_fd()] {
            let error = Outlet::new(fd).push(b"x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }

    #[test]
    fn a_full_socket_holds_nobody() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let mut outlet = Outlet::new(writer.as_fd());
        assert!(matches!(outlet.way, Way::Pieces), "{:?}", outlet.way);
        check(&mut outlet, reader);
    }

    /// What was written makes room for what comes, also while something is always left.
    #[test]
    fn a_reader_that_is_always_behind_costs_no_more_than_that() {
        const PIECE_LEN: usize = 10_000;
        let (mut reader, writer) = io::pipe().unwrap();
        let mut outlet = Outlet::new(writer.as_fd());
        let bytes: Vec<u8> = (0..=255u8).cycle().take(PIECE_LEN * 2000).collect();
        let (mut received, mut written) = (Vec::new(), 0);
        let mut piece = vec![0; PIECE_LEN];
        let mut read = |received: &mut Vec<u8>| {
            let len = reader.read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..len]);
        };
        for (index, piece) in bytes.chunks(PIECE_LEN).enumerate() {
            written += outlet.push(piece).unwrap();
            // A pipe's fill and a half of it are on their way from then on.
            if index >= 10 {
                assert!(outlet.is_pending());
                read(&mut received);
            }
        }
        assert!(
            outlet.pending.capacity() <= 256 * 1024,
            "{} bytes for {} that are left",
            outlet.pending.capacity(),
            outlet.pending.len()
        );
        while received.len() < bytes.len() {
            written += outlet.flush().unwrap();
            read(&mut received);
        }
        assert!(received == bytes && written == bytes.len() && !outlet.is_pending());
    }

    #[test]
    fn a_reader_that_is_gone_is_a_broken_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        let mut outlet = Outlet::new(writer.as_fd());
        drop(reader);
        let error = outlet.push(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!((outlet.discard(), outlet.is_pending()), (1, false));
    }
}
