//! Payloads of ATTACH, SIGNAL, EXIT_ACK and SESSIONS.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::exited::Exited;
use super::keyword::{UnknownKeyword, keywords};
use crate::id::{ExecId, Generation};
use crate::json::{JsonError, Object, ToJson, encoded_len, object, value_of};
use crate::limits::{COMMAND_TEXT_LEN_MAX, SESSIONS_PER_FRAME_MAX, SIGNAL_NUMBER_MAX};
use crate::text::clipped_to;

keywords! {
    /// What a connection that attaches wants of the session.
    AttachMode {
        /// All of it: output that it acknowledges, and standard input. An earlier owner is cut.
        Own = "own",
        /// A copy of the output. It acknowledges nothing, and what it misses is a GAP.
        Observe = "observe",
        /// The end only.
        Wait = "wait",
    }
}

keywords! {
    /// Where a session stands.
    SessionState {
        /// Its process has been asked for, or will be after the pause before a restart.
        Starting = "starting",
        /// It runs.
        Running = "running",
        /// It has ended, and its result is kept.
        Exited = "exited",
    }
}

/// The name of the session that the image asks for.
pub const WORKLOAD: &str = "workload";

/// Which session is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionRef {
    /// The one that the image asks for.
    Workload,
    /// The one that this EXEC started.
    Exec(ExecId),
    /// The one with this number in the guest.
    Number(u64),
}

impl fmt::Display for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload => f.write_str(WORKLOAD),
            Self::Exec(id) => id.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for SessionRef {
    type Err = UnknownKeyword;

    /// `workload`, a number, or 32 hexadecimal digits. The longest number has 20 digits.
    fn from_str(text: &str) -> Result<Self, UnknownKeyword> {
        if text == WORKLOAD {
            return Ok(Self::Workload);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Exec(id));
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if is_number => Ok(Self::Number(number)),
            _ => Err(UnknownKeyword),
        }
    }
}

/// Attaches to a session that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attach {
    /// Which.
    pub session: SessionRef,
    /// The name that the guest must have; `None` takes whatever name it has.
    pub generation: Option<Generation>,
    /// What is wanted of it.
    pub mode: AttachMode,
    /// First byte of standard output wanted; `None`: the first one that is there. From an owner it
    /// acknowledges what comes before it.
    pub stdout_from: Option<u64>,
    /// The same for standard error.
    pub stderr_from: Option<u64>,
}

impl Attach {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            session: object.parsed("session", EXPECTED_SESSION)?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            mode: object.parsed("mode", "own, observe or wait")?,
            stdout_from: object.opt_number("stdout_from")?,
            stderr_from: object.opt_number("stderr_from")?,
        })
    }
}

impl ToJson for Attach {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "generation": self.generation,
            "mode": self.mode,
            "session": self.session.to_string(),
            "stderr_from": self.stderr_from,
            "stdout_from": self.stdout_from,
        });
    }
}

const EXPECTED_SESSION: &str = "a session's number, its exec id, or \"workload\"";

/// Sends a signal to a session's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal {
    /// To which session; `None`: the one that this connection has attached to.
    pub session: Option<SessionRef>,
    /// Number of the signal (`signal(7)`), 1 to [`SIGNAL_NUMBER_MAX`].
    pub number: u8,
}

impl Signal {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let number = object.number("signal")?;
        if !(1..=SIGNAL_NUMBER_MAX).contains(&number) {
            return Err(object.error("signal", "a signal's number, 1 to 64"));
        }
        Ok(Self {
            session: object.opt_parsed("session", EXPECTED_SESSION)?,
            number,
        })
    }
}

impl ToJson for Signal {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "session": self.session.map(|session| session.to_string()),
            "signal": self.number,
        });
    }
}

/// The end was taken note of: the session's output and its place need not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitAck {
    /// The session's number.
    pub session: u64,
}

impl ExitAck {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            session: object.number("session")?,
        })
    }
}

impl ToJson for ExitAck {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "session": self.session,
        });
    }
}

/// Asks for the sessions there are, those with higher numbers than `after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionsRequest {
    /// The last number of the answer before; 0 at first. Sessions are numbered from 1.
    pub after: u64,
}

impl SessionsRequest {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            after: object.number("after")?,
        })
    }
}

impl ToJson for SessionsRequest {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "after": self.after,
        });
    }
}

/// Sessions that run, and ended ones whose result is kept, by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sessions {
    /// At most [`SESSIONS_PER_FRAME_MAX`], and no more than fit a frame.
    pub sessions: Vec<SessionInfo>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

impl Sessions {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let list = object.objects("sessions", SESSIONS_PER_FRAME_MAX)?;
        Ok(Self {
            sessions: list
                .iter()
                .map(SessionInfo::from_object)
                .collect::<Result<_, _>>()?,
            more: object.flag("more")?,
        })
    }
}

impl ToJson for Sessions {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "more": self.more,
            "sessions": self.sessions,
        });
    }
}

/// What is known of one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionInfo {
    /// Its number in this guest.
    pub session: u64,
    /// The request that started it; the workload has none.
    pub id: Option<ExecId>,
    /// Where it stands.
    pub state: SessionState,
    /// Process id, and that of its process group; 0 while there is none.
    pub pid: u32,
    /// Since it was asked for, ms of the guest's monotonic time.
    pub age_ms: u64,
    /// The guest's name when it was asked for.
    pub generation: Option<Generation>,
    /// Its arguments, with spaces between them, cut to [`COMMAND_TEXT_LEN_MAX`] bytes.
    pub command: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it runs on without any client.
    pub detached: bool,
    /// Connections that are attached.
    pub attached: u32,
    /// Times that it was started again. Only the workload is.
    pub restarts: u32,
    /// Bytes of standard output so far.
    pub stdout_end: u64,
    /// Bytes of standard error so far.
    pub stderr_end: u64,
    /// How it ended, once it has.
    pub exited: Option<Exited>,
}

impl SessionInfo {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let exited = object
            .opt_object("exited")?
            .as_ref()
            .map(Exited::from_object);
        Ok(Self {
            session: object.number("session")?,
            id: object.opt_parsed("id", "32 hexadecimal digits")?,
            state: object.parsed("state", "starting, running or exited")?,
            pid: object.number("pid")?,
            age_ms: object.number("age_ms")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            command: clipped_to(&object.text("command")?, COMMAND_TEXT_LEN_MAX).to_owned(),
            tty: object.flag("tty")?,
            detached: object.flag("detached")?,
            attached: object.number("attached")?,
            restarts: object.number("restarts")?,
            stdout_end: object.number("stdout_end")?,
            stderr_end: object.number("stderr_end")?,
            exited: exited.transpose()?,
        })
    }

    /// Bytes that it takes in a list of sessions.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        encoded_len(self)
    }

    /// The session as a JSON object, for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for SessionInfo {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "age_ms": self.age_ms,
            "attached": self.attached,
            "command": clipped_to(&self.command, COMMAND_TEXT_LEN_MAX),
            "detached": self.detached,
            "exited": self.exited,
            "generation": self.generation,
            "id": self.id,
            "pid": self.pid,
            "restarts": self.restarts,
            "session": self.session,
            "state": self.state,
            "stderr_end": self.stderr_end,
            "stdout_end": self.stdout_end,
            "tty": self.tty,
        });
    }
}
