//! An unfinished artifact: a directory beside its target that is renamed to the target at the end.
//!
//! Before the rename everything is synced to the disk: the files, then the manifest, then the
//! directory. So a directory with the target's name is complete, whenever the machine stops.
//! Dropping a draft removes its directory. The draft of a killed command stays until the next draft
//! for the same target finds it unlocked. Only a directory with host-tool's [`mark`] is removed.
//! The mark is taken off once the artifact has its name.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::{DISK_PREFIX, MANIFEST, Manifest, STATE_NAMES};
use crate::error::Failure;
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::os::dir::{Dir, is_own};
use crate::os::lock::FileLock;
use crate::os::mark::{self, MARK, RemoveError};
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
    parent: Dir,
    /// Its name in `parent`.
    name: OsString,
    dir: Dir,
    /// Held while this command writes the draft.
    _lock: FileLock,
}

impl Draft {
    /// Creates the directory. The target must not exist.
    pub(crate) fn create(target: &Path) -> Result<Self, DraftError> {
        let target = std::path::absolute(target).map_err(write_error("resolve", target))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(DraftError::NoName { path: target });
        };
        let parent = Dir::open(parent).map_err(write_error("open", parent))?;
        if parent.stat_of(name).is_ok() {
            return Err(DraftError::Exists { path: target });
        }
        let mut prefix = name.to_owned();
        prefix.push(TMP_MARK);
        sweep(&parent, &prefix);
        loop {
            let random = random::bytes::<4>().map_err(write_error("find a name for", &target))?;
            let mut name = prefix.clone();
            name.push(format!("{:08x}", u32::from_be_bytes(random)));
            if let Some((dir, lock)) = create_locked(&parent, &name)? {
                let draft = Self {
                    target,
                    parent,
                    name,
                    dir,
                    _lock: lock,
                };
                let marked = mark::write(&draft.dir);
                marked.map_err(write_error("write the mark of", draft.dir()))?;
                return Ok(draft);
            }
        }
    }

    /// The directory for its files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The same directory, open.
    pub(crate) const fn handle(&self) -> &Dir {
        &self.dir
    }

    /// Completes the draft and renames it to its target, which is returned.
    pub(crate) fn publish(self, manifest: &Manifest) -> Result<PathBuf, DraftError> {
        for file in &manifest.files {
            let opened = self.dir.open_file(&file.name, OFlag::O_RDONLY);
            let synced = opened.and_then(|file| file.sync_all());
            synced.map_err(write_error("sync", &self.dir().join(&file.name)))?;
        }
        let mut text = format!("{:#}", manifest.to_value());
        text.push('\n');
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let opened = self.dir.open_file(MANIFEST, flags);
        let written = opened.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(write_error("write", &self.dir().join(MANIFEST)))?;
        sync(&self.dir)?;
        let reached = reach(Point::PublishRename).map_err(io::Error::from);
        reached.map_err(write_error("create", &self.target))?;
        self.rename()?;
        // Under its own name the artifact is the user's, and not removed any more.
        if let Err(error) = self.dir.unlink(MARK) {
            let path = self.target.display();
            log::warn!("cannot remove {path}/{MARK}, which is not needed any more: {error}");
        }
        // This makes the name durable. If it fails, the artifact is complete all the same.
        if let Err(error) = sync(&self.parent) {
            log::warn!("{error}");
        }
        Ok(self.target.clone())
    }

    fn rename(&self) -> Result<(), DraftError> {
        let to = self.target.file_name().unwrap_or_default();
        let renamed = self.parent.rename_new(&self.name, to);
        renamed.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => DraftError::Exists {
                path: self.target.clone(),
            },
            _ => write_error("create", &self.target)(error),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once published, it does not exist any more under this name.
        if self.parent.has(&self.name, &self.dir) {
            remove(&self.parent, &self.name, &self.dir);
        }
    }
}

