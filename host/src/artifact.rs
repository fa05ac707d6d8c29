//! Artifact directories: a snapshot as files, and the manifest that describes them.
//!
//! ```text
//! DIR/manifest.json   written last
//!     vmstate         VMM state
//!     memory          guest memory, if the VMM keeps it in a file of its own
//!     disk0 …         copies of the drives that the guest could write to
//! ```
//!
//! An artifact may come from anywhere, so nothing in it is trusted: file names must be plain, files
//! must be regular and have the recorded sizes. The content of the state and the memory is only
//! checked by the VMM: to restore an artifact is to run it. So [`Artifact::check_trust`] refuses
//! one that another user could have written.
//!
//! Each file is opened once, below the descriptor of the directory, and read as it was checked.

pub(crate) mod digest;
pub(crate) mod draft;
mod error;
mod manifest;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use shared::id::Generation;
use shared::version::SUPPORTED;

use self::digest::Digest;
use crate::os::dir::Dir;
use crate::os::files;
use crate::os::json::JsonFileError;
use crate::os::trust::{self, Fault, Links, Owner, TrustError};
use crate::vmdir::state::{DRIVES_MAX, lineage};
use crate::vmm::{Drive, OpenFile, StateFiles};

pub(crate) use self::error::ArtifactError;
pub(crate) use self::manifest::{FileEntry, Manifest};

/// Format of the manifest. There is only one so far.
pub(crate) const FORMAT: u32 = 1;

/// Name of the manifest in an artifact directory.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The VMM's own files in an artifact directory.
const STATE_NAMES: [&str; 2] = ["vmstate", "memory"];

/// In front of the number of a drive whose copy is in the artifact.
pub(crate) const DISK_PREFIX: &str = "disk";

/// Most files of one artifact.
const FILES_MAX: usize = DRIVES_MAX + 2;

/// Longest manifest that is read, in bytes. Legitimate ones have a few kilobytes.
const MANIFEST_LEN_MAX: u64 = 1024 * 1024;

/// Longest file name, in bytes, as on every Linux file system.
const FILE_NAME_LEN_MAX: usize = 255;

/// An artifact with a valid manifest and all its files.
#[derive(Debug)]
pub(crate) struct Artifact {
    dir: Dir,
    manifest: Manifest,
    /// The manifest's files, open for reading.
    files: BTreeMap<String, Arc<File>>,
    /// What another user could have written of it.
    distrust: Option<TrustError>,
}

/// What to take from an artifact that another user could have written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trust<'a> {
    /// Whether to restore it at all.
    pub(crate) is_given: bool,
    /// Drives outside of it that its guest may read.
    pub(crate) drives: &'a [PathBuf],
}

