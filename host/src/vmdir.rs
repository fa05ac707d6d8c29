//! Where VMs are kept: one private directory per VM under the state directory.
//!
//! ```text
//! STATE_DIR/NAME/lock             held by a command that changes the VM
//!                supervisor.lock  held by the VM's supervisor, for its life
//!                launch.json      what the supervisor runs
//!                state.json       what is known about the VM, replaced by rename
//!                exit.json        how the VMM ended; there once it has
//!                health-check.json, health.json  see [`health`](crate::health)
//!                vmm.log, console.log, supervisor.log
//!                output.log …     the workload's output; see [`output_log`](crate::output_log)
//!                api.sock, vsock.sock, drive0 …  the VMM's own, by relative names
//! ```
//!
//! Each file has one writer: `state.json` whoever holds `lock`, `exit.json` and the logs the
//! supervisor. A directory appears and disappears by rename, so that no name is ever half there.

mod error;
mod lock;
pub mod state;

use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::error::file_error;
use self::state::{ExitRecord, Stage, State, WorkloadEnd};
use crate::guest::address::Endpoint;
use crate::launch::end_stray;
use crate::os::deadline::Watch;
use crate::os::json::Object;
use crate::os::{files, random};
use crate::values::VmName;
use crate::vmm::{API_SOCKET, VSOCK_SOCKET, guest_address};

pub use self::error::VmDirError;
pub use self::lock::Lock;

/// Environment variable that names the state directory.
pub const STATE_DIR_VARIABLE: &str = "HOST_TOOL_STATE_DIR";

/// The guest's serial console, as the VMM printed it.
pub const CONSOLE_LOG: &str = "console.log";

/// What the supervisor has to say.
pub const SUPERVISOR_LOG: &str = "supervisor.log";

/// Names of directories that are being made or taken away begin with these.
const NEW_PREFIX: &str = ".new-";
const TRASH_PREFIX: &str = ".trash-";

/// How long the supervisor of a VM that never was of use may take to end it.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

const LOCK: &str = "lock";
const SUPERVISOR_LOCK: &str = "supervisor.lock";
const OUTPUT_LOCK: &str = "output.lock";
const STATE: &str = "state.json";
const EXIT: &str = "exit.json";
const WORKLOAD: &str = "workload.json";

