//! What can go wrong between this program and a VMM's API socket.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::VmmKind;
use crate::error::Failure;
use crate::exit::Exit;

/// Why a call to a VMM did not succeed. `request` names the call as its API writes it
/// (`PUT /snapshot/load`, `migrate-incoming`).
#[derive(Debug)]
pub(crate) enum VmmError {
    /// The API socket could not be reached.
    Connect {
        socket: PathBuf,
        /// What the connect, or the wait for the socket, ended with.
        source: io::Error,
    },
    /// Bytes could not be moved over the API socket.
    Transfer {
        request: String,
        /// What the socket said.
        source: io::Error,
    },
    /// The answer did not come in time.
    Deadline { request: String },
    /// The VMM ended, or hung up, before it had answered.
    Gone { request: String },
    Refused {
        request: String,
        /// HTTP status, QMP error class, or the state that a job ended in.
        code: String,
        /// The VMM's own words.
        message: String,
        /// Those words blame a file of the snapshot, not the host.
        is_artifact_fault: bool,
    },
    /// The VMM answered something that is not an answer.
    Answer {
        request: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A state file could not be opened or completed by this program.
    File {
        /// What was attempted, as a verb.
        operation: &'static str,
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
        /// The file belongs to a snapshot that is being loaded.
        is_artifact_fault: bool,
    },
    /// This VMM cannot be asked for that.
    Unsupported { kind: VmmKind, what: String },
}

impl VmmError {
    /// A file of the snapshot is missing, cut short, damaged or of another format: another host,
    /// another try, or a restart of the VMM would not help.
    #[must_use]
    pub(crate) const fn is_artifact_fault(&self) -> bool {
        match self {
            Self::Refused {
                is_artifact_fault, ..
            }
            | Self::File {
                is_artifact_fault, ..
            } => *is_artifact_fault,
            Self::Connect { .. }
            | Self::Transfer { .. }
            | Self::Deadline { .. }
            | Self::Gone { .. }
            | Self::Answer { .. }
            | Self::Unsupported { .. } => false,
        }
    }

    /// The VMM process has ended, or is about to: its log says why.
    #[must_use]
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// The deadline passed first.
    #[must_use]
    pub(crate) fn is_deadline(&self) -> bool {
        match self {
            Self::Deadline { .. } => true,
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::Transfer { .. }
            | Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::File { .. }
            | Self::Unsupported { .. } => false,
        }
    }

    pub(super) fn answer(request: &str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Answer {
            request: request.to_owned(),
            source: source.into(),
        }
    }
}

impl fmt::Display for VmmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { socket, .. } => {
                write!(f, "cannot reach the VMM at {}", socket.display())
            }
            Self::Transfer { request, .. } => write!(f, "cannot exchange bytes for {request}"),
            Self::Deadline { request } => write!(f, "no answer to {request} before the deadline"),
            Self::Gone { request } => {
                write!(f, "the VMM ended or hung up before it answered {request}")
            }
            Self::Refused {
                request,
                code,
                message,
                ..
            } => {
                write!(f, "the VMM refused {request} ({code}): {message}")
            }
            Self::Answer { request, .. } => write!(f, "unusable answer to {request}"),
            Self::File {
                operation, path, ..
            } => {
                write!(
                    f,
                    "cannot {operation} the VMM state file {}",
                    path.display()
                )
            }
            Self::Unsupported { kind, what } => write!(f, "{kind} cannot {what}"),
        }
    }
}

impl Error for VmmError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect { source, .. }
            | Self::Transfer { source, .. }
            | Self::File { source, .. } => Some(source),
            Self::Answer { source, .. } => Some(&**source),
            Self::Deadline { .. }
            | Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. } => None,
        }
    }
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        let exit = if error.is_artifact_fault() {
            Exit::Artifact
        } else if error.is_gone() {
            Exit::VmmEnded
        } else if error.is_deadline() {
            Exit::Deadline
        } else {
            Exit::Start
        };
        Self::new(exit, error)
    }
}
