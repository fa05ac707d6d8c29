//! The directory that holds the VM directories.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::{STATE_DIR_VARIABLE, VmDirError, file_error};
use super::lock::Lock;
use super::stray::remove_cut_short;
use super::vm_dir::{VmDir, check_private};
use super::{LOCK, NEW_PREFIX, TRASH_PREFIX};
use crate::os::random;
use crate::values::VmName;

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

    /// Takes away what has a VM's name and never was of use: the command that was making it was
    /// killed. A VM is left alone, and so is what is no VM.
    pub fn free(&self, name: &VmName) -> Result<(), VmDirError> {
        let dir = VmDir::new(name.clone(), self.path.join(name.as_str()));
        match remove_cut_short(&dir) {
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
                vms.push(VmDir::new(name, entry.path()));
            }
        }
        vms.sort_by(|a, b| a.name().cmp(b.name()));
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

/// Whether a directory of this name is on its way in or out, and the process that it is named
/// after is gone. One that lives may just not have its lock yet, or not any more.
fn is_left_behind(name: &str) -> bool {
    let rest = [NEW_PREFIX, TRASH_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}
