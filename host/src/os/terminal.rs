//! The user's terminal: raw while a command in a guest uses it, restored on every way out.
//!
//! ```text
//!            attached                 connection lost
//! Original ───────────▶ Raw ◀──────────────────────────▶ RawWithSignals
//!     ▲                  │           attached again            │
//!     └──────────────────┴────── the end, a stop, a panic ─────┘
//! ```
//!
//! In raw mode every key goes to the guest. While the guest cannot be reached, Ctrl-C and Ctrl-\
//! raise signals again, so that the user can end a client that waits for it.
//!
//! The terminal belongs to the foreground process group. A client that enters raw mode in the
//! background is stopped (SIGTTOU) until it is in the foreground, as users expect. A client that
//! leaves raw mode in the background does nothing: its shell has set the terminal for itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};
use shared::message::TtySize;

use crate::sys;

/// The size to assume where no terminal tells one.
pub(crate) const SIZE_DEFAULT: TtySize = TtySize { rows: 24, cols: 80 };

/// How the terminal is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it was found.
    Original,
    /// Every key is a byte.
    Raw,
    /// Every key is a byte, except those that raise signals.
    RawWithSignals,
}

/// A terminal whose settings are restored when this is dropped.
#[derive(Debug)]
pub(crate) struct Terminal {
    fd: OwnedFd,
    original: Termios,
    mode: Mode,
}

/// The terminal to restore at a panic, which ends the program without running destructors.
static AT_PANIC: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

impl Terminal {
    /// The terminal behind `fd`; `None` if it is not a terminal.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !isatty(fd).unwrap_or(false) {
            return Ok(None);
        }
        let fd = fd.try_clone_to_owned()?;
        let original = tcgetattr(&fd)?;
        restore_at_panic(&fd, &original)?;
        Ok(Some(Self {
            fd,
            original,
            mode: Mode::Original,
        }))
    }

    /// Its size now.
    pub(crate) fn size(&self) -> Option<TtySize> {
        sys::terminal::size(self.fd.as_fd())
    }

    pub(crate) fn set(&mut self, mode: Mode) -> io::Result<()> {
        if mode == self.mode {
            return Ok(());
        }
        if mode == Mode::Original {
            self.mode = mode;
            return restore(self.fd.as_fd(), &self.original);
        }
        let mut wanted = self.original.clone();
        cfmakeraw(&mut wanted);
        wanted
            .local_flags
            .set(LocalFlags::ISIG, mode == Mode::RawWithSignals);
        // TCSADRAIN would wait for the output, for ever if the user has stopped it with Ctrl-S.
        tcsetattr(&self.fd, SetArg::TCSANOW, &wanted)?;
        self.mode = mode;
        Ok(())
    }

    /// Restores the terminal and stops this process, as Ctrl-Z does. Once the shell continues it,
    /// sets the mode again and returns.
    pub(crate) fn stop_job(&mut self) -> io::Result<()> {
        let mode = self.mode;
        self.set(Mode::Original)?;
        raise(Signal::SIGSTOP)?;
        self.set(mode)
    }

    /// Sets the mode again, in case another program has changed the terminal since.
    pub(crate) fn set_again(&mut self) -> io::Result<()> {
        let mode = std::mem::replace(&mut self.mode, Mode::Original);
        self.set(mode)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = self.set(Mode::Original) {
            log::warn!("cannot restore the terminal: {error}");
        }
        if let Ok(mut at_panic) = AT_PANIC.lock() {
            *at_panic = None;
        }
    }
}

/// The size of the first terminal among `fds`.
pub(crate) fn size_of_any(fds: &[BorrowedFd<'_>]) -> Option<TtySize> {
    fds.iter().find_map(|fd| sys::terminal::size(*fd))
}

/// Restores a terminal, unless it belongs to another process group now.
fn restore(fd: BorrowedFd<'_>, original: &Termios) -> io::Result<()> {
    // A terminal that is not the controlling one has no foreground group: no shell has set it.
    let is_ours = tcgetpgrp(fd).map_or(true, |group| group == getpgrp());
    if !is_ours {
        return Ok(());
    }
    match tcsetattr(fd, SetArg::TCSANOW, original) {
        // A closed terminal has no settings.
        Ok(()) | Err(Errno::EIO) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn restore_at_panic(fd: &OwnedFd, original: &Termios) -> io::Result<()> {
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
            // The program ends here: a failure cannot be handled any more.
            let _ = restore(fd.as_fd(), original);
        }
        report(info);
    }));
    Ok(())
}
