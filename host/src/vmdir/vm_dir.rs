//! The directory of one VM: its locks, its files, and whether it runs.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::error::{VmDirError, file_error};
use super::lock::{self, Lock};
use super::state::{ExitRecord, State, WorkloadEnd};
use super::{LOCK, TRASH_PREFIX};
use crate::guest::address::Endpoint;
use crate::os::deadline::Watch;
use crate::os::{files, json};
use crate::values::VmName;
use crate::vmm::{API_SOCKET, VSOCK_SOCKET, guest_address};

const SUPERVISOR_LOCK: &str = "supervisor.lock";
const OUTPUT_LOCK: &str = "output.lock";
const STATE: &str = "state.json";
const EXIT: &str = "exit.json";
const WORKLOAD: &str = "workload.json";

/// Whether a VM runs, as far as its files and processes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// A command is making it.
    Starting,
    /// Its VMM runs.
    Running,
    /// Its VMM ended and the supervisor wrote down how.
    Exited,
    /// Its VMM is gone and nobody wrote down how.
    Dead,
}

/// The directory of one VM.
#[derive(Debug, Clone)]
pub struct VmDir {
    name: VmName,
    path: PathBuf,
}

/// A VM whose VMM runs.
#[derive(Debug)]
pub struct RunningVm {
    /// Its directory.
    pub dir: VmDir,
    /// What is known about it.
    pub state: State,
    /// The VMM's pidfd.
    pub process: OwnedFd,
}

impl RunningVm {
    /// Where its agent listens.
    #[must_use]
    pub fn endpoint(&self, port: u32) -> Endpoint {
        let cid = self.state.machine.guest_cid;
        Endpoint {
            address: guest_address(self.state.vmm_kind, &self.dir.path, cid),
            port,
        }
    }
}

impl VmDir {
    /// The directory of the VM `name` at `path`, for the supervisor, which was told.
    #[must_use]
    pub const fn new(name: VmName, path: PathBuf) -> Self {
        Self { name, path }
    }

    /// The VM's name.
    #[must_use]
    pub const fn name(&self) -> &VmName {
        &self.name
    }

