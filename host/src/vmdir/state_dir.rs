//! The directory that holds the VM directories.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::{STATE_DIR_VARIABLE, VmDirError, file_error};
use super::lock::Lock;
use super::stray::remove_interrupted_start;
use super::vm_dir::{VmDir, check_private};
use super::{LOCK, NEW_PREFIX, TRASH_PREFIX};
use crate::os::random;
use crate::values::VmName;

/// The directory that holds the VM directories.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Finds or creates the state directory: `given`, else `HOST_TOOL_STATE_DIR`, else `host-tool`
    /// in `XDG_RUNTIME_DIR`, else /run/host-tool for root.
    pub(crate) fn open(given: Option<&Path>) -> Result<Self, VmDirError> {
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory of a new VM, and holds its lock. Without a `name` one is generated.
    pub(crate) fn create_vm(&self, name: Option<&VmName>) -> Result<(VmDir, Lock), VmDirError> {
        self.sweep();
        let random =
            random::bytes::<4>().map_err(file_error("generate a VM name in", &self.path))?;
        let name = name.cloned().unwrap_or_else(|| VmName::generated(random));
        let pid = std::process::id();
        let temporary = self.path.join(format!("{NEW_PREFIX}{pid}-{name}"));
        let made = DirBuilder::new().mode(0o700).create(&temporary);
        made.map_err(file_error("create", &temporary))?;
        let lock = Lock::try_new(&temporary.join(LOCK))?
            .ok_or_else(|| VmDirError::Busy { name: name.clone() })?;
        let path = self.path.join(name.as_str());
        self.free(&name)?;
        // rename(2) replaces only empty directories, and every VM's holds at least its lock file.
        match fs::rename(&temporary, &path) {
            Ok(()) => Ok((VmDir::new(name, path), lock)),
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

    /// Frees a name whose VM was never released, because the command that created it was killed.
    /// Leaves anything else of that name alone.
    pub(crate) fn free(&self, name: &VmName) -> Result<(), VmDirError> {
        let dir = VmDir::new(name.clone(), self.path.join(name.as_str()));
        match remove_interrupted_start(&dir) {
            // Another command or the VM's supervisor has removed it meanwhile.
            Err(VmDirError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    pub(crate) fn vm(&self, name: &VmName) -> Result<VmDir, VmDirError> {
        let dir = VmDir::new(name.clone(), self.path.join(name.as_str()));
        dir.check()?;
        Ok(dir)
    }

    /// All VMs, sorted by name.
    pub(crate) fn vms(&self) -> Result<Vec<VmDir>, VmDirError> {
        let mut vms = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(file_error("read", &self.path))? {
            let entry = entry.map_err(file_error("read", &self.path))?;
            // Other names are not ours, or are directories being made or removed.
            if let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<VmName>) {
                vms.push(VmDir::new(name, entry.path()));
            }
        }
        vms.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(vms)
    }

    /// Removes the directories that killed commands left half made or half removed.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let path = entry.path();
            let is_left = name.to_str().is_some_and(is_left_behind);
            // A directory that is still in use is locked, whatever its name says.
            if is_left && let Ok(Some(_lock)) = Lock::try_new(&path.join(LOCK)) {
                log::info!("removing {}, left by a killed command", path.display());
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

/// Whether `name` is that of a directory being made or removed, and the process in it is gone. A
/// living process may not hold the lock yet, or no longer.
fn is_left_behind(name: &str) -> bool {
    let rest = [NEW_PREFIX, TRASH_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}
