//! The console: writing log lines without blocking and at the right moment, and checking whether
//! all have been transmitted.
//!
//! ```text
//! log line ─▶ Writer ─▶ held (bounded) ── release ─▶ non-blocking write ─▶ console
//! ```
//!
//! A UART whose snapshot is taken during a transmission is dead in every clone, and a console
//! without a reader fills up. So lines are held here, and the event loop releases them at the end
//! of a turn, unless a snapshot is about to be taken. Lines that the console does not accept stay
//! held; beyond the limit they are dropped and counted. The descriptor is a separate open file, so
//! that the children's stays blocking.

#![expect(
    unsafe_code,
    reason = "two terminal requests and dup2 onto the standard descriptors"
)]

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::check;

/// Most bytes of log lines that are held.
const HELD_LEN_MAX: usize = 16 * 1024;

/// Most bytes of one write: up to `PIPE_BUF`, so that `poll` tells whether they fit a pipe.
const WRITE_LEN_MAX: usize = 4096;

/// `TIOCSER_TEMT` of `linux/tty_flags.h`: the transmitter has sent its last bit.
const TIOCSER_TEMT: libc::c_int = 1;

thread_local! {
    static CONSOLE: RefCell<Console> = const { RefCell::new(Console::new()) };
}

#[derive(Debug)]
struct Console {
    file: Option<File>,
    held: Vec<u8>,
    lines_dropped: u64,
}

/// The logger's target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer;

/// Opens the console for [`release`]: a path, or the file of descriptor 2.
pub(crate) fn open(path: Option<&str>) -> io::Result<()> {
    let path = path.unwrap_or("/proc/self/fd/2");
    let opened = OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // A socket cannot be opened by path. Its copy may block, so `poll` comes before each write.
        Err(_) => File::from(io::stderr().as_fd().try_clone_to_owned()?),
    };
    CONSOLE.with_borrow_mut(|console| console.file = Some(file));
    Ok(())
}

/// Writes held lines, as far as the console accepts them now.
pub(crate) fn release() {
    CONSOLE.with(|console| {
        // Borrowed already: this module itself panicked.
        if let Ok(mut console) = console.try_borrow_mut() {
            console.release();
        }
    });
}

/// Whether the terminal's queue is empty, and the transmitter's FIFO too if the driver reports it.
/// Always true for other files. Never blocks, unlike `tcdrain`.
pub(crate) fn is_drained() -> bool {
    CONSOLE.with_borrow(|console| console.file.as_ref().is_none_or(is_file_drained))
}

/// Writes the last line of a dying process to descriptor 2, even if that blocks.
pub(crate) fn write_epitaph(text: &str) {
    release();
    let mut stderr = io::stderr().lock();
    // A failure could not be reported anywhere.
    let _ = writeln!(stderr, "{text}");
}

/// Opens `path` as standard input, output and error of this process.
pub(crate) fn become_stdio(path: &str) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)?;
    let source = file.as_raw_fd();
    for target in 0..3 {
        if source == target {
            // It stays open, close-on-exec. That is fine: each child gets three of its own.
            continue;
        }
        // SAFETY: integers only. By the convention of `std`, no value owns 0, 1 and 2.
        check(unsafe { libc::dup2(source, target) })?;
    }
    if source < 3 {
        std::mem::forget(file);
    }
    Ok(())
}

impl Console {
    const fn new() -> Self {
        Self {
            file: None,
            held: Vec::new(),
            lines_dropped: 0,
        }
    }

    fn hold(&mut self, line: &[u8]) {
        if self.held.len() + line.len() <= HELD_LEN_MAX {
            self.held.extend_from_slice(line);
        } else {
            self.lines_dropped += 1;
        }
    }

    fn release(&mut self) {
        let Some(file) = &self.file else { return };
        let mut written = 0;
        while written < self.held.len() && is_writable(file) {
            let end = self.held.len().min(written + WRITE_LEN_MAX);
            match (&*file).write(&self.held[written..end]) {
                Ok(len) => written += len,
                // Full, or closed. Nothing may wait for it.
                Err(_) => break,
            }
        }
        self.held.drain(..written);
        if self.held.is_empty() {
            self.held.shrink_to(WRITE_LEN_MAX);
            if self.lines_dropped > 0 {
                let text = format!("guest-agent: {} log lines dropped\n", self.lines_dropped);
                self.lines_dropped = 0;
                self.held.extend_from_slice(text.as_bytes());
            }
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CONSOLE.with_borrow_mut(|console| console.hold(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_writable(file: &File) -> bool {
    let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn is_file_drained(file: &File) -> bool {
    let mut queued: libc::c_int = 0;
    // SAFETY: the request writes one `int` through the pointer, which is to a live one.
    let asked = check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) });
    if asked.is_err() {
        return true;
    }
    let mut line_status: libc::c_int = 0;
    // SAFETY: as above.
    let asked =
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCSERGETLSR, &raw mut line_status) });
    let is_transmitting = asked.is_ok() && line_status & TIOCSER_TEMT == 0;
    queued == 0 && !is_transmitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_console_holds_lines_and_counts_dropped_ones() {
        let (mut read, write) = io::pipe().unwrap();
        let mut console = Console::new();
        console.file = Some(File::from(std::os::fd::OwnedFd::from(write)));
        let line = [b'x'; 1024];
        // A pipe holds at most 64 KiB and the console 16 KiB; the rest is dropped without blocking.
        for _ in 0..100 {
            console.hold(&line);
            console.release();
        }
        assert_eq!(console.held.len(), HELD_LEN_MAX);
        let dropped = console.lines_dropped;
        assert!((20..100).contains(&dropped), "{dropped}");
        let mut buffer = vec![0; 32 * 1024];
        read.read_exact(&mut buffer).unwrap();
        console.release();
        assert_eq!(console.lines_dropped, 0);
        assert!(
            console
                .held
                .ends_with(format!("{dropped} log lines dropped\n").as_bytes())
        );
    }
}