    /// Where it is; an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether it is there, and nobody else's. A link would lead out of the state directory.
    pub(super) fn check(&self) -> Result<(), VmDirError> {
        let metadata = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VmDirError::NoSuchVm {
                    name: self.name.clone(),
                    state_dir: self.path.parent().unwrap_or(&self.path).to_owned(),
                });
            }
            found => found.map_err(file_error("look at", &self.path))?,
        };
        if !metadata.is_dir() {
            let path = self.path.clone();
            return Err(VmDirError::NoDirectory { path });
        }
        check_private(&self.path, &metadata)
    }

    /// Takes the lock that every command holds which changes the VM.
    pub fn lock(&self, deadline: Instant) -> Result<Lock, VmDirError> {
        let path = self.file(LOCK);
        let lock = Lock::wait(&path, deadline)?;
        let lock = lock.ok_or_else(|| VmDirError::Busy {
            name: self.name.clone(),
        })?;
        if self.is_locked_by(&lock) {
            return Ok(lock);
        }
        Err(VmDirError::NoSuchVm {
            name: self.name.clone(),
            state_dir: self.path.parent().unwrap_or(&self.path).to_owned(),
        })
    }

    /// Whether this is the directory that the lock is of. Whoever had it may have taken that away,
    /// and a new VM may have the name.
    pub fn is_locked_by(&self, lock: &Lock) -> bool {
        let found = fs::metadata(self.file(LOCK)).map(|found| (found.dev(), found.ino()));
        matches!((found, lock.inode()), (Ok(found), Ok(held)) if found == held)
    }

    /// Whether a command changes the VM right now.
    pub fn is_locked(&self) -> Result<bool, VmDirError> {
        Ok(Lock::try_new(&self.file(LOCK))?.is_none())
    }

    /// Waits until no command changes the VM, or `watch` ends.
    pub fn await_unlocked(&self, watch: &Watch<'_>) -> Result<(), VmDirError> {
        lock::await_free(&self.file(LOCK), watch)
    }

    /// Takes the lock that the supervisor holds for its life; `None` when it is not free before
    /// `deadline`.
    pub fn supervisor_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.file(SUPERVISOR_LOCK), deadline)
    }

    /// Takes the lock of whoever writes the workload's output down; `None` when it is not free
    /// before `deadline`.
    pub fn output_lock(&self, deadline: Instant) -> Result<Option<Lock>, VmDirError> {
        Lock::wait(&self.file(OUTPUT_LOCK), deadline)
    }

    /// What is known about the VM.
    pub fn read_state(&self) -> Result<State, VmDirError> {
        Ok(json::read(&self.file(STATE), State::from_object)?)
    }

    /// Replaces what is known about the VM. Only for holders of the lock.
    pub fn write_state(&self, state: &State) -> Result<(), VmDirError> {
        self.replace(STATE, &state.to_value().to_string())
    }

    /// How the VMM ended, once it has.
    pub fn read_exit(&self) -> Result<Option<ExitRecord>, VmDirError> {
        let path = self.file(EXIT);
        Ok(json::read_if_exists(&path, ExitRecord::from_object)?)
    }

    /// Writes down how the VMM ended. Only for the supervisor.
    pub fn write_exit(&self, exit: &ExitRecord) -> Result<(), VmDirError> {
        self.replace(EXIT, &exit.to_value().to_string())
    }

    /// How the workload ended, once it has and somebody who wrote its output down has seen it.
    pub fn read_workload_end(&self) -> Result<Option<WorkloadEnd>, VmDirError> {
        let path = self.file(WORKLOAD);
        Ok(json::read_if_exists(&path, WorkloadEnd::from_object)?)
    }

    /// Writes down how the workload ended. Only for who holds the output's lock.
    pub fn write_workload_end(&self, end: &WorkloadEnd) -> Result<(), VmDirError> {
        self.replace(WORKLOAD, &end.to_value().to_string())
    }

    /// Replaces a file by rename: a reader finds the old one or the new one. What must survive a
    /// crash of the machine is not here: no VM does.
    pub fn replace(&self, name: &str, text: &str) -> Result<(), VmDirError> {
        let temporary = self.file(&format!("{name}.tmp"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = files::open_regular(&temporary, &mut options)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(file_error("write", &temporary))?;
        let path = self.file(name);
        fs::rename(&temporary, &path).map_err(file_error("replace", &path))
    }

    /// Whether the VM runs, and its state where there is one.
    pub fn life(&self) -> Result<(Life, Option<State>), VmDirError> {
        self.check()?;
        let state = match self.read_state() {
            Ok(state) => state,
            Err(VmDirError::Json(error)) if error.is_not_found() => {
                // Nobody who holds the lock and has no state yet is anything but a beginner.
                return Ok((
                    if self.is_locked()? {
                        Life::Starting
                    } else {
                        Life::Dead
                    },
                    None,
                ));
            }
            Err(error) => return Err(error),
        };
        let life = if self.read_exit()?.is_some() {
            Life::Exited
        } else if self.vmm_process(&state)?.is_some() {
            Life::Running
        } else {
            Life::Dead
        };
        Ok((life, Some(state)))
    }

    /// The VM, if its VMM runs.
    pub fn running(self) -> Result<RunningVm, VmDirError> {
        if self.life()?.0 == Life::Starting {
            return Err(VmDirError::Busy { name: self.name });
        }
        self.find_running()
    }

    /// The VM, if its VMM runs, for a holder of its lock: nobody else is starting it then.
    pub fn running_under(self, _lock: &Lock) -> Result<RunningVm, VmDirError> {
        self.find_running()
    }

    fn find_running(self) -> Result<RunningVm, VmDirError> {
        let how = match self.read_state() {
            Ok(state) => match self.vmm_process(&state)? {
                Some(process) => {
                    return Ok(RunningVm {
                        dir: self,
                        state,
                        process,
                    });
                }
                None => match self.read_exit()? {
                    Some(exit) => exit.to_string(),
                    None => "nobody saw how".to_owned(),
                },
            },
            Err(VmDirError::Json(error)) if error.is_not_found() => {
                "its start was cut short".to_owned()
            }
            Err(error) => return Err(error),
        };
        Err(VmDirError::NotRunning {
            name: self.name,
            how,
        })
    }

    /// The VMM's pidfd, unless it has ended.
    fn vmm_process(&self, state: &State) -> Result<Option<OwnedFd>, VmDirError> {
        let opened = state.process.open();
        let pidfd = opened.map_err(file_error("look for the VMM of", &self.path))?;
        let now = Watch::until(Instant::now());
        // A process that ended and was not waited for yet is as good as gone.
        Ok(pidfd.filter(|pidfd| now.readable(pidfd).is_err()))
    }

    /// Unlinks the VMM's sockets, so that nobody waits at a door behind which nobody lives.
    pub fn remove_sockets(&self) {
        for name in [API_SOCKET, VSOCK_SOCKET] {
            let _ = fs::remove_file(self.file(name));
        }
    }

    /// Takes the directory away, in one step for everyone who looks.
    pub fn remove(&self) -> Result<(), VmDirError> {
        let parent = self.path.parent().unwrap_or(&self.path);
        let trash = parent.join(format!(
            "{TRASH_PREFIX}{}-{}",
            std::process::id(),
            self.name
        ));
        fs::rename(&self.path, &trash).map_err(file_error("remove", &self.path))?;
        fs::remove_dir_all(&trash).map_err(file_error("remove", &trash))
    }
}

/// Whoever may write to a directory could have this program run what they like.
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
