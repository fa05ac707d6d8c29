//! Artifact directories: a snapshot as files, and the manifest that says what they are.
//!
//! ```text
//! DIR/manifest.json   written last
//!     vmstate         VMM state
//!     memory          guest memory, where the VMM keeps it apart
//!     disk0 …         the drives the guest could write to, as they were
//! ```
//!
//! An artifact may come from anywhere, so reading one trusts nothing: names are plain file names,
//! files are regular and have the recorded sizes. What is in the state and the memory is up to the
//! VMM: to restore an artifact is to run it.

pub mod draft;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::id::Generation;
use shared::version::{NoCommonVersion, SUPPORTED, VersionRange};

use crate::json::{JsonError, Object};
use crate::vmdir::state::{DRIVES_MAX, machine_from_object, machine_to_value};
use crate::vmm::{MachineSpec, StateFiles, VmmKind};

/// The one format of manifest there is so far.
pub const FORMAT: u32 = 1;

/// Name of the manifest in an artifact directory.
pub const MANIFEST: &str = "manifest.json";

/// Most files of one artifact.
const FILES_MAX: usize = DRIVES_MAX + 2;

/// Longest file name, as on every Linux file system.
const FILE_NAME_LEN_MAX: usize = 255;

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name in the directory.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Which VMM wrote the state.
    pub vmm_kind: VmmKind,
    /// The VMM's version, in its own words.
    pub vmm_version: String,
    /// Version of the agent in the guest.
    pub agent_version: String,
    /// Protocol versions that the agent speaks.
    pub agent_protocol: VersionRange,
    /// The guest's name when it was stopped.
    pub generation: Generation,
    /// The machine. A drive that is in the artifact has its file's name for a path.
    pub machine: MachineSpec,
    /// The files.
    pub files: Vec<FileEntry>,
    /// When it was made, ms since 1970 UTC.
    pub created_ms: u64,
    /// Version of host-tool that made it.
    pub host_version: String,
}

impl Manifest {
    /// For the file and for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let file = |file: &FileEntry| json!({ "name": file.name, "len": file.len });
        json!({
            "format": FORMAT,
            "vmm": { "kind": self.vmm_kind.to_string(), "version": self.vmm_version },
            "agent": {
                "version": self.agent_version,
                "protocol_min": self.agent_protocol.min,
                "protocol_max": self.agent_protocol.max,
            },
            "generation": self.generation.to_string(),
            "machine": machine_to_value(&self.machine),
            "files": self.files.iter().map(file).collect::<Vec<_>>(),
            "created_ms": self.created_ms,
            "host_version": self.host_version,
        })
    }

    fn from_object(object: &Object) -> Result<Self, ArtifactError> {
        let format: u32 = object.number("format")?;
        if format != FORMAT {
            return Err(ArtifactError::Format { found: format });
        }
        let vmm = object.object("vmm")?;
        let agent = object.object("agent")?;
        let file = |file: &Object| -> Result<FileEntry, JsonError> {
            Ok(FileEntry {
                name: file.text("name")?,
                len: file.number("len")?,
            })
        };
        let files = object.objects("files", FILES_MAX)?;
        Ok(Self {
            vmm_kind: vmm.parsed("kind", "firecracker or qemu")?,
            vmm_version: vmm.text("version")?,
            agent_version: agent.text("version")?,
            agent_protocol: VersionRange {
                min: agent.number("protocol_min")?,
                max: agent.number("protocol_max")?,
            },
            generation: object.parsed("generation", "32 hexadecimal digits")?,
            machine: machine_from_object(&object.object("machine")?)?,
            files: files.iter().map(file).collect::<Result<_, _>>()?,
            created_ms: object.number("created_ms")?,
            host_version: object.text("host_version")?,
        })
    }
}

/// An artifact whose manifest was understood and whose files are there.
#[derive(Debug)]
pub struct Artifact {
    dir: PathBuf,
    manifest: Manifest,
}

