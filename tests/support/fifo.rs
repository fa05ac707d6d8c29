//! Named pipes with which a test controls a command: the command opens one end (`cat FIFO`) and
//! blocks, and the test holds the other. The test decides when the command continues, and poll(2)
//! reports the command's end, so that neither side has to wait for time to pass.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::{DEADLINE, within_deadline};

/// A named pipe. When it is dropped, commands that still wait for a writer read the end of file.
#[derive(Debug)]
pub struct Fifo {
    path: PathBuf,
}

impl Fifo {
    /// Makes the pipe.
    pub fn new(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO)
            .expect("a named pipe");
        Self { path }
    }

    /// Its path, for a command.
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a UTF-8 path")
    }

    /// Waits until a command has opened the pipe for reading, and holds the writing end.
    #[track_caller]
    pub fn hold(&self) -> Held {
        let path = self.path.clone();
        let open = move || OpenOptions::new().write(true).open(path);
        Held(within_deadline("a reader of the pipe", open).expect("an open pipe"))
    }

    /// Waits until a command has opened the pipe for reading, and has it read the end of file.
    #[track_caller]
    pub fn release(&self) {
        drop(self.hold());
    }

    /// Reads what commands write to the pipe until the last of them closes it.
    #[track_caller]
    pub fn read(&self) -> String {
        let path = self.path.clone();
        let read = move || {
            let mut text = String::new();
            File::open(path)?.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        within_deadline("a writer to the pipe", read).expect("what was written")
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // On Linux, opening a pipe for both ways does not block, and ends the waiting of others.
        let mut both = OpenOptions::new();
        let both = both.read(true).write(true);
        let held = both.custom_flags(libc::O_NONBLOCK).open(&self.path);
        // Removed first: a command that comes later fails instead of waiting for ever.
        drop(std::fs::remove_file(&self.path));
        drop(held);
    }
}

/// The writing end of a pipe that a command reads.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Waits until every reader is gone.
    #[track_caller]
    pub fn wait_gone(&self) {
        // With no event asked for, poll still reports that the other end was closed.
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let limit = PollTimeout::try_from(DEADLINE).expect("a short deadline");
        let count = poll(&mut fds, limit).expect("poll");
        assert_eq!(count, 1, "a command was left running");
    }

    /// Whether a command still has the pipe open for reading.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).expect("poll") == 0
    }
}
