//! Control groups (cgroup v2): making, killing and removing them.
//!
//! A cgroup is a folder. It is used through its descriptor, so that nothing that is mounted over
//! its path later gets in the way.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::file::{folders, try_lock};
use crate::cgroups::is_populated;

/// Bytes that are read of a file. `cgroup.procs` of a fork bomb is longer; see [`Cgroup::kill`].
const READ_LEN_MAX: u64 = 256 * 1024;

/// Cgroups below one that are looked at.
const CHILDREN_MAX: usize = 1024;

/// How deep cgroups below a session's are removed.
const DEPTH_MAX: usize = 16;

/// Rounds of signals to the processes of a cgroup, before Linux 5.14.
const KILL_ROUNDS_MAX: usize = 64;

/// Pause between two attempts to get a lock, ms.
const LOCK_PAUSE_MS: u8 = 10;

#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: File,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        let folder = options.open(path)?;
        Ok(Self { folder })
    }

    pub(crate) fn open_child(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.folder, name, flags, Mode::empty())?;
        Ok(Self {
            folder: File::from(fd),
        })
    }

    /// Makes a cgroup below this one, unless it is there.
    pub(crate) fn make_child(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.folder, name, Mode::from_bits_retain(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.open_child(name),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes a cgroup below this one, unless it is there, and locks it as long as it is open. Waits
    /// for the lock for at most this long: a child of a killed agent has a copy of it until it
    /// executes its program.
    pub(crate) fn lock_child(&self, name: &str, limit: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            let cgroup = self.make_child(name)?;
            // Another agent may have removed it between the two calls.
            if try_lock(&cgroup.folder)? && self.is_child(name, &cgroup)? {
                return Ok(cgroup);
            }
            if Instant::now() >= deadline {
                return Err(Errno::EWOULDBLOCK.into());
            }
            poll(&mut [], PollTimeout::from(LOCK_PAUSE_MS))?;
        }
    }

    fn is_child(&self, name: &str, cgroup: &Self) -> io::Result<bool> {
        match self.open_child(name) {
            Ok(found) => Ok(found.folder.metadata()?.ino() == cgroup.folder.metadata()?.ino()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// When a cgroup below it was last made or removed.
    pub(crate) fn changed_at(&self) -> io::Result<SystemTime> {
        self.folder.metadata()?.modified()
    }

    /// Names of the cgroups below it, at most [`CHILDREN_MAX`].
    pub(crate) fn children(&self) -> io::Result<Vec<String>> {
        // Opened again, so that it is read from its start.
        let names = folders(&self.open_child(".")?.folder)?;
        let names = names.into_iter().flat_map(|name| name.into_string());
        Ok(names.take(CHILDREN_MAX).collect())
    }

    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(&self.folder, file, flags, Mode::empty())?;
        let mut text = String::new();
        File::from(fd)
            .take(READ_LEN_MAX)
            .read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> io::Result<()> {
        File::from(self.writer(file)?).write_all(text.as_bytes())
    }

    /// Its file `cgroup.procs`: a process that writes `0` to it moves into the cgroup.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        self.writer("cgroup.procs")
    }

    fn writer(&self, file: &str) -> io::Result<OwnedFd> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        Ok(openat(&self.folder, file, flags, Mode::empty())?)
    }

    /// Whether it or one below it has a process.
    pub(crate) fn is_populated(&self) -> io::Result<bool> {
        Ok(is_populated(&self.read("cgroup.events")?))
    }

    /// Waits until no process is left in it or below it, but not longer than this. Returns whether
    /// none is.
    pub(crate) fn is_empty_within(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(&self.folder, "cgroup.events", flags, Mode::empty())?;
        loop {
            // Reading arms the next event (`kernfs_fop_poll` of the kernel's fs/kernfs/file.c).
            if !self.read_events(&fd)? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut events = [PollFd::new(fd.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut events, left) {
                Ok(0) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn read_events(&self, fd: &OwnedFd) -> io::Result<bool> {
        let mut buffer = [0; 256];
        let len = nix::sys::uio::pread(fd, &mut buffer, 0)?;
        Ok(is_populated(&String::from_utf8_lossy(&buffer[..len])))
    }

    /// Process ids in it and below it, as far as one read of each file gives them.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let mut found = Vec::new();
        self.collect_processes(&mut found, DEPTH_MAX)?;
        Ok(found)
    }

    fn collect_processes(&self, found: &mut Vec<i32>, depth: usize) -> io::Result<()> {
        let text = self.read("cgroup.procs")?;
        // Zero stands for a process of another pid namespace.
        let pids = text.lines().filter_map(|line| line.parse::<i32>().ok());
        found.extend(pids.filter(|pid| *pid > 0));
        if depth > 0 {
            for name in self.children()? {
                match self.open_child(&name) {
                    Ok(child) => child.collect_processes(found, depth - 1)?,
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                    Err(err) => return Err(err),
                }
            }
        }
        Ok(())
    }

    /// Kills every process in it and below it, also those that are being forked.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match self.write("cgroup.kill", "1") {
            // Linux before 5.14.
            Err(err) if err.kind() == io::ErrorKind::NotFound => self.kill_each(),
            result => result,
        }
    }

    /// As [`Self::kill`], by signals. The processes are stopped meanwhile, so that they fork no
    /// others.
    fn kill_each(&self) -> io::Result<()> {
        let frozen = self.write("cgroup.freeze", "1");
        for _ in 0..KILL_ROUNDS_MAX {
            let processes = self.processes()?;
            if processes.is_empty() {
                break;
            }
            for pid in processes {
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if frozen.is_ok() {
            self.write("cgroup.freeze", "0")?;
        }
        Ok(())
    }

    /// Removes a cgroup below this one, with all below it. Returns whether it is gone: one with
    /// processes cannot be removed.
    pub(crate) fn remove_child(&self, name: &str) -> io::Result<bool> {
        self.remove_below(name, DEPTH_MAX)
    }

    fn remove_below(&self, name: &str, depth: usize) -> io::Result<bool> {
        let remove = || match unlinkat(&self.folder, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
            Err(errno) => Err(io::Error::from(errno)),
        };
        if remove()? {
            return Ok(true);
        }
        // It has processes, or its command has made cgroups of its own.
        let child = match self.open_child(name) {
            Ok(child) => child,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(err) => return Err(err),
        };
        if depth == 0 || child.is_populated()? {
            return Ok(false);
        }
        for name in child.children()? {
            if !child.remove_below(&name, depth - 1)? {
                return Ok(false);
            }
        }
        remove()
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

#[cfg(test)]
mod tests;
