//! The directory of one VM: its locks, its files, and whether the VM runs.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::OFlag;
use serde_json::Value;
use shared::json::{JsonError, Object};

use super::TRASH_PREFIX;
use super::error::{VmDirError, file_error};
use super::lock::{self, Lock};
use super::names::{
    self, EXIT, LOCK, NEXT_STATE, OUTPUT_LOCK, STATE, SUPERVISOR_LOCK, TMP_SUFFIX, WORKLOAD,
};
use super::state::{ExitRecord, State, WorkloadEnd};
use crate::guest::address::Endpoint;
use crate::guest::requests::Guest;
use crate::os::deadline::Watch;
use crate::os::dir::Dir;
use crate::os::json;
use crate::os::mark::{self, RemoveError};
use crate::os::trust::{Owner, judge};
use crate::values::VmName;
use crate::vmm::{API_SOCKET, VSOCK_SOCKET, guest_address};

/// Whether a VM runs, according to its files and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmStatus {
    /// A command is creating it.
    Starting,
    Running,
    /// Its VMM ended, and the supervisor recorded how.
    Exited,
    /// Its VMM is gone, and its end was not recorded.
    Dead,
}

/// The directory of one VM. It is open, so another directory that takes its name later is not
/// mistaken for it.
#[derive(Debug, Clone)]
pub(crate) struct VmDir {
    name: VmName,
    /// The state directory.
    parent: Dir,
    dir: Dir,
}

/// A VM whose VMM was running when it was looked up.
#[derive(Debug)]
pub(crate) struct RunningVm {
    pub(crate) dir: VmDir,
    pub(crate) state: State,
    /// The VMM's pidfd.
    pub(crate) process: OwnedFd,
}

impl RunningVm {
    pub(crate) fn endpoint(&self, port: u32) -> Endpoint {
        let cid = self.state.machine.guest_cid;
        Endpoint {
            address: guest_address(self.state.vmm_kind, self.dir.path(), cid),
            port,
        }
    }

    /// Its guest, asked until `deadline` or until the VMM ends.
    pub(crate) fn guest(&self, port: u32, deadline: Instant) -> Guest<'_> {
        Guest {
            endpoint: self.endpoint(port),
            watch: Watch::with_process(deadline, Some(self.process.as_fd())),
            is_awaited: true,
        }
    }
}