impl Artifact {
    /// Opens the artifact in `dir` and checks all that can be checked without the VMM, except whose
    /// it is.
    pub(crate) fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let path = std::path::absolute(dir).map_err(|source| ArtifactError::Read {
            path: dir.to_owned(),
            source,
        })?;
        let owner = Owner::CallerOrRoot;
        let (dir, mut distrust) = match trust::open_dir(&path, owner, Links::OfCaller, false) {
            Ok(dir) => (dir, None),
            Err(error) => {
                let dir = Dir::open(&path).map_err(|source| match source.kind() {
                    io::ErrorKind::PermissionDenied => ArtifactError::Read { path, source },
                    _ => ArtifactError::NotThere { path },
                })?;
                (dir, Some(error))
            }
        };
        let (manifest, fault) = read_manifest(&dir)?;
        note_fault(&mut distrust, dir.path().join(MANIFEST), fault);
        let mut artifact = Self {
            dir,
            manifest,
            files: BTreeMap::new(),
            distrust,
        };
        artifact.check()?;
        Ok(artifact)
    }

    /// Fails if another user could have written the artifact and `trust` does not cover that. It
    /// also names the drives outside of it, which the manifest of another user may aim at any file
    /// that the caller can read.
    pub(crate) fn check_trust(&self, trust: &Trust<'_>) -> Result<(), ArtifactError> {
        let Some(error) = &self.distrust else {
            return Ok(());
        };
        if !trust.is_given {
            return Err(ArtifactError::NotTrusted {
                path: self.dir().to_owned(),
                reason: error.to_string(),
            });
        }
        let is_allowed = |path: &Path| {
            let mut allowed = trust.drives.iter();
            allowed.any(|drive| std::path::absolute(drive).is_ok_and(|drive| drive == path))
        };
        for drive in &self.manifest.machine.drives {
            if !self.is_stored(&drive.path) && !is_allowed(&drive.path) {
                let path = drive.path.clone();
                return Err(ArtifactError::ForeignDrive { path });
            }
        }
        log::warn!("{error}; it is restored because of --trust-artifact");
        Ok(())
    }

    /// What the artifact is.
    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is; an absolute path.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The VMM's own files.
    pub(crate) fn state_files(&self) -> StateFiles {
        let files = StateFiles::in_dir(self.manifest.vmm_kind, self.dir());
        let name = files.state.file_name().and_then(|name| name.to_str());
        StateFiles {
            overrides_vsock: self.manifest.vsock_path.is_some(),
            open_state: name.and_then(|name| self.open_file(name)),
            ..files
        }
    }

    /// The content of the drive with this path in the manifest, if it is in the artifact.
    pub(crate) fn stored_drive(&self, path: &Path) -> Option<OpenFile> {
        self.open_file(path.to_str()?)
    }

    fn open_file(&self, name: &str) -> Option<OpenFile> {
        Some(OpenFile {
            path: self.dir().join(name),
            file: Arc::clone(self.files.get(name)?),
        })
    }

    fn is_stored(&self, path: &Path) -> bool {
        path.to_str()
            .is_some_and(|name| self.files.contains_key(name))
    }

    fn check(&mut self) -> Result<(), ArtifactError> {
        SUPPORTED
            .negotiate(self.manifest.agent_protocol)
            .map_err(|error| ArtifactError::Protocol {
                agent_version: self.manifest.agent_version.clone(),
                error,
            })?;
        for entry in &self.manifest.files {
            let name = &entry.name;
            if !is_plain_name(name) || self.files.contains_key(name) {
                return Err(ArtifactError::Name { name: name.clone() });
            }
            let (file, fault) = self.check_file(entry)?;
            note_fault(&mut self.distrust, self.dir.path().join(name), fault);
            self.files.insert(name.clone(), Arc::new(file));
        }
        let state_files = self.state_files();
        for path in [Some(state_files.state), state_files.memory]
            .into_iter()
            .flatten()
        {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if !self.files.contains_key(name) {
                return Err(ArtifactError::Missing { path });
            }
        }
        let mut drives = self.manifest.machine.drives.iter();
        drives.try_for_each(|drive| self.check_drive(drive))
    }

    /// Compares every file that has a digest. `progress` gets the number of bytes read so far.
    pub(crate) fn verify(
        &self,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), ArtifactError> {
        let mut read_len = 0;
        for file in &self.manifest.files {
            let Some(recorded) = file.sha256 else {
                continue;
            };
            let mut report = |len: u64| {
                read_len += len;
                progress(read_len);
            };
            let path = self.dir().join(&file.name);
            let Some(open) = self.files.get(&file.name) else {
                return Err(ArtifactError::Missing { path });
            };
            if digest_of_file(open, &path, &mut report, deadline)? != recorded {
                return Err(ArtifactError::Digest { path });
            }
        }
        Ok(())
    }

    /// A drive that the guest can write to must be in the artifact. A read-only one may be anywhere
    /// on this host: the VMM's state, which is not trusted either, contains the path as well.
    fn check_drive(&self, drive: &Drive) -> Result<(), ArtifactError> {
        let path = drive.path.clone();
        if self.is_stored(&path) {
            return Ok(());
        }
        if !path.is_absolute() || !path.exists() {
            return Err(ArtifactError::Missing { path });
        }
        if !path.is_file() {
            return Err(ArtifactError::NotRegular { path });
        }
        if drive.read_only {
            Ok(())
        } else {
            Err(ArtifactError::SharedDrive { path })
        }
    }

    /// Opens a file and compares its length.
    fn check_file(&self, entry: &FileEntry) -> Result<(File, Option<Fault>), ArtifactError> {
        let (file, found, fault) = open_regular(&self.dir, &entry.name)?;
        if found == entry.len {
            return Ok((file, fault));
        }
        Err(ArtifactError::Length {
            path: self.dir().join(&entry.name),
            recorded: entry.len,
            found,
        })
    }
}