/// The directory that holds the VM directories.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Finds, or makes, the state directory: the one given, else `HOST_TOOL_STATE_DIR`, else
    /// `host-tool` in the XDG runtime directory, else /run/host-tool for root.
    pub fn open(given: Option<&Path>) -> Result<Self, VmDirError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = match given {
            Some(path) => path.to_owned(),
            None => match (variable(STATE_DIR_VARIABLE), variable("XDG_RUNTIME_DIR")) {
                (Some(path), _) => path.into(),
                (None, Some(path)) => PathBuf::from(path).join("host-tool"),
                (None, None) if nix::unistd::geteuid().is_root() => "/run/host-tool".into(),
                (None, None) => return Err(VmDirError::NoStateDir),
            },
        };
        let path = std::path::absolute(&path).map_err(file_error("find", &path))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(file_error("create the state directory", &path))?;
        let metadata = fs::metadata(&path).map_err(file_error("look at", &path))?;
        check_private(&path, &metadata)?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory of a new VM, with its lock held.
    pub fn create_vm(&self, name: Option<&VmName>) -> Result<(VmDir, Lock), VmDirError> {
        self.sweep();
        let random = random::bytes::<4>().map_err(file_error("draw a name in", &self.path))?;
        let name = name.cloned().unwrap_or_else(|| VmName::generated(random));
        let temporary = self
            .path
            .join(format!("{NEW_PREFIX}{}-{name}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&temporary)
            .map_err(file_error("create", &temporary))?;
        let lock = Lock::try_new(&temporary.join(LOCK))?
            .ok_or_else(|| VmDirError::Busy { name: name.clone() })?;
        let path = self.path.join(name.as_str());
        self.free(&name)?;
        // A directory that holds anything is not replaced by a rename, and each VM's holds a lock.
        match fs::rename(&temporary, &path) {
            Ok(()) => Ok((VmDir { name, path }, lock)),
            Err(error) => {
                let _ = fs::remove_dir_all(&temporary);
                match error.raw_os_error() {
                    Some(libc::ENOTEMPTY | libc::EEXIST | libc::ENOTDIR) => {
                        Err(VmDirError::NameInUse { name })
                    }
                    _ => Err(file_error("create", &path)(error)),
                }
            }
        }
    }

    /// Takes away what has a VM's name and never was of use: the command that was making it was
    /// killed. A VM is left alone, and so is what is no VM.
    pub fn free(&self, name: &VmName) -> Result<(), VmDirError> {
        let dir = VmDir::new(name.clone(), self.path.join(name.as_str()));
        match dir.remove_cut_short() {
            // It was taken away meanwhile.
            Err(VmDirError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    /// The directory of a VM.
    pub fn vm(&self, name: &VmName) -> Result<VmDir, VmDirError> {
        let dir = VmDir::new(name.clone(), self.path.join(name.as_str()));
        dir.check()?;
        Ok(dir)
    }

    /// Every VM, by name.
    pub fn vms(&self) -> Result<Vec<VmDir>, VmDirError> {
        let mut vms = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(file_error("read", &self.path))? {
            let entry = entry.map_err(file_error("read", &self.path))?;
            // Other entries are not ours, or on their way in or out.
            if let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<VmName>) {
                vms.push(VmDir {
                    name,
                    path: entry.path(),
                });
            }
        }
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(vms)
    }

    /// Takes away what commands that were killed left on the way in or out.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let is_left = name.to_str().is_some_and(is_left_behind);
            // Whoever is still at work holds the lock.
            if is_left && let Ok(Some(_lock)) = Lock::try_new(&entry.path().join(LOCK)) {
                log::info!(
                    "removing {}, left by a command that was killed",
                    entry.path().display()
                );
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whoever may write to a directory could have this program run what they like.
fn check_private(path: &Path, metadata: &Metadata) -> Result<(), VmDirError> {
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

/// Whether a directory of this name is on its way in or out, and the process that it is named
/// after is gone. One that lives may just not have its lock yet, or not any more.
fn is_left_behind(name: &str) -> bool {
    let rest = [NEW_PREFIX, TRASH_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

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
    fn check(&self) -> Result<(), VmDirError> {
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

    fn remove_cut_short(&self) -> Result<(), VmDirError> {
        let path = self.file(LOCK);
        if self.check().is_err() || !path.is_file() {
            return Ok(());
        }
        let Some(lock) = Lock::try_new(&path)? else {
            return Ok(());
        };
        let is_cut_short = match self.read_state() {
            Ok(state) => state.stage == Stage::Starting,
            Err(VmDirError::Json(error)) => error.is_not_found(),
            Err(_) => false,
        };
        if !is_cut_short {
            return Ok(());
        }
        // Its supervisor ends the VMM, and takes the directory away itself.
        let deadline = Instant::now() + SUPERVISOR_TIMEOUT;
        let supervisor_lock = self.supervisor_lock(deadline)?;
        let is_over = supervisor_lock.is_some() && self.is_locked_by(&lock);
        match self.clone().running_under(&lock) {
            Err(VmDirError::NotRunning { .. }) if is_over => {
                log::info!("removing '{}', whose start was cut short", self.name);
                drop(supervisor_lock);
                end_stray(self, &lock, deadline)
                    .map_err(io::Error::other)
                    .map_err(file_error("end what runs in", &self.path))?;
                self.remove()
            }
            // A VMM whose supervisor was killed, too, is there for a look, and for `rm --force`.
            Ok(_) | Err(_) => Ok(()),
        }
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
        Ok(State::from_object(&Object::read(&self.file(STATE))?)?)
    }

    /// Replaces what is known about the VM. Only for holders of the lock.
    pub fn write_state(&self, state: &State) -> Result<(), VmDirError> {
        self.replace(STATE, &state.to_value().to_string())
    }

    /// How the VMM ended, once it has.
    pub fn read_exit(&self) -> Result<Option<ExitRecord>, VmDirError> {
        match Object::read(&self.file(EXIT)) {
            Ok(object) => Ok(Some(ExitRecord::from_object(&object)?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down how the VMM ended. Only for the supervisor.
    pub fn write_exit(&self, exit: &ExitRecord) -> Result<(), VmDirError> {
        self.replace(EXIT, &exit.to_value().to_string())
    }

    /// How the workload ended, once it has and somebody who wrote its output down has seen it.
    pub fn read_workload_end(&self) -> Result<Option<WorkloadEnd>, VmDirError> {
        match Object::read(&self.file(WORKLOAD)) {
            Ok(object) => Ok(Some(WorkloadEnd::from_object(&object)?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
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

#[cfg(test)]
mod tests;
