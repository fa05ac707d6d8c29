//! Why an artifact is refused. The messages name the file and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use shared::version::NoCommonVersion;

use super::{FORMAT, MANIFEST};
use crate::error::Failure;
use crate::exit::Exit;
use crate::os::json::JsonFileError;

/// Why an artifact cannot be used.
#[derive(Debug)]
pub(crate) enum ArtifactError {
    /// The directory does not exist.
    NotThere { path: PathBuf },
    /// The directory has no manifest: it is not an artifact, or was never finished.
    NoManifest { path: PathBuf },
    /// The manifest cannot be read or is invalid.
    Manifest(JsonFileError),
    /// The manifest has a format that this version does not know.
    Format { found: u32 },
    /// The agent in the guest and this version have no protocol version in common.
    Protocol {
        agent_version: String,
        /// Both ranges.
        error: NoCommonVersion,
    },
    /// A file's name is not a plain name, or occurs twice.
    Name { name: String },
    /// A file does not exist.
    Missing { path: PathBuf },
    /// A file is a link, a directory or a device.
    NotRegular { path: PathBuf },
    /// A drive that the guest can write to is not in the artifact.
    SharedDrive { path: PathBuf },
    /// Another user could have written it.
    NotTrusted {
        path: PathBuf,
        /// What that user could have changed, and how.
        reason: String,
    },
    /// It is another user's, and names a file outside of it.
    ForeignDrive { path: PathBuf },
    /// A file was cut short or replaced.
    Length {
        path: PathBuf,
        /// Bytes that it should have.
        recorded: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A file has other bytes than recorded.
    Digest { path: PathBuf },
    /// Digests are to be compared and none are recorded.
    NoDigests {
        /// The artifact.
        path: PathBuf,
    },
    /// The deadline passed while digests were computed.
    Deadline {
        /// The file that was being read.
        path: PathBuf,
    },
    /// A file could not be read.
    Read { path: PathBuf, source: io::Error },
}

impl From<JsonFileError> for ArtifactError {
    fn from(error: JsonFileError) -> Self {
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
                    "the manifest lists a file '{}': names must be plain and unique",
                    name.escape_debug()
                )
            }
            Self::Missing { path } => of_file(f, path, "is missing"),
            Self::NotRegular { path } => of_file(f, path, "is not a regular file"),
            Self::SharedDrive { path } => write!(
                f,
                "the guest would write to {}, which is not in the artifact: a clone may only write \
                 to a copy of its own",
                path.display()
            ),
            Self::NotTrusted { path, reason } => not_trusted(f, path, reason),
            Self::ForeignDrive { path } => foreign_drive(f, path),
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
            Self::Digest { path } => of_file(
                f,
                path,
                "has other bytes than recorded: its SHA-256 differs",
            ),
            Self::NoDigests { path } => write!(
                f,
                "{} has no SHA-256 digests; 'host-tool snapshot --sha256' records them",
                path.display()
            ),
            Self::Deadline { path } => {
                write!(f, "the time limit passed while reading {}", path.display())
            }
            Self::Read { path, .. } => write!(f, "cannot read {}", path.display()),
        }
    }
}

fn not_trusted(f: &mut fmt::Formatter<'_>, path: &Path, reason: &str) -> fmt::Result {
    write!(
        f,
        "another user could have written the artifact {}: {reason}; restore one of your own or of \
         root's, or give --trust-artifact",
        path.display()
    )
}

fn foreign_drive(f: &mut fmt::Formatter<'_>, path: &Path) -> fmt::Result {
    write!(
        f,
        "the artifact of another user names the drive {0}, which is not in it; --allow-drive {0} \
         lets its guest read that file",
        path.display()
    )
}

fn of_file(f: &mut fmt::Formatter<'_>, path: &Path, text: &str) -> fmt::Result {
    write!(f, "the artifact's file {} {text}", path.display())
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        let exit = if matches!(error, ArtifactError::Deadline { .. }) {
            Exit::Deadline
        } else {
            Exit::Artifact
        };
        Self::new(exit, error)
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
            | Self::SharedDrive { .. }
            | Self::NotTrusted { .. }
            | Self::ForeignDrive { .. }
            | Self::Length { .. }
            | Self::Digest { .. }
            | Self::NoDigests { .. }
            | Self::Deadline { .. } => None,
        }
    }
}
