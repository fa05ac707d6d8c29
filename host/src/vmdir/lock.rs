//! Locks between processes, with a deadline on the wait for one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::{VmDirError, file_error};
use crate::os::deadline::{WaitError, Watch};
use crate::os::files;

/// An exclusive flock(2), held until it is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock; `None` if it is held.
    pub(super) fn try_new(path: &Path) -> Result<Option<Self>, VmDirError> {
        match Flock::lock(lock_file(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { file })),
            Err((_, Errno::EAGAIN)) => Ok(None),
            Err((_, errno)) => Err(file_error("lock", path)(errno.into())),
        }
    }

    /// Device and inode of the locked file, which may have been unlinked since.
    pub(super) fn inode(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|found| (found.dev(), found.ino()))
    }

    /// Takes the lock as soon as it is free; `None` at `deadline`.
    pub(super) fn wait(path: &Path, deadline: Instant) -> Result<Option<Self>, VmDirError> {
        if let Some(lock) = Self::try_new(path)? {
            return Ok(Some(lock));
        }
        // flock(2) has no time limit, so a thread waits in it. At the deadline we abandon the
        // thread, which ends with this process.
        let file = lock_file(path)?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = sender.send(Flock::lock(file, FlockArg::LockExclusive));
        });
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(Ok(file)) => Ok(Some(Self { file })),
            Ok(Err((_, errno))) => Err(file_error("lock", path)(errno.into())),
            Err(_) => Ok(None),
        }
    }
}

/// Waits until the lock is free, without keeping it, or until `watch` ends.
pub(super) fn await_free(path: &Path, watch: &Watch<'_>) -> Result<(), VmDirError> {
    if let Some(_free) = Lock::try_new(path)? {
        return Ok(());
    }
    let file = lock_file(path)?;
    let (reader, writer) = io::pipe().map_err(file_error("wait for", path))?;
    // The thread reports by closing its end of the pipe. As above, it may be abandoned.
    std::thread::spawn(move || {
        drop(Flock::lock(file, FlockArg::LockExclusive));
        drop(writer);
    });
    match watch.readable(&reader) {
        Ok(()) | Err(WaitError::Deadline | WaitError::ProcessExited) => Ok(()),
        Err(WaitError::Io(error)) => Err(file_error("wait for", path)(error)),
    }
}

fn lock_file(path: &Path) -> Result<File, VmDirError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    files::open_regular(path, &mut options).map_err(file_error("open", path))
}