impl Artifact {
    /// Reads the artifact in `dir` and checks everything that can be checked without the VMM.
    pub fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let dir = std::path::absolute(dir).map_err(|source| ArtifactError::Read {
            path: dir.to_owned(),
            source,
        })?;
        if !dir.is_dir() {
            return Err(ArtifactError::NotThere { path: dir });
        }
        let object = Object::read(&dir.join(MANIFEST)).map_err(|error| {
            if error.is_not_found() {
                ArtifactError::NoManifest { path: dir.clone() }
            } else {
                ArtifactError::Manifest(error)
            }
        })?;
        let artifact = Self {
            manifest: Manifest::from_object(&object)?,
            dir,
        };
        artifact.check()?;
        Ok(artifact)
    }

    /// What the artifact is.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is; an absolute path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The VMM's own files.
    #[must_use]
    pub fn state_files(&self) -> StateFiles {
        StateFiles::in_dir(self.manifest.vmm_kind, &self.dir)
    }

    /// The path of the drive at `path` in the manifest's machine, if its content is in the
    /// artifact.
    #[must_use]
    pub fn stored_drive(&self, path: &Path) -> Option<PathBuf> {
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
        for drive in &self.manifest.machine.drives {
            let is_outside = drive.path.is_absolute() && drive.path.is_file();
            if self.stored_drive(&drive.path).is_none() && !is_outside {
                return Err(ArtifactError::Missing {
                    path: drive.path.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_file(&self, file: &FileEntry) -> Result<(), ArtifactError> {
        let path = self.dir.join(&file.name);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ArtifactError::Missing { path });
            }
            Err(source) => return Err(ArtifactError::Read { path, source }),
        };
        if !metadata.is_file() {
            return Err(ArtifactError::NotRegular { path });
        }
        if metadata.len() != file.len {
            let (recorded, found) = (file.len, metadata.len());
            return Err(ArtifactError::Length {
                path,
                recorded,
                found,
            });
        }
        Ok(())
    }
}

/// Whether `name` stays in its directory.
fn is_plain_name(name: &str) -> bool {
    (1..=FILE_NAME_LEN_MAX).contains(&name.len())
        && !name.contains(['/', '\0'])
        && !matches!(name, "." | ".." | MANIFEST)
}

/// Why an artifact cannot be used.
#[derive(Debug)]
pub enum ArtifactError {
    /// There is no such directory.
    NotThere {
        /// The directory.
        path: PathBuf,
    },
    /// The directory has no manifest: it is none of ours, or was never finished.
    NoManifest {
        /// The directory.
        path: PathBuf,
    },
    /// The manifest was not understood.
    Manifest(JsonError),
    /// The manifest has a format that this version does not know.
    Format {
        /// The format.
        found: u32,
    },
    /// The agent in the guest speaks no protocol version that this version speaks.
    Protocol {
        /// The agent's version.
        agent_version: String,
        /// Both ranges.
        error: NoCommonVersion,
    },
    /// A file's name leads elsewhere, or stands there twice.
    Name {
        /// The name.
        name: String,
    },
    /// A file is not there.
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file is a link, a directory or a device.
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// A file was cut short, or is not the one that was recorded.
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes it should have.
        recorded: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A file could not be looked at.
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl From<JsonError> for ArtifactError {
    fn from(error: JsonError) -> Self {
        Self::Manifest(error)
    }
}

impl fmt::Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere { path } => {
                write!(f, "there is no artifact directory {}", path.display())
            }
            Self::NoManifest { path } => write!(
                f,
                "{} has no {MANIFEST}: it is not an artifact, or was never finished",
                path.display()
            ),
            Self::Manifest(error) => error.fmt(f),
            Self::Format { found } => write!(
                f,
                "the artifact has format {found} and this host-tool knows format {FORMAT}; use \
                 the host-tool that made it, or a newer one"
            ),
            Self::Protocol {
                agent_version,
                error,
            } => write!(
                f,
                "the guest in the artifact runs guest-agent {}: {error}; use a host-tool that \
                 speaks its version",
                agent_version.escape_debug()
            ),
            Self::Name { name } => {
                write!(
                    f,
                    "the artifact names a file '{}', which it must not",
                    name.escape_debug()
                )
            }
            Self::Missing { path } => {
                write!(f, "the artifact's file {} is missing", path.display())
            }
            Self::NotRegular { path } => {
                write!(
                    f,
                    "the artifact's file {} is not a regular file",
                    path.display()
                )
            }
            Self::Length {
                path,
                recorded,
                found,
            } => write!(
                f,
                "the artifact's file {} has {found} bytes instead of {recorded}: it was cut \
                 short or replaced",
                path.display()
            ),
            Self::Read { path, .. } => write!(f, "cannot look at {}", path.display()),
        }
    }
}

impl std::error::Error for ArtifactError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Manifest(error) => error.source(),
            Self::Read { source, .. } => Some(source),
            Self::NotThere { .. }
            | Self::NoManifest { .. }
            | Self::Format { .. }
            | Self::Protocol { .. }
            | Self::Name { .. }
            | Self::Missing { .. }
            | Self::NotRegular { .. }
            | Self::Length { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
