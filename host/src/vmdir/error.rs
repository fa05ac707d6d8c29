//! What can be wrong with the state directory or a VM in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Failure;
use crate::exit::Exit;
use crate::os::json::JsonFileError;
use crate::values::VmName;

/// Environment variable that names the state directory.
pub(super) const STATE_DIR_VARIABLE: &str = "HOST_TOOL_STATE_DIR";

/// What is wrong with the state directory or a VM in it.
#[derive(Debug)]
pub enum VmDirError {
    /// There is no place to keep VMs.
    NoStateDir,
    /// The directory belongs to someone else, or others may write to it.
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// How it is not private.
        reason: &'static str,
    },
    /// What has a VM's name is a link or a file.
    NoDirectory {
        /// The link or file.
        path: PathBuf,
    },
    /// The name is taken.
    NameInUse {
        /// The name.
        name: VmName,
    },
    /// There is no VM of that name.
    NoSuchVm {
        /// The name.
        name: VmName,
        /// Where it was looked for.
        state_dir: PathBuf,
    },
    /// The VM has ended.
    NotRunning {
        /// The name.
        name: VmName,
        /// How it ended.
        how: String,
    },
    /// Another command is changing the VM, or is not finished with making it.
    Busy {
        /// The name.
        name: VmName,
    },
    /// A file or directory could not be handled.
    File {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A file was not understood.
    Json(JsonFileError),
}

impl VmDirError {
    /// The error of an operation, named by its verb, on a file.
    #[must_use]
    pub fn file(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

impl fmt::Display for VmDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStateDir => write!(
                f,
                "no place to keep VMs: set XDG_RUNTIME_DIR or {STATE_DIR_VARIABLE}, or give \
                 --state-dir"
            ),
            Self::NotPrivate { path, reason } => write!(
                f,
                "the directory {} is not safe: {reason}; run 'chmod 700' on it as its owner, or \
                 name another state directory with --state-dir",
                path.display()
            ),
            Self::NoDirectory { path } => write!(
                f,
                "{} has a VM's name and is not a directory but a link or a file; take it away",
                path.display()
            ),
            Self::NameInUse { name } => write!(
                f,
                "the name '{name}' is in use; choose another, or remove that VM with \
                 'host-tool rm {name}'"
            ),
            Self::NoSuchVm { name, state_dir } => {
                write!(
                    f,
                    "there is no VM '{name}' in {}; see 'host-tool ls'",
                    state_dir.display()
                )
            }
            Self::NotRunning { name, how } => {
                write!(
                    f,
                    "the VM '{name}' has ended ({how}); see 'host-tool inspect {name}'"
                )
            }
            Self::Busy { name } => write!(
                f,
                "another host-tool command was changing the VM '{name}' all the time; try again, \
                 or give a longer --timeout"
            ),
            Self::File {
                operation, path, ..
            } => write!(f, "cannot {operation} {}", path.display()),
            Self::Json(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for VmDirError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Json(error) => error.source(),
            Self::NoStateDir
            | Self::NotPrivate { .. }
            | Self::NoDirectory { .. }
            | Self::NameInUse { .. }
            | Self::NoSuchVm { .. }
            | Self::NotRunning { .. }
            | Self::Busy { .. } => None,
        }
    }
}

impl From<JsonFileError> for VmDirError {
    fn from(error: JsonFileError) -> Self {
        Self::Json(error)
    }
}

impl From<VmDirError> for Failure {
    fn from(error: VmDirError) -> Self {
        let exit = match error {
            VmDirError::NoStateDir
            | VmDirError::NotPrivate { .. }
            | VmDirError::NoDirectory { .. }
            | VmDirError::NameInUse { .. }
            | VmDirError::NoSuchVm { .. } => Exit::Usage,
            VmDirError::NotRunning { .. } => Exit::VmmEnded,
            VmDirError::Busy { .. } => Exit::Deadline,
            VmDirError::File { .. } | VmDirError::Json(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

/// The error of a file operation, for `map_err`.
pub(super) fn file_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> VmDirError {
    let path = path.to_owned();
    move |source| VmDirError::file(operation, &path, source)
}
