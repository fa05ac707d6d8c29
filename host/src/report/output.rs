//! Writing results to standard output and standard error: all bytes or an error, and never past a
//! deadline because of a slow reader.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::write;
use shared::message::Stream;

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::deadline::{WaitError, Watch};

/// A pipe that polls writable takes this many bytes without blocking (`PIPE_BUF`, pipe(7)).
const PIECE_LEN: usize = 4096;

/// Writes all of `bytes` to standard output or standard error, unbuffered.
///
/// With a `watch`, a slow reader cannot hold this program beyond the deadline (the error is
/// `TimedOut`). Other programs may share the descriptor, so it is not made non-blocking: we write
/// pieces that a writable pipe takes without blocking instead.
pub(crate) fn write_stream(
    stream: Stream,
    bytes: &[u8],
    watch: Option<&Watch<'_>>,
) -> io::Result<()> {
    match stream {
        Stream::Stdout => write_fd(io::stdout().as_fd(), bytes, watch),
        Stream::Stderr => write_fd(io::stderr().as_fd(), bytes, watch),
    }
}

fn write_fd(fd: BorrowedFd<'_>, bytes: &[u8], watch: Option<&Watch<'_>>) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = match watch {
            None => rest,
            Some(watch) => {
                watch.writable(fd).map_err(wait_error)?;
                &rest[..rest.len().min(PIECE_LEN)]
            }
        };
        match write(fd, piece) {
            Ok(len) => rest = &rest[len..],
            Err(Errno::EINTR) => {}
            // Another program made the shared descriptor non-blocking.
            Err(Errno::EAGAIN) if watch.is_none() => wait_writable(fd)?,
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    match poll(
        &mut [PollFd::new(fd, PollFlags::POLLOUT)],
        PollTimeout::NONE,
    ) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn wait_error(error: WaitError) -> io::Error {
    match error {
        WaitError::Deadline => io::ErrorKind::TimedOut.into(),
        WaitError::ProcessExited => io::ErrorKind::BrokenPipe.into(),
        WaitError::Io(source) => source,
    }
}

/// Prints one result, which may have several lines, on standard output. Escapes the control
/// characters that JSON leaves as they are, so that a guest's text cannot steer the terminal.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut line = String::with_capacity(text.len() + 1);
    for char in text.chars() {
        match char {
            // An escape that JSON understands; tables have escaped theirs before.
            '\u{7f}'..='\u{9f}' => line.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => line.push(char),
        }
    }
    line.push('\n');
    write_out(line.as_bytes())
}

/// Writes to standard output. [`std::io::Stdout`] takes a closed one for written to.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let written = write_stream(Stream::Stdout, bytes, None);
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    let exit = match &written {
        Err(error) if is_closed(error) => Exit::OutputClosed,
        _ => Exit::Internal,
    };
    written.or_fail(exit, || "cannot write to standard output".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn all_bytes_pass_a_pipe_that_is_smaller() {
        let (mut reader, writer) = io::pipe().unwrap();
        let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
        let received = thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).map(|_| received)
            });
            let watch = Watch::until(Instant::now() + Duration::from_secs(30));
            write_fd(writer.as_fd(), &bytes, Some(&watch)).unwrap();
            write_fd(writer.as_fd(), &bytes, None).unwrap();
            drop(writer);
            reading.join().unwrap().unwrap()
        });
        assert!(received == [bytes.clone(), bytes].concat());
    }

    #[test]
    fn a_stopped_reader_cannot_hold_us_beyond_the_deadline() {
        let (_reader, writer) = io::pipe().unwrap();
        let watch = Watch::until(Instant::now() + Duration::from_millis(20));
        let error = write_fd(writer.as_fd(), &[0; 300_000], Some(&watch)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_reader_that_is_gone_is_a_broken_pipe() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = write_fd(writer.as_fd(), b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
