//! The directory that holds the VM directories.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{STATE_DIR_VARIABLE, VmDirError, file_error};
use super::lock::Lock;
use super::names::{self, LOCK};
use super::stray::remove_interrupted_start;
use super::vm_dir::VmDir;
use super::{NEW_PREFIX, TRASH_PREFIX};
use crate::os::dir::{Dir, is_own, is_writable_by_others};
use crate::os::mark::{self, MARK};
use crate::os::random;
use crate::os::trust::{self, Links, Owner};
use crate::values::VmName;

/// The directory that holds the VM directories.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    dir: Dir,
}

/// An entry of the state directory that has a VM's name.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: VmName,
    /// Its directory, or why it cannot be a VM's.
    pub(crate) dir: Result<VmDir, VmDirError>,
}

impl StateDir {
    /// Finds or creates the state directory: `given`, else `HOST_TOOL_STATE_DIR`, else `host-tool`
    /// in `XDG_RUNTIME_DIR`, else /run/host-tool for root. No other user can change its path.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self, VmDirError> {
        Self::open_or(given, true)
    }

    /// Like [`open`](Self::open), for a command that needs a VM which is there. A directory that
    /// the command line names must exist.
    pub(crate) fn existing(given: Option<&Path>) -> Result<Self, VmDirError> {
        Self::open_or(given, given.is_none())
    }

    fn open_or(given: Option<&Path>, create: bool) -> Result<Self, VmDirError> {
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
        match trust::open_dir(&path, Owner::Caller, Links::OfRoot, create) {
            Ok(dir) => Ok(Self { dir }),
            Err(error) => Err(VmDirError::StateDir { path, error }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Creates the directory of a new VM, and holds its lock. Without a `name` one is generated.
    pub(crate) fn create_vm(&self, name: Option<&VmName>) -> Result<(VmDir, Lock), VmDirError> {
        self.sweep();
        let path = self.path();
        let random = random::bytes::<4>().map_err(file_error("generate a VM name in", path))?;
        let name = name.cloned().unwrap_or_else(|| VmName::generated(random));
        self.free(&name)?;
        let temporary = format!("{NEW_PREFIX}{}-{name}", std::process::id());
        let made = NewDir::make(&self.dir, temporary)?;
        mark::write(&made.dir).map_err(file_error("write the mark of", made.dir.path()))?;
        let lock = Lock::try_new(&made.dir, LOCK)?
            .ok_or_else(|| VmDirError::Busy { name: name.clone() })?;
        match self.dir.rename_new(&made.name, name.as_str()) {
            Ok(()) => {
                let dir = made.keep().renamed(&self.dir, name.as_str());
                Ok((VmDir::new(&self.dir, name, dir), lock))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The reason why it is not a VM says more than that its name is in use.
                match self.vm(&name) {
                    Ok(_) | Err(VmDirError::NoSuchVm { .. }) => Err(VmDirError::NameInUse { name }),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(file_error("create", &path.join(name.as_str()))(error)),
        }
    }

    /// Frees a name whose VM was never released, because the command that created it was killed.
    /// Leaves anything else of that name alone.
    pub(crate) fn free(&self, name: &VmName) -> Result<(), VmDirError> {
        let Ok(dir) = self.vm(name) else {
            return Ok(());
        };
        match remove_interrupted_start(&dir) {
            // Another command or the VM's supervisor has removed it meanwhile.
            Err(VmDirError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    pub(crate) fn vm(&self, name: &VmName) -> Result<VmDir, VmDirError> {
        VmDir::open_in(&self.dir, name.clone())
    }

    /// All entries with a VM's name, sorted by name.
    pub(crate) fn vms(&self) -> Result<Vec<Found>, VmDirError> {
        let names = self.dir.names();
        let names = names.map_err(file_error("read", self.path()))?;
        // Other names are not ours, or are directories being made or removed.
        let names = names
            .iter()
            .filter_map(|name| name.to_str()?.parse::<VmName>().ok());
        let mut found: Vec<_> = names
            .map(|name| Found {
                dir: self.vm(&name),
                name,
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes the directories that killed commands left half made or half removed.
    fn sweep(&self) {
        let names = match self.dir.names() {
            Ok(names) => names,
            // The command fails for the same reason soon, and says so.
            Err(error) => return log::debug!("cannot read {}: {error}", self.path().display()),
        };
        for name in names {
            if let Some(name) = left_behind(&name) {
                self.sweep_one(name);
            }
        }
    }

    fn sweep_one(&self, name: &str) {
        let Ok(dir) = self.dir.open_dir(name) else {
            return;
        };
        let is_private =
            |stat: &nix::sys::stat::FileStat| is_own(stat) && !is_writable_by_others(stat);
        if !dir.stat().is_ok_and(|stat| is_private(&stat)) {
            return;
        }
        match mark::is_marked(&dir) {
            Ok(true) => {}
            // The command was killed before it wrote the mark, or after it had removed everything.
            // A directory that has anything in it is not removed without the mark.
            _ => return drop(mark::remove_empty(&self.dir, name, &dir)),
        }
        // A directory that is still in use is locked, whatever its name says.
        if let Ok(Some(_lock)) = Lock::try_new(&dir, LOCK) {
            let path = dir.path().display();
            match mark::remove(&self.dir, name, &dir, names::is_known) {
                Ok(()) => log::info!("removed {path}, left by a killed command"),
                Err(error) => log::warn!("cannot remove {path}: {error}"),
            }
        }
    }
}

/// A directory that is removed again unless it is kept.
#[derive(Debug)]
struct NewDir<'a> {
    parent: &'a Dir,
    name: String,
    dir: Dir,
    is_kept: bool,
}

impl<'a> NewDir<'a> {
    fn make(parent: &'a Dir, name: String) -> Result<Self, VmDirError> {
        let path = parent.path().join(&name);
        parent
            .make_dir(&name)
            .map_err(file_error("create", &path))?;
        match parent.open_dir(&name) {
            Ok(dir) => Ok(Self {
                parent,
                name,
                dir,
                is_kept: false,
            }),
            Err(error) => {
                // It was made a moment ago and is empty.
                let removed = parent.remove_dir(&name);
                log_left(&path, removed);
                Err(file_error("open", &path)(error))
            }
        }
    }

    fn keep(mut self) -> Dir {
        self.is_kept = true;
        self.dir.clone()
    }
}

impl Drop for NewDir<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // This process made the directory, and these are all the files that it can have by now.
        for name in [LOCK, MARK] {
            if let Err(error) = self.dir.unlink(name)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::debug!("cannot remove {name}: {error}");
            }
        }
        log_left(self.dir.path(), self.parent.remove_dir(&self.name));
    }
}

fn log_left(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

/// The name, if it is that of a directory being made or removed, and the process in it is gone. A
/// living process may not hold the lock yet, or no longer.
fn left_behind(name: &OsString) -> Option<&str> {
    let name = name.to_str()?;
    let rest = [NEW_PREFIX, TRASH_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let (pid, vm) = rest?.split_once('-')?;
    let pid: u32 = pid.parse().ok()?;
    let is_ours = vm.parse::<VmName>().is_ok();
    (is_ours && !Path::new(&format!("/proc/{pid}")).exists()).then_some(name)
}