impl VmDir {
    /// Opens the directory `name` of a VM in the state directory `parent`. Fails unless it is a
    /// private directory that host-tool has made: a link would lead out of the state directory.
    pub(super) fn open_in(parent: &Dir, name: VmName) -> Result<Self, VmDirError> {
        let path = parent.path().join(name.as_str());
        let dir = match parent.open_dir(name.as_str()) {
            Ok(dir) => dir,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => no_such_vm(parent, &name),
                    io::ErrorKind::NotADirectory => VmDirError::NotADirectory { path },
                    _ => file_error("open", &path)(error),
                });
            }
        };
        let stat = dir.stat().map_err(file_error("look at", &path))?;
        judge(&stat, Owner::Caller).map_err(|fault| VmDirError::not_private(&path, fault))?;
        match mark::is_marked(&dir) {
            Ok(true) => Ok(Self::new(parent, name, dir)),
            Ok(false) => Err(VmDirError::NotMarked { path }),
            Err(error) => Err(file_error("look at the mark of", &path)(error)),
        }
    }

    /// Takes a directory on trust.
    pub(super) fn new(parent: &Dir, name: VmName, dir: Dir) -> Self {
        Self {
            parent: parent.clone(),
            name,
            dir,
        }
    }

    /// Opens the VM directory at `path`, which a command of this user gives to the supervisor.
    pub(crate) fn open(path: &Path) -> Result<Self, VmDirError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.parse().ok()).ok_or_else(|| {
            file_error("use", path)(io::Error::other("its name is not a VM name"))
        })?;
        let parent = path.parent().unwrap_or(path);
        let parent = Dir::open(parent).map_err(file_error("open", parent))?;
        Self::open_in(&parent, name)
    }

    /// A directory as a VM's, without a mark.
    #[cfg(test)]
    pub(crate) fn of_test(path: &Path) -> Self {
        let dir = Dir::open(path).expect("a directory");
        Self::new(&dir.clone(), "a".parse().expect("a name"), dir)
    }

    pub(crate) const fn name(&self) -> &VmName {
        &self.name
    }

    /// An absolute path.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it, for messages and for programs that take a path.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Opens a regular file in it.
    pub(crate) fn open_file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        self.dir.open_file(name, flags)
    }

    /// The length of a file in it, in bytes.
    pub(crate) fn file_len(&self, name: &str) -> io::Result<u64> {
        let stat = self.dir.stat_of(name)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Renames a file in it, in the place of one that has the new name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }

    /// Removes a file in it.
    pub(crate) fn unlink(&self, name: &str) -> io::Result<()> {
        self.dir.unlink(name)
    }

    /// Takes the lock that a command holds while it changes the VM.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<Lock, VmDirError> {
        let lock = match Lock::wait(&self.dir, LOCK, deadline) {
            // Its previous holder has removed the directory.
            Err(VmDirError::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !self.is_current() =>
            {
                return Err(no_such_vm(&self.parent, &self.name));
            }
            lock => lock?,
        };
        let lock = lock.ok_or_else(|| VmDirError::Busy {
            name: self.name.clone(),
        })?;
        if self.is_locked_by(&lock) {
            return Ok(lock);
        }
        Err(no_such_vm(&self.parent, &self.name))
    }

    /// The same without waiting; `None` if it is held.
    pub(super) fn try_lock(&self) -> Result<Option<Lock>, VmDirError> {
        Lock::try_new(&self.dir, LOCK)
    }

    /// Whether the name still stands for this directory.
    fn is_current(&self) -> bool {
        self.parent.has(self.name.as_str(), &self.dir)
    }

    /// Whether `lock` is this directory's. Its previous holder may have removed the directory, and
    /// a new VM may have taken the name.
    pub(crate) fn is_locked_by(&self, lock: &Lock) -> bool {
        let found = self.dir.stat_of(LOCK);
        let found = found.map(|found| (found.st_dev, found.st_ino));
        let is_its = matches!((found, lock.inode()), (Ok(found), Ok(held)) if found == held);
        is_its && self.is_current()
    }

    /// Whether a command is changing the VM.
    pub(crate) fn is_locked(&self) -> Result<bool, VmDirError> {
        Ok(self.try_lock()?.is_none())
    }

    /// Waits until no command changes the VM, or `watch` ends.
    pub(crate) fn await_unlocked(&self, watch: &Watch<'_>) -> Result<(), VmDirError> {
        lock::await_free(&self.dir, LOCK, watch)
    }

    /// Takes the lock that the supervisor holds while it runs; `None` at `deadline`.
    pub(crate) fn supervisor_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.dir, SUPERVISOR_LOCK, deadline)
    }

    /// Takes the lock of the process that logs the workload's output; `None` at `deadline`.
    pub(crate) fn output_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.dir, OUTPUT_LOCK, deadline)
    }

    pub(crate) fn read_state(&self) -> Result<State, VmDirError> {
        self.read_required(STATE, State::from_object)
    }

    /// `None` until the command that creates the VM has recorded its VMM.
    pub(super) fn find_state(&self) -> Result<Option<State>, VmDirError> {
        self.read(STATE, State::from_object)
    }

    /// Replaces what is known about the VM. Only for holders of the lock.
    pub(crate) fn write_state(&self, state: &State) -> Result<(), VmDirError> {
        self.replace(STATE, &state.to_value())
    }

    /// Writes a state that takes effect with [`publish_state`](Self::publish_state).
    pub(crate) fn write_next_state(&self, state: &State) -> Result<(), VmDirError> {
        self.replace(NEXT_STATE, &state.to_value())
    }

    /// Puts the next state in the place of the current one. Only for the supervisor.
    pub(crate) fn publish_state(&self) -> Result<(), VmDirError> {
        let renamed = self.rename(NEXT_STATE, STATE);
        renamed.map_err(file_error("publish", &self.file(NEXT_STATE)))
    }

    /// How the VMM ended; `None` until the supervisor has recorded it.
    pub(crate) fn read_exit(&self) -> Result<Option<ExitRecord>, VmDirError> {
        self.read(EXIT, ExitRecord::from_object)
    }

    /// Records how the VMM ended. Only for the supervisor.
    pub(crate) fn write_exit(&self, exit: &ExitRecord) -> Result<(), VmDirError> {
        self.replace(EXIT, &exit.to_value())
    }

    /// How the workload ended; `None` until the holder of the output's lock has recorded it.
    pub(crate) fn read_workload_end(&self) -> Result<Option<WorkloadEnd>, VmDirError> {
        self.read(WORKLOAD, WorkloadEnd::from_object)
    }

    /// Records how the workload ended. Only for the holder of the output's lock.
    pub(crate) fn write_workload_end(&self, end: &WorkloadEnd) -> Result<(), VmDirError> {
        self.replace(WORKLOAD, &end.to_value())
    }

    /// Reads one of its JSON files; `None` if it does not exist.
    pub(crate) fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&Object) -> Result<T, JsonError>,
    ) -> Result<Option<T>, VmDirError> {
        match self.read_required(name, parse) {
            Err(VmDirError::Json(error)) if error.is_not_found() => Ok(None),
            result => result.map(Some),
        }
    }

    /// Reads one of its JSON files, which must exist.
    pub(crate) fn read_required<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&Object) -> Result<T, JsonError>,
    ) -> Result<T, VmDirError> {
        let opened = self.open_file(name, OFlag::O_RDONLY);
        Ok(json::read(opened, &self.file(name), parse)?)
    }

    /// Replaces one of its JSON files by rename: a reader finds the old file or the new one.
    /// Nothing is synced to disk, because no VM survives a crash of the machine.
    pub(crate) fn replace(&self, name: &str, value: &Value) -> Result<(), VmDirError> {
        let temporary = format!("{name}{TMP_SUFFIX}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let written = self
            .open_file(&temporary, flags)
            .and_then(|mut file| file.write_all(value.to_string().as_bytes()));
        written.map_err(file_error("write", &self.file(&temporary)))?;
        let renamed = self.rename(&temporary, name);
        renamed.map_err(file_error("replace", &self.file(name)))
    }

    /// Opens one of its logs to append to it.
    pub(crate) fn append_to(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
        self.open_file(name, flags)
    }

    /// Whether the VM runs, and its state if it has one.
    pub(crate) fn status(&self) -> Result<(VmStatus, Option<State>), VmDirError> {
        let Some(state) = self.find_state()? else {
            // Locked and without state.json: another command is still creating this VM.
            let status = if self.is_locked()? {
                VmStatus::Starting
            } else {
                VmStatus::Dead
            };
            return Ok((status, None));
        };
        let status = if self.read_exit()?.is_some() {
            VmStatus::Exited
        } else if self.vmm_process(&state)?.is_some() {
            VmStatus::Running
        } else {
            VmStatus::Dead
        };
        Ok((status, Some(state)))
    }

    /// Fails unless the VM's VMM runs.
    pub(crate) fn running(self) -> Result<RunningVm, VmDirError> {
        if self.status()?.0 == VmStatus::Starting {
            return Err(VmDirError::Busy { name: self.name });
        }
        self.find_running()
    }

    /// The same for the holder of the VM's lock: no other command can be starting the VM.
    pub(crate) fn running_under(self, _lock: &Lock) -> Result<RunningVm, VmDirError> {
        self.find_running()
    }

    fn find_running(self) -> Result<RunningVm, VmDirError> {
        let how = match self.find_state()? {
            Some(state) => match self.vmm_process(&state)? {
                Some(process) => {
                    return Ok(RunningVm {
                        dir: self,
                        state,
                        process,
                    });
                }
                None => match self.read_exit()? {
                    Some(exit) => exit.to_string(),
                    None => "its end was not recorded".to_owned(),
                },
            },
            None => "its start was interrupted".to_owned(),
        };
        let name = self.name;
        Err(VmDirError::NotRunning { name, how })
    }

    /// The VMM's pidfd, unless it has ended.
    fn vmm_process(&self, state: &State) -> Result<Option<OwnedFd>, VmDirError> {
        let opened = state.process.open();
        let pidfd = opened.map_err(file_error("look for the VMM of", self.path()))?;
        let now = Watch::until(Instant::now());
        // The pidfd of a zombie opens, but polls readable.
        Ok(pidfd.filter(|pidfd| now.readable(pidfd).is_err()))
    }

    /// Unlinks the VMM's sockets, so that later commands get ENOENT instead of waiting for a dead
    /// VMM.
    pub(crate) fn remove_sockets(&self) {
        for name in [API_SOCKET, VSOCK_SOCKET] {
            let _ = self.unlink(name);
        }
    }

    /// Removes the directory. To other commands it disappears at once. A directory without the
    /// mark, or with a file in it that is not a VM's, stays as it is.
    pub(crate) fn remove(&self) -> Result<(), VmDirError> {
        let failed = |error| self.not_removed(error);
        mark::check(&self.dir, names::is_known).map_err(failed)?;
        let path = self.path();
        if !self.is_current() {
            return Err(file_error("remove", path)(io::ErrorKind::NotFound.into()));
        }
        let trash = format!("{TRASH_PREFIX}{}-{}", std::process::id(), self.name);
        let renamed = self.parent.rename_new(self.name.as_str(), &trash);
        renamed.map_err(file_error("remove", path))?;
        mark::remove(&self.parent, &trash, &self.dir, names::is_known).map_err(failed)
    }

    fn not_removed(&self, error: RemoveError) -> VmDirError {
        let path = self.path();
        match error {
            RemoveError::NotMarked => VmDirError::NotMarked {
                path: path.to_owned(),
            },
            RemoveError::Foreign { name } => VmDirError::Foreign {
                path: path.to_owned(),
                name,
            },
            RemoveError::Io(source) => file_error("remove", path)(source),
        }
    }
}

fn no_such_vm(parent: &Dir, name: &VmName) -> VmDirError {
    VmDirError::NoSuchVm {
        name: name.clone(),
        state_dir: parent.path().to_owned(),
    }
}
