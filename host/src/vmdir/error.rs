//! Errors of the state directory and of the VMs in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Failure;
use crate::exit::Exit;
use crate::os::json::JsonFileError;
use crate::os::mark::MARK;
use crate::os::trust::{Fault, TrustError};
use crate::values::VmName;

/// Environment variable that names the state directory.
pub(super) const STATE_DIR_VARIABLE: &str = "HOST_TOOL_STATE_DIR";

#[derive(Debug)]
pub(crate) enum VmDirError {
    /// No option or variable names a state directory.
    NoStateDir,
    /// The state directory does not exist, or another user could change what is in it.
    StateDir {
        path: PathBuf,
        error: TrustError,
    },
    /// Another user owns a VM's directory or may write to it.
    NotPrivate {
        path: PathBuf,
        reason: &'static str,
    },
    /// A directory has a VM's name and was not made by this program.
    NotMarked {
        path: PathBuf,
    },
    /// A VM's directory has an entry that is not a VM's.
    Foreign {
        path: PathBuf,
        name: String,
    },
    /// A link or a file has a VM's name.
    NotADirectory {
        path: PathBuf,
    },
    NameInUse {
        name: VmName,
    },
    NoSuchVm {
        name: VmName,
        state_dir: PathBuf,
    },
    /// The VM has ended.
    NotRunning {
        name: VmName,
        how: String,
    },
    /// Another command is changing or creating the VM.
    Busy {
        name: VmName,
    },
    File {
        /// A verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A file could not be read or parsed.
    Json(JsonFileError),
}

impl VmDirError {
    pub(super) fn not_private(path: &Path, fault: Fault) -> Self {
        Self::NotPrivate {
            path: path.to_owned(),
            reason: fault.reason(),
        }
    }

    /// `operation` is a verb.
    pub(crate) fn file(operation: &'static str, path: &Path, source: io::Error) -> Self {
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
            Self::StateDir { path, error } => state_dir(f, path, error),
            Self::NotPrivate { path, reason } => write!(
                f,
                "the directory {} is not safe: {reason}; run 'chmod 700' on it as its owner, or \
                 choose another state directory with --state-dir",
                path.display()
            ),
            Self::NotMarked { path } => write!(
                f,
                "{} has a VM's name, but not the file '{MARK}' of a directory that host-tool \
                 made: it is left alone; move it away, or choose another name",
                path.display()
            ),
            Self::Foreign { path, name } => write!(
                f,
                "{} is not removed: host-tool did not make '{}' in it; move that away and try \
                 again",
                path.display(),
                name.escape_debug()
            ),
            Self::NotADirectory { path } => write!(
                f,
                "{} has a VM's name, but is a link or a file and not a directory; remove it",
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
                "another host-tool command is still changing the VM '{name}'; try again, or give \
                 a longer --timeout"
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
            Self::StateDir { error, .. } => error.source(),
            Self::NoStateDir
            | Self::NotPrivate { .. }
            | Self::NotMarked { .. }
            | Self::Foreign { .. }
            | Self::NotADirectory { .. }
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
        let exit = match &error {
            VmDirError::StateDir { error, .. } if is_fault_of_machine(error) => Exit::Internal,
            VmDirError::NoStateDir
            | VmDirError::StateDir { .. }
            | VmDirError::NotPrivate { .. }
            | VmDirError::NotMarked { .. }
            | VmDirError::Foreign { .. }
            | VmDirError::NotADirectory { .. }
            | VmDirError::NameInUse { .. }
            | VmDirError::NoSuchVm { .. } => Exit::Usage,
            VmDirError::NotRunning { .. } => Exit::VmmEnded,
            VmDirError::Busy { .. } => Exit::Deadline,
            VmDirError::File { .. } | VmDirError::Json(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

/// Why the state directory cannot be used, and what to do.
fn state_dir(f: &mut fmt::Formatter<'_>, state_dir: &Path, error: &TrustError) -> fmt::Result {
    let (path, fault) = match error {
        TrustError::Unsafe { path, fault } => (path, *fault),
        error if error.is_not_found() => {
            let path = state_dir.display();
            return write!(f, "there is no state directory {path}");
        }
        error => return write!(f, "{error}"),
    };
    let (shown, reason) = (path.display(), fault.reason());
    let is_on_the_way = path != state_dir;
    write!(f, "the directory {shown}")?;
    if is_on_the_way {
        write!(f, ", on the way to {},", state_dir.display())?;
    }
    write!(f, " is not safe: {reason}; ")?;
    match fault {
        Fault::Mode if is_on_the_way => write!(f, "run 'chmod go-w {shown}' as its owner, or ")?,
        Fault::Owner | Fault::Mode if !is_on_the_way => {
            f.write_str("run 'chmod 700' on it as its owner, or ")?;
        }
        Fault::Owner | Fault::Mode | Fault::Link | Fault::NotADirectory => {}
    }
    f.write_str("choose another state directory with --state-dir")
}

/// Whether the state directory could not be opened for a reason that another one may not help.
fn is_fault_of_machine(error: &TrustError) -> bool {
    matches!(error, TrustError::Io { .. }) && !error.is_not_found()
}

/// [`VmDirError::file`] for `map_err`.
pub(super) fn file_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> VmDirError {
    let path = path.to_owned();
    move |source| VmDirError::file(operation, &path, source)
}
