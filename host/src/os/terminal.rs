//! The user's terminal while a command in a guest has it, and as it was before, on every way out.
//!
//! ```text
//!            attached                 connection lost
//! Original ───────────▶ Raw ◀──────────────────────────▶ RawWithSignals
//!     ▲                  │           attached again            │
//!     └──────────────────┴────── the end, a stop, a panic ─────┘
//! ```
//!
//! Raw means that every key is the guest's. While the guest cannot be reached, Ctrl-C and Ctrl-\
//! make signals again, so that the user is not locked up with a client that waits for it.
//!
//! The terminal belongs to the foreground process group. A client in the background that enters
//! raw mode is stopped (SIGTTOU) until it is in the foreground, which is what users expect; one
//! that leaves it there does nothing, since its shell has set the terminal for itself by then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::sync::Mutex;

use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};
use shared::message::TtySize;

use crate::sys;

/// The size of a terminal that nobody can be asked for.
pub const SIZE_DEFAULT: TtySize = TtySize { rows: 24, cols: 80 };

/// How the terminal is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it was found.
    Original,
    /// Every key is a byte.
    Raw,
    /// Every key but those that make signals is a byte.
    RawWithSignals,
}

/// A terminal that is put back when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    fd: OwnedFd,
    original: Termios,
    mode: Mode,
}

/// The terminal to be put back by a program that panics, where destructors do not run.
static AT_PANIC: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

impl Terminal {
    /// The terminal behind `fd`; `None` when there is none.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !isatty(fd).unwrap_or(false) {
            return Ok(None);
        }
        let fd = fd.try_clone_to_owned()?;
        let original = tcgetattr(&fd)?;
        put_back_at_panic(&fd, &original)?;
        Ok(Some(Self {
            fd,
            original,
            mode: Mode::Original,
        }))
    }

    /// Its size now.
    #[must_use]
    pub fn size(&self) -> Option<TtySize> {
        sys::terminal::size(self.fd.as_fd())
    }

    /// Sets it.
    pub fn set(&mut self, mode: Mode) -> io::Result<()> {
        if mode == self.mode {
            return Ok(());
        }
        if mode == Mode::Original {
            self.mode = mode;
            return put_back(self.fd.as_fd(), &self.original);
        }
        let mut wanted = self.original.clone();
        cfmakeraw(&mut wanted);
        wanted
            .local_flags
            .set(LocalFlags::ISIG, mode == Mode::RawWithSignals);
        // Output is not waited for: a terminal that is held would hold us.
        tcsetattr(&self.fd, SetArg::TCSANOW, &wanted)?;
        self.mode = mode;
        Ok(())
    }

    /// Stops this process as a job, with the terminal as it was, and returns once it goes on.
    pub fn stop_job(&mut self) -> io::Result<()> {
        let mode = self.mode;
        self.set(Mode::Original)?;
        raise(Signal::SIGSTOP)?;
        self.set(mode)
    }

    /// Sets the mode again that it should have, whatever somebody else has made of it since.
    pub fn set_again(&mut self) -> io::Result<()> {
        let mode = std::mem::replace(&mut self.mode, Mode::Original);
        self.set(mode)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = self.set(Mode::Original) {
            log::warn!("cannot put the terminal back: {error}");
        }
        if let Ok(mut at_panic) = AT_PANIC.lock() {
            *at_panic = None;
        }
    }
}

/// The size of the first terminal among `fds`.
#[must_use]
pub fn size_of_any(fds: &[BorrowedFd<'_>]) -> Option<TtySize> {
    fds.iter().find_map(|fd| sys::terminal::size(*fd))
}

/// Sets a terminal that is this process's to set.
fn put_back(fd: BorrowedFd<'_>, original: &Termios) -> io::Result<()> {
    // One that is not the controlling terminal has no foreground group, and nobody to take it away.
    let is_ours = tcgetpgrp(fd).map_or(true, |group| group == getpgrp());
    if is_ours {
        tcsetattr(fd, SetArg::TCSANOW, original)?;
    }
    Ok(())
}

fn put_back_at_panic(fd: &OwnedFd, original: &Termios) -> io::Result<()> {
    let fd = fd.try_clone()?;
    let Ok(mut at_panic) = AT_PANIC.lock() else {
        return Err(io::Error::other("a panic is under way"));
    };
    *at_panic = Some((fd, original.clone()));
    drop(at_panic);
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Ok(at_panic) = AT_PANIC.try_lock()
            && let Some((fd, original)) = &*at_panic
        {
            // Nothing is left to be done about a terminal that cannot be set.
            let _ = put_back(fd.as_fd(), original);
        }
        report(info);
    }));
    Ok(())
}
