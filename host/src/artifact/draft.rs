//! An unfinished artifact: a directory beside its target that is renamed to the target at the end.
//!
//! Before the rename everything is synced to the disk: the files, then the manifest, then the
//! directory. So a directory with the target's name is complete, whenever the machine stops.
//! Dropping a draft removes its directory. The draft of a killed command stays until the next draft
//! for the same target finds it unlocked.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::{MANIFEST, Manifest};
use crate::error::Failure;
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::os::random;

/// Stands between the target's name and the random digits.
const TMP_MARK: &str = ".tmp-";

/// Random digits in a draft's name.
const DRAFT_DIGITS: usize = 8;

/// Why an artifact could not be written.
#[derive(Debug)]
pub(crate) enum DraftError {
    /// The target exists already.
    Exists { path: PathBuf },
    /// The target is not a path that a directory can have, such as `/`.
    NoName { path: PathBuf },
    /// A file or directory could not be written.
    Write {
        /// A verb: what was attempted.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl fmt::Display for DraftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists { path } => write!(
                f,
                "{} exists already, and an artifact is never overwritten; remove it or choose \
                 another directory",
                path.display()
            ),
            Self::NoName { path } => {
                write!(
                    f,
                    "'{}' is not a path at which a directory can be created",
                    path.display()
                )
            }
            Self::Write {
                operation, path, ..
            } => {
                write!(f, "cannot {operation} {}", path.display())
            }
        }
    }
}

impl std::error::Error for DraftError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Write { source, .. } => Some(source),
            Self::Exists { .. } | Self::NoName { .. } => None,
        }
    }
}

impl From<DraftError> for Failure {
    fn from(error: DraftError) -> Self {
        let exit = match error {
            DraftError::Exists { .. } | DraftError::NoName { .. } => Exit::Usage,
            DraftError::Write { .. } => Exit::Artifact,
        };
        Self::new(exit, error)
    }
}

fn write_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DraftError {
    let path = path.to_owned();
    move |source| DraftError::Write {
        operation,
        path,
        source,
    }
}

/// A directory that will be the artifact `target`.
#[derive(Debug)]
pub(crate) struct Draft {
    target: PathBuf,
    dir: PathBuf,
    /// Held while this command writes the draft.
    _lock: Flock<File>,
}

impl Draft {
    /// Creates the directory. The target must not exist.
    pub(crate) fn create(target: &Path) -> Result<Self, DraftError> {
        let target = std::path::absolute(target).map_err(write_error("resolve", target))?;
        let name = target.file_name().map(OsString::from);
        let (Some(parent), Some(mut name)) = (target.parent(), name) else {
            return Err(DraftError::NoName { path: target });
        };
        if fs::symlink_metadata(&target).is_ok() {
            return Err(DraftError::Exists { path: target });
        }
        name.push(TMP_MARK);
        sweep(parent, &name);
        loop {
            let random = random::bytes::<4>().map_err(write_error("find a name for", &target))?;
            let mut name = name.clone();
            name.push(format!("{:08x}", u32::from_be_bytes(random)));
            let dir = parent.join(name);
            if let Some(lock) = create_locked(&dir)? {
                return Ok(Self {
                    target,
                    dir,
                    _lock: lock,
                });
            }
        }
    }

    /// The directory for its files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Completes the draft and renames it to its target, which is returned.
    pub(crate) fn publish(self, manifest: &Manifest) -> Result<PathBuf, DraftError> {
        for file in &manifest.files {
            let path = self.dir.join(&file.name);
            sync(&path)?;
        }
        let path = self.dir.join(MANIFEST);
        let mut text = format!("{:#}", manifest.to_value());
        text.push('\n');
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(write_error("write", &path))?;
        sync(&self.dir)?;
        let reached = reach(Point::PublishRename).map_err(io::Error::from);
        reached.map_err(write_error("create", &self.target))?;
        self.rename()?;
        // This makes the name durable. If it fails, the artifact is complete all the same.
        if let Some(parent) = self.target.parent()
            && let Err(error) = sync(parent)
        {
            log::warn!("{error}");
        }
        Ok(self.target.clone())
    }

    fn rename(&self) -> Result<(), DraftError> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        let renamed = match renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &self.target, flags) {
            // Some file systems lack the flag. Without it the rename can only replace an empty
            // directory.
            Err(Errno::EINVAL) => fs::rename(&self.dir, &self.target),
            result => result.map_err(io::Error::from),
        };
        renamed.map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST | libc::ENOTEMPTY) => DraftError::Exists {
                path: self.target.clone(),
            },
            _ => write_error("create", &self.target)(error),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once published, it does not exist any more under this name.
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn sync(path: &Path) -> Result<(), DraftError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(write_error("sync", path))
}

/// Creates a directory and locks it. `None` if another command has locked or removed it in between,
/// because it took it for a leftover.
fn create_locked(dir: &Path) -> Result<Option<Flock<File>>, DraftError> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    made.map_err(write_error("create", dir))?;
    let file = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(write_error("open", dir))?,
    };
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Err((_, Errno::EAGAIN)) => {
            // If the other command only inspects it, we have to remove it.
            let _ = fs::remove_dir(dir);
            return Ok(None);
        }
        locked => locked.map_err(|(_, errno)| write_error("lock", dir)(errno.into()))?,
    };
    let held = lock
        .metadata()
        .map_err(write_error("read the metadata of", dir))?;
    let is_there = fs::symlink_metadata(dir).is_ok_and(|found| found.ino() == held.ino());
    Ok(is_there.then_some(lock))
}

/// The state of a directory with a draft's name.
#[derive(Debug)]
pub(crate) enum DraftStatus {
    /// A command is writing it.
    InUse,
    /// The command that wrote it was killed.
    Abandoned {
        /// While this is held, no other command uses or removes the directory.
        lock: Flock<File>,
    },
}

/// Inspects a directory entry; `None` if it is not a draft of this user. Abandoned drafts are
/// removed, so name, type and owner must all match: a user's own `a.tmp-old` must stay.
pub(crate) fn draft_status(path: &Path) -> Option<DraftStatus> {
    let name = path.file_name()?.as_encoded_bytes();
    let digits_at = name.len().checked_sub(DRAFT_DIGITS)?;
    let (front, digits) = name.split_at(digits_at);
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !front.ends_with(TMP_MARK.as_bytes()) || !digits.iter().all(is_digit) {
        return None;
    }
    let metadata = fs::symlink_metadata(path).ok()?;
    if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let lock = Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock);
    Some(match lock {
        Ok(lock) => DraftStatus::Abandoned { lock },
        Err(_) => DraftStatus::InUse,
    })
}

/// Removes abandoned drafts for the same target.
fn sweep(parent: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes());
        if rest.is_none_or(|rest| rest.len() != DRAFT_DIGITS) {
            continue;
        }
        let path = entry.path();
        match draft_status(&path) {
            Some(DraftStatus::Abandoned { lock: _lock }) => {
                log::info!("removing {}, left by a killed command", path.display());
                if let Err(error) = fs::remove_dir_all(&path) {
                    log::warn!("cannot remove {}: {error}", path.display());
                }
            }
            Some(DraftStatus::InUse) | None => {}
        }
    }
}
