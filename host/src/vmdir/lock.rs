//! Locks between processes, with a deadline on the wait for one.

use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;

use super::error::{VmDirError, file_error};
use crate::os::deadline::{WaitError, Watch};
use crate::os::dir::Dir;
use crate::os::lock::FileLock;

/// A lock on a file, held until it is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: FileLock,
}

impl Lock {
    /// Takes the lock; `None` if it is held. Makes the file if it is not there.
    pub(super) fn try_new(dir: &Dir, name: &str) -> Result<Option<Self>, VmDirError> {
        let locked = FileLock::try_new(lock_file(dir, name)?);
        let locked = locked.map_err(file_error("lock", &dir.path().join(name)))?;
        Ok(locked.map(|file| Self { file }))
    }

    /// Device and inode of the locked file, which may have been unlinked since.
    pub(super) fn inode(&self) -> io::Result<(libc::dev_t, libc::ino_t)> {
        let stat = fstat(self.file.file())?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Takes the lock as soon as it is free; `None` at `deadline`.
    pub(super) fn wait(
        dir: &Dir,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Self>, VmDirError> {
        if let Some(lock) = Self::try_new(dir, name)? {
            return Ok(Some(lock));
        }
        // flock(2) has no time limit, so a thread waits in it. At the deadline we abandon the
        // thread, which ends with this process.
        let path = dir.path().join(name);
        let file = lock_file(dir, name)?;
        let (sender, receiver) = mpsc::channel();
        let waiting = thread::Builder::new().spawn(move || {
            // At the deadline nothing receives any more.
            let _ = sender.send(FileLock::wait(file));
        });
        waiting.map_err(file_error("wait for", &path))?;
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(Ok(file)) => Ok(Some(Self { file })),
            Ok(Err(error)) => Err(file_error("lock", &path)(error)),
            Err(_) => Ok(None),
        }
    }
}

/// Waits until the lock is free, without keeping it, or until `watch` ends.
pub(super) fn await_free(dir: &Dir, name: &str, watch: &Watch<'_>) -> Result<(), VmDirError> {
    if let Some(_free) = Lock::try_new(dir, name)? {
        return Ok(());
    }
    let path = dir.path().join(name);
    let file = lock_file(dir, name)?;
    let (reader, writer) = io::pipe().map_err(file_error("wait for", &path))?;
    // The thread reports by closing its end of the pipe. As above, it may be abandoned.
    let waiting = thread::Builder::new().spawn(move || {
        drop(FileLock::wait(file));
        drop(writer);
    });
    waiting.map_err(file_error("wait for", &path))?;
    match watch.readable(&reader) {
        Ok(()) | Err(WaitError::Deadline | WaitError::ProcessExited) => Ok(()),
        Err(WaitError::Io(error)) => Err(file_error("wait for", &path)(error)),
    }
}

fn lock_file(dir: &Dir, name: &str) -> Result<File, VmDirError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
    dir.open_file(name, flags)
        .map_err(file_error("open", &dir.path().join(name)))
}