/// Removes a draft, or says what is left.
fn remove(parent: &Dir, name: &OsStr, dir: &Dir) {
    let removed = match mark::remove(parent, name, dir, is_known) {
        // A command that is killed before it has written the mark leaves an empty directory.
        Err(RemoveError::NotMarked) => mark::remove_empty(parent, name, dir),
        removed => removed,
    };
    if let Err(error) = removed {
        log::warn!("cannot remove {}: {error}", dir.path().display());
    }
}

/// Whether a draft has files of this name.
fn is_known(name: &str) -> bool {
    let disk = name.strip_prefix(DISK_PREFIX);
    let is_disk = disk.is_some_and(|number| number.parse::<u16>().is_ok());
    is_disk || name == MANIFEST || STATE_NAMES.contains(&name)
}

fn sync(dir: &Dir) -> Result<(), DraftError> {
    let synced = dir.to_file().and_then(|file| file.sync_all());
    synced.map_err(write_error("sync", dir.path()))
}

/// Creates a directory and locks it. `None` if another command has locked or removed it in between,
/// because it took it for a leftover. After an error nothing is left.
fn create_locked(parent: &Dir, name: &OsStr) -> Result<Option<(Dir, FileLock)>, DraftError> {
    let path = parent.path().join(name);
    parent
        .make_dir(name)
        .map_err(write_error("create", &path))?;
    let locked = parent.open_dir(name).and_then(|dir| {
        let lock = FileLock::try_new(dir.to_file()?)?;
        Ok(lock.map(|lock| (dir, lock)))
    });
    match locked {
        Ok(Some((dir, lock))) => Ok(parent.has(name, &dir).then_some((dir, lock))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => {
            // It is empty. If another command only inspects it, we have to remove it.
            if let Err(error) = parent.remove_dir(name) {
                log::debug!("cannot remove {}: {error}", path.display());
            }
            other.map(|_| None).map_err(write_error("lock", &path))
        }
    }
}

/// The state of a directory with a draft's name.
#[derive(Debug)]
pub(crate) enum DraftStatus {
    /// A command is writing it.
    InUse,
    /// The command that wrote it was killed.
    Abandoned {
        dir: Dir,
        /// While this is held, no other command uses or removes the directory.
        lock: FileLock,
    },
}

/// Inspects a directory entry; `None` if it is not a draft of this user. Abandoned drafts are
/// removed, so name, type and owner must all match, and it must be marked or empty: a user's own
/// `a.tmp-old` must stay.
pub(crate) fn draft_status(parent: &Dir, name: &OsStr) -> Option<DraftStatus> {
    let bytes = name.as_encoded_bytes();
    let digits_at = bytes.len().checked_sub(DRAFT_DIGITS)?;
    let (front, digits) = bytes.split_at(digits_at);
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !front.ends_with(TMP_MARK.as_bytes()) || !digits.iter().all(is_digit) {
        return None;
    }
    let dir = parent.open_dir(name).ok()?;
    if !dir.stat().is_ok_and(|stat| is_own(&stat)) {
        return None;
    }
    match FileLock::try_new(dir.to_file().ok()?) {
        Ok(Some(lock)) => {
            let is_ours = mark::is_marked(&dir).ok()? || dir.names().ok()?.is_empty();
            is_ours.then_some(DraftStatus::Abandoned { dir, lock })
        }
        Ok(None) | Err(_) => Some(DraftStatus::InUse),
    }
}

/// Removes abandoned drafts for the same target.
fn sweep(parent: &Dir, prefix: &OsStr) {
    // A directory that cannot be read has no draft that could be removed.
    for name in parent.names().unwrap_or_default() {
        let rest = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes());
        if rest.is_none_or(|rest| rest.len() != DRAFT_DIGITS) {
            continue;
        }
        match draft_status(parent, &name) {
            Some(DraftStatus::Abandoned { dir, lock: _lock }) => {
                let path = dir.path().display();
                log::info!("removing {path}, left by a killed command");
                remove(parent, &name, &dir);
            }
            Some(DraftStatus::InUse) | None => {}
        }
    }
}