/// Keeps the first thing that another user could have written.
fn note_fault(distrust: &mut Option<TrustError>, path: PathBuf, fault: Option<Fault>) {
    if let Some(fault) = fault {
        distrust.get_or_insert(TrustError::Unsafe { path, fault });
    }
}

/// The generations that a guest from `artifact` had before its first own one. The latest, `parent`,
/// comes first. An unreadable artifact is not an error here: opening it reports that.
pub(crate) fn ancestors(artifact: Option<&Path>, parent: Option<Generation>) -> Vec<Generation> {
    let manifest = artifact.and_then(|dir| read_manifest(&Dir::open(dir).ok()?).ok());
    let before = manifest.map(|(manifest, _)| manifest.ancestors);
    lineage(parent, &before.unwrap_or_default())
}

/// The digest of a file of an artifact. `progress` gets the length of each piece.
pub(crate) fn digest_of(
    dir: &Dir,
    name: &str,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> Result<Digest, ArtifactError> {
    let file = open_regular(dir, name)?.0;
    digest_of_file(&file, &dir.path().join(name), progress, deadline)
}

fn digest_of_file(
    file: &File,
    path: &Path,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> Result<Digest, ArtifactError> {
    let digest = Digest::of(file, |len| {
        progress(len);
        if Instant::now() < deadline {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::TimedOut))
        }
    });
    let path = path.to_owned();
    digest.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => ArtifactError::Deadline { path },
        _ => ArtifactError::Read { path, source },
    })
}

fn read_manifest(dir: &Dir) -> Result<(Manifest, Option<Fault>), ArtifactError> {
    let path = dir.path().join(MANIFEST);
    let (file, len, fault) = match open_regular(dir, MANIFEST) {
        Err(ArtifactError::Missing { .. }) => {
            return Err(ArtifactError::NoManifest {
                path: dir.path().to_owned(),
            });
        }
        opened => opened?,
    };
    let mut bytes = Vec::new();
    let read = if len > MANIFEST_LEN_MAX {
        Err(io::Error::other("it is too long for a manifest"))
    } else {
        file.take(MANIFEST_LEN_MAX).read_to_end(&mut bytes)
    };
    match read {
        Ok(_) => Ok((Manifest::parse(&path, &bytes)?, fault)),
        Err(source) => Err(JsonFileError::Read { path, source }.into()),
    }
}

/// Opens a file of an artifact. Also returns its length, and whether another user could have
/// written it.
fn open_regular(dir: &Dir, name: &str) -> Result<(File, u64, Option<Fault>), ArtifactError> {
    let opened = dir.open_file(name, OFlag::O_RDONLY);
    let opened = opened.and_then(|file| {
        let stat = fstat(&file)?;
        let len = u64::try_from(stat.st_size).map_err(io::Error::other)?;
        Ok((file, len, trust::judge(&stat, Owner::CallerOrRoot).err()))
    });
    let path = dir.path().join(name);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ArtifactError::Missing { path },
        _ if files::is_not_regular(&source) => ArtifactError::NotRegular { path },
        _ => ArtifactError::Read { path, source },
    })
}

/// Whether `name` stays in its directory and has no control characters for a terminal.
fn is_plain_name(name: &str) -> bool {
    (1..=FILE_NAME_LEN_MAX).contains(&name.len())
        && !name.contains(|c: char| c == '/' || c.is_control())
        && !matches!(name, "." | ".." | MANIFEST)
}

#[cfg(test)]
pub(crate) mod tests;
