//! A lock on an open file, which ends with its holder.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::FlockArg;

/// An exclusive flock(2), held until it is dropped or its process ends.
///
/// `nix::fcntl::Flock` panics in its drop when the unlock fails, as it can on NFS, FUSE and 9p. The
/// lock ends with the descriptor in any case.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the lock; `None` if it is held.
    pub(crate) fn try_new(file: File) -> io::Result<Option<Self>> {
        match flock(&file, FlockArg::LockExclusiveNonblock) {
            Ok(()) => Ok(Some(Self(file))),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the lock as soon as it is free. There is no time limit.
    pub(crate) fn wait(file: File) -> io::Result<Self> {
        flock(&file, FlockArg::LockExclusive)?;
        Ok(Self(file))
    }

    pub(crate) const fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // A child between its fork and its exec has a copy of the descriptor, which would hold the
        // lock a little longer. If the unlock fails, the lock ends when all copies are closed.
        let _ = flock(&self.0, FlockArg::Unlock);
    }
}

#[expect(
    deprecated,
    reason = "the type that nix has in its place panics when it is dropped"
)]
fn flock(file: &File, operation: FlockArg) -> Result<(), Errno> {
    loop {
        match nix::fcntl::flock(file.as_raw_fd(), operation) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use nix::fcntl::OFlag;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_lock_has_one_holder() {
        let temp = TempDir::new("lock");
        let path = temp.path().join("lock");
        let open = || {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(false);
            options.open(&path).unwrap()
        };
        let held = FileLock::try_new(open()).unwrap().unwrap();
        assert!(FileLock::try_new(open()).unwrap().is_none());
        drop(held);
        FileLock::wait(open()).unwrap();
    }

    /// A descriptor of a path alone can be neither locked nor unlocked: the kernel answers EBADF.
    #[test]
    fn a_failing_unlock_is_no_panic() {
        let temp = TempDir::new("lock");
        let fd = nix::fcntl::open(temp.path(), OFlag::O_PATH, nix::sys::stat::Mode::empty());
        let file = File::from(fd.unwrap());
        assert!(flock(&file, FlockArg::Unlock).is_err());
        drop(FileLock(file));
    }
}
