//! Why calls over a VMM's API socket fail.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::VmmKind;
use crate::error::Failure;
use crate::exit::Exit;
use crate::os::deadline::WaitError;

/// Why a call to a VMM failed. `request` is the call's name in the VMM's API (`PUT /snapshot/load`,
/// `migrate-incoming`).
#[derive(Debug)]
pub(crate) enum VmmError {
    /// The API socket could not be reached.
    Connect {
        socket: PathBuf,
        /// The error of the connect, or of the wait for the socket.
        source: io::Error,
    },
    /// Bytes could not be sent or received.
    Transfer { request: String, source: io::Error },
    /// The deadline passed before the answer came.
    Deadline { request: String },
    /// The VMM ended, or closed the connection, before it answered.
    Gone { request: String },
    /// The VMM refused the call.
    Refused {
        request: String,
        /// HTTP status, QMP error class, or the state that a job ended in.
        code: String,
        /// The VMM's error message.
        message: String,
        /// The message blames a file of the snapshot, not the host.
        is_artifact_fault: bool,
    },
    /// The answer cannot be understood.
    Answer {
        request: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// This program could not open or complete a state file.
    File {
        /// A verb: what was attempted.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
        /// The file belongs to a snapshot that is being loaded.
        is_artifact_fault: bool,
    },
    /// This kind of VMM cannot do that.
    Unsupported {
        kind: VmmKind,
        /// Completes "KIND cannot …".
        what: String,
    },
}

impl VmmError {
    /// A file of the snapshot is missing, cut short, damaged or of another format. Another host or
    /// another try would not help.
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

    /// The VMM process has ended or is about to. Its log tells why.
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// The deadline passed first.
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

    pub(super) fn gone(request: &str) -> Self {
        let request = request.to_owned();
        Self::Gone { request }
    }

    /// For a call that this program does not send, because the VMM would do harm.
    pub(super) fn not_paused(request: &str) -> Self {
        Self::Refused {
            request: request.to_owned(),
            code: "not sent".to_owned(),
            message: "the machine is not paused".to_owned(),
            is_artifact_fault: false,
        }
    }

    pub(super) fn wait_failed(request: &str, error: WaitError) -> Self {
        let request = request.to_owned();
        match error {
            WaitError::Deadline => Self::Deadline { request },
            WaitError::ProcessExited => Self::Gone { request },
            WaitError::Io(source) => Self::Transfer { request, source },
        }
    }

    pub(super) fn transfer_failed(request: &str, source: io::Error) -> Self {
        let request = request.to_owned();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone { request },
            _ => Self::Transfer { request, source },
        }
    }
}

impl fmt::Display for VmmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { socket, .. } => {
                write!(f, "cannot reach the VMM at {}", socket.display())
            }
            Self::Transfer { request, .. } => {
                write!(f, "cannot send or receive the bytes of {request}")
            }
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
