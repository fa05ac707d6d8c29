//! Named pipes: a command waits at one end, and the test holds the other. So a test decides when a
//! command goes on, and hears when it is gone, without any time in between.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::DEADLINE;

/// A named pipe. Dropped, it lets go whoever still waits at it.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
}

impl Gate {
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

    /// Waits until a command has the pipe open for reading, and holds the other end.
    #[track_caller]
    pub fn hold(&self) -> Held {
        let path = self.path.clone();
        let open = move || OpenOptions::new().write(true).open(path);
        Held(within_deadline("a reader of the gate", open).expect("an open gate"))
    }

    /// Waits until a command has the pipe open for reading, and lets it read the end.
    #[track_caller]
    pub fn open(&self) {
        drop(self.hold());
    }

    /// What commands write to the pipe until the last of them closes it.
    #[track_caller]
    pub fn hear(&self) -> String {
        let path = self.path.clone();
        let read = move || {
            let mut text = String::new();
            File::open(path)?.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        within_deadline("a writer to the gate", read).expect("what was written")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // On Linux, a pipe opened both ways needs no other side, and is one to all who wait.
        let mut both = OpenOptions::new();
        let both = both.read(true).write(true);
        let held = both.custom_flags(libc::O_NONBLOCK).open(&self.path);
        // Removed before it is let go of: who comes later finds nothing to wait for.
        drop(std::fs::remove_file(&self.path));
        drop(held);
    }
}

/// The writing end of a gate at which a command waits.
#[derive(Debug)]
pub struct Held(File);

impl Held {
    /// Waits until every reader is gone: an event, not a time.
    #[track_caller]
    pub fn wait_gone(&self) {
        // Asked for nothing, poll still reports that the other end was closed.
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let limit = PollTimeout::try_from(DEADLINE).expect("a short deadline");
        let count = poll(&mut fds, limit).expect("poll");
        assert_eq!(count, 1, "a command was left running");
    }

    /// Whether a reader is still there.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).expect("poll") == 0
    }
}

/// What `blocking` gives, unless that takes longer than [`DEADLINE`].
#[track_caller]
pub fn within_deadline<T: Send + 'static>(
    what: &str,
    blocking: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    // Left behind when time is up: the test has failed then.
    thread::spawn(move || drop(sender.send(blocking())));
    match receiver.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(error) => panic!("waited for {what} in vain: {error}"),
    }
}
