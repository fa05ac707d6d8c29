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
//! checked by the VMM: to restore an artifact is to run it.

pub(crate) mod digest;
pub(crate) mod draft;
mod error;
mod manifest;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use shared::id::Generation;
use shared::version::SUPPORTED;

use self::digest::Digest;
use crate::os::files;
use crate::os::json::JsonFileError;
use crate::vmdir::state::{DRIVES_MAX, lineage};
use crate::vmm::{Drive, StateFiles};

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
    dir: PathBuf,
    manifest: Manifest,
}

impl Artifact {
    /// Opens the artifact in `dir` and checks all that can be checked without the VMM.
    pub(crate) fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let dir = std::path::absolute(dir).map_err(|source| ArtifactError::Read {
            path: dir.to_owned(),
            source,
        })?;
        match fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ArtifactError::Read { path: dir, source });
            }
            Ok(_) | Err(_) => return Err(ArtifactError::NotThere { path: dir }),
        }
        let artifact = Self {
            manifest: read_manifest(&dir)?,
            dir,
        };
        artifact.check()?;
        Ok(artifact)
    }

    /// What the artifact is.
    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is; an absolute path.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VMM's own files.
    pub(crate) fn state_files(&self) -> StateFiles {
        StateFiles {
            overrides_vsock: self.manifest.vsock_path.is_some(),
            ..StateFiles::in_dir(self.manifest.vmm_kind, &self.dir)
        }
    }

    /// Where the content of the drive with this path in the manifest is, if it is in the artifact.
    pub(crate) fn stored_drive(&self, path: &Path) -> Option<PathBuf> {
        let is_stored = |file: &FileEntry| Path::new(&file.name) == path;
        self.manifest
            .files
            .iter()
            .any(is_stored)
            .then(|| self.dir.join(path))
    }

    fn check(&self) -> Result<(), ArtifactError> {
        SUPPORTED
            .negotiate(self.manifest.agent_protocol)
            .map_err(|error| ArtifactError::Protocol {
                agent_version: self.manifest.agent_version.clone(),
                error,
            })?;
        let mut names = BTreeSet::new();
        for file in &self.manifest.files {
            if !is_plain_name(&file.name) || !names.insert(file.name.as_str()) {
                return Err(ArtifactError::Name {
                    name: file.name.clone(),
                });
            }
            self.check_file(file)?;
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
            if !names.contains(name) {
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
            let path = self.dir.join(&file.name);
            let mut report = |len: u64| {
                read_len += len;
                progress(read_len);
            };
            if digest_of(&path, &mut report, deadline)? != recorded {
                return Err(ArtifactError::Digest { path });
            }
        }
        Ok(())
    }

    /// A drive that the guest can write to must be in the artifact. A read-only one may be anywhere
    /// on this host: the VMM's state, which is not trusted either, contains the path as well.
    fn check_drive(&self, drive: &Drive) -> Result<(), ArtifactError> {
        let path = drive.path.clone();
        if self.stored_drive(&path).is_some() {
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

    fn check_file(&self, file: &FileEntry) -> Result<(), ArtifactError> {
        let path = self.dir.join(&file.name);
        let found = open_regular(&path)?.1;
        if found == file.len {
            return Ok(());
        }
        let recorded = file.len;
        Err(ArtifactError::Length {
            path,
            recorded,
            found,
        })
    }
}

/// The generations that a guest from `artifact` had before its first own one. The latest, `parent`,
/// comes first. An unreadable artifact is not an error here: opening it reports that.
pub(crate) fn ancestors(artifact: Option<&Path>, parent: Option<Generation>) -> Vec<Generation> {
    let manifest = artifact.and_then(|dir| read_manifest(dir).ok());
    let before = manifest.map(|manifest| manifest.ancestors);
    lineage(parent, &before.unwrap_or_default())
}

/// The digest of a file of an artifact. `progress` gets the length of each piece.
pub(crate) fn digest_of(
    path: &Path,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> Result<Digest, ArtifactError> {
    let file = open_regular(path)?.0;
    let digest = Digest::of(&file, |len| {
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

fn read_manifest(dir: &Path) -> Result<Manifest, ArtifactError> {
    let path = dir.join(MANIFEST);
    let (file, len) = match open_regular(&path) {
        Err(ArtifactError::Missing { .. }) => {
            return Err(ArtifactError::NoManifest {
                path: dir.to_owned(),
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
        Ok(_) => Manifest::parse(&path, &bytes),
        Err(source) => Err(JsonFileError::Read { path, source }.into()),
    }
}

/// Opens a file of an artifact, and returns its length.
fn open_regular(path: &Path) -> Result<(File, u64), ArtifactError> {
    let opened = files::open_regular(path, OpenOptions::new().read(true));
    let opened = opened.and_then(|file| {
        let len = file.metadata()?.len();
        Ok((file, len))
    });
    let path = path.to_owned();
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
