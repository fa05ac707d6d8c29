//! Why a run failed, and the kind under which it is counted.

use shared::message::{ExitStatus, Exited, FailCode};
use shared::session_client::{Fate, SessionError};

use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::fault::fault_text;
use crate::guest::session::ClientError;

/// A run that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Failures of one kind are counted together.
    pub(crate) kind: String,
    pub(crate) exit: Exit,
    /// The whole message.
    pub(crate) text: String,
}

impl Failed {
    /// `None` for exit code 0 of a command of which nothing was cut or lost.
    pub(super) fn of_end(exited: &Exited) -> Option<Self> {
        if let (Some(fault), false) = (&exited.fault, exited.timed_out) {
            return Some(Self {
                kind: "fault of the guest".to_owned(),
                exit: Exit::Guest,
                text: fault_text(fault),
            });
        }
        let (kind, exit) = match exited.status {
            _ if exited.timed_out => ("timeout".to_owned(), Exit::Deadline),
            ExitStatus::Code(0) => return None,
            ExitStatus::Code(code) => (format!("exit code {code}"), Exit::Guest),
            ExitStatus::Signal { number, .. } => (format!("signal {number}"), Exit::Guest),
        };
        let text = format!("the command ended with {kind}");
        Some(Self { kind, exit, text })
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let (kind, exit) = (kind_of(&error), error.exit());
        // A `Failure` prints the error together with its causes.
        let text = Failure::new(exit, error).to_string();
        Self { kind, exit, text }
    }
}

fn kind_of(error: &ClientError) -> String {
    let kind = match error {
        ClientError::Session { error, .. } => return session_kind(error),
        ClientError::InDoubt { error, .. } => return kind_of(error),
        ClientError::VmmEnded(_) => "VMM ended",
        ClientError::Connection(_, None | Some(Fate::NotRun)) => "no connection",
        ClientError::Connection(_, Some(Fate::Unknown | Fate::Started)) => "unknown",
        ClientError::Interrupted(_) | ClientError::Unread(_) | ClientError::HungUp(_) => {
            "interrupted"
        }
        ClientError::Lost(..) | ClientError::Output(_) | ClientError::Local(_) => "this machine",
    };
    kind.to_owned()
}

fn session_kind(error: &SessionError) -> String {
    let kind = match error {
        SessionError::Refused { fail, .. } => match fail.code {
            FailCode::NotFound => "not found",
            FailCode::NotRunnable => "not runnable",
            code => return format!("refused ({code})"),
        },
        SessionError::Deadline(Fate::NotRun) | SessionError::Unanswered => "no answer",
        SessionError::Deadline(_) | SessionError::Undelivered(_) => "timeout",
        SessionError::Version(_) | SessionError::Protocol { .. } => "protocol",
        SessionError::Superseded
        | SessionError::Forgotten
        | SessionError::ShutDown(_)
        | SessionError::Absent(_) => "unknown",
    };
    kind.to_owned()
}
