//! The directory of one VM: its locks, its files, and whether the VM runs.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;
use shared::json::{JsonError, Object};

use super::error::{VmDirError, file_error};
use super::lock::{self, Lock};
use super::state::{ExitRecord, State, WorkloadEnd};
use super::{LOCK, TRASH_PREFIX};
use crate::guest::address::Endpoint;
use crate::guest::requests::Guest;
use crate::os::deadline::Watch;
use crate::os::{files, json};
use crate::values::VmName;
use crate::vmm::{API_SOCKET, VSOCK_SOCKET, guest_address};

const SUPERVISOR_LOCK: &str = "supervisor.lock";
const OUTPUT_LOCK: &str = "output.lock";
const STATE: &str = "state.json";
/// The state that the supervisor publishes when the VM is in use.
const NEXT_STATE: &str = "state.next.json";
const EXIT: &str = "exit.json";
const WORKLOAD: &str = "workload.json";

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

/// The directory of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmDir {
    name: VmName,
    path: PathBuf,
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
            address: guest_address(self.state.vmm_kind, &self.dir.path, cid),
            port,
        }
    }

    /// Its guest, asked until `deadline` or until the VMM ends.
    pub(crate) fn guest(&self, port: u32, deadline: Instant) -> Guest<'_> {
        Guest {
            endpoint: self.endpoint(port),
            watch: Watch::with_process(deadline, Some(self.process.as_fd())),
        }
    }
}

impl VmDir {
    /// Takes `path` on trust. Commands get a checked directory from [`StateDir`](super::StateDir).
    pub(crate) const fn new(name: VmName, path: PathBuf) -> Self {
        Self { name, path }
    }

    pub(crate) const fn name(&self) -> &VmName {
        &self.name
    }

    /// An absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Fails unless it is a private directory. A link would lead out of the state directory.
    pub(super) fn check(&self) -> Result<(), VmDirError> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.no_such_vm()),
            found => found.map_err(file_error("look at", &self.path))?,
        };
        if !metadata.is_dir() {
            let path = self.path.clone();
            return Err(VmDirError::NotADirectory { path });
        }
        check_private(&self.path, &metadata)
    }

    fn no_such_vm(&self) -> VmDirError {
        VmDirError::NoSuchVm {
            name: self.name.clone(),
            state_dir: self.path.parent().unwrap_or(&self.path).to_owned(),
        }
    }

    /// Takes the lock that a command holds while it changes the VM.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<Lock, VmDirError> {
        let lock = Lock::wait(&self.file(LOCK), deadline)?;
        let lock = lock.ok_or_else(|| VmDirError::Busy {
            name: self.name.clone(),
        })?;
        if self.is_locked_by(&lock) {
            return Ok(lock);
        }
        Err(self.no_such_vm())
    }

    /// Whether `lock` is this directory's. Its previous holder may have removed the directory, and
    /// a new VM may have taken the name.
    pub(crate) fn is_locked_by(&self, lock: &Lock) -> bool {
        let found = fs::metadata(self.file(LOCK)).map(|found| (found.dev(), found.ino()));
        matches!((found, lock.inode()), (Ok(found), Ok(held)) if found == held)
    }

    /// Whether a command is changing the VM.
    pub(crate) fn is_locked(&self) -> Result<bool, VmDirError> {
        Ok(Lock::try_new(&self.file(LOCK))?.is_none())
    }

    /// Waits until no command changes the VM, or `watch` ends.
    pub(crate) fn await_unlocked(&self, watch: &Watch<'_>) -> Result<(), VmDirError> {
        lock::await_free(&self.file(LOCK), watch)
    }

    /// Takes the lock that the supervisor holds while it runs; `None` at `deadline`.
    pub(crate) fn supervisor_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.file(SUPERVISOR_LOCK), deadline)
    }

    /// Takes the lock of the process that logs the workload's output; `None` at `deadline`.
    pub(crate) fn output_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.file(OUTPUT_LOCK), deadline)
    }

    pub(crate) fn read_state(&self) -> Result<State, VmDirError> {
        Ok(json::read(&self.file(STATE), State::from_object)?)
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
        let path = self.file(NEXT_STATE);
        fs::rename(&path, self.file(STATE)).map_err(file_error("publish", &path))
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
        Ok(json::read_if_exists(&self.file(name), parse)?)
    }

    /// Replaces one of its JSON files by rename: a reader finds the old file or the new one.
    /// Nothing is synced to disk, because no VM survives a crash of the machine.
    pub(crate) fn replace(&self, name: &str, value: &Value) -> Result<(), VmDirError> {
        let temporary = self.file(&format!("{name}.tmp"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = files::open_regular(&temporary, &mut options)
            .and_then(|mut file| file.write_all(value.to_string().as_bytes()));
        written.map_err(file_error("write", &temporary))?;
        let path = self.file(name);
        fs::rename(&temporary, &path).map_err(file_error("replace", &path))
    }

    /// Opens one of its logs to append to it.
    pub(crate) fn append_to(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        files::open_regular(&self.file(name), &mut options)
    }

    /// Whether the VM runs, and its state if it has one.
    pub(crate) fn status(&self) -> Result<(VmStatus, Option<State>), VmDirError> {
        self.check()?;
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
        let pidfd = opened.map_err(file_error("look for the VMM of", &self.path))?;
        let now = Watch::until(Instant::now());
        // The pidfd of a zombie opens, but polls readable.
        Ok(pidfd.filter(|pidfd| now.readable(pidfd).is_err()))
    }

    /// Unlinks the VMM's sockets, so that later commands get ENOENT instead of waiting for a dead
    /// VMM.
    pub(crate) fn remove_sockets(&self) {
        for name in [API_SOCKET, VSOCK_SOCKET] {
            let _ = fs::remove_file(self.file(name));
        }
    }

    /// Removes the directory. To other commands it disappears at once.
    pub(crate) fn remove(&self) -> Result<(), VmDirError> {
        let parent = self.path.parent().unwrap_or(&self.path);
        let pid = std::process::id();
        let trash = parent.join(format!("{TRASH_PREFIX}{pid}-{}", self.name));
        fs::rename(&self.path, &trash).map_err(file_error("remove", &self.path))?;
        fs::remove_dir_all(&trash).map_err(file_error("remove", &trash))
    }
}

/// A user with write access to the directory could replace its files and so choose which program
/// the supervisor runs.
pub(super) fn check_private(path: &Path, metadata: &Metadata) -> Result<(), VmDirError> {
    let reason = if metadata.uid() != nix::unistd::geteuid().as_raw() {
        "it belongs to another user"
    } else if metadata.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    Err(VmDirError::NotPrivate {
        path: path.to_owned(),
        reason,
    })
}
