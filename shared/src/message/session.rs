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
    /// How a connection attaches to a session.
    AttachMode {
        /// As the owner: it acknowledges output and sends standard input. The guest cuts an earlier
        /// owner.
        Own = "own",
        /// It gets a copy of the output without acknowledging it. Bytes that it is too slow for
        /// become a GAP.
        Observe = "observe",
        /// It gets EXITED only.
        Wait = "wait",
    }
}

keywords! {
    /// The state of a session.
    SessionState {
        /// Its process is being started, or is waiting for its restart.
        Starting = "starting",
        /// Its process is running.
        Running = "running",
        /// Its process has ended, and the guest keeps the result.
        Exited = "exited",
    }
}

/// The keyword for the image's workload session.
pub const WORKLOAD: &str = "workload";

/// A reference to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionRef {
    /// The image's workload.
    Workload,
    /// The session that the EXEC with this id started.
    Exec(ExecId),
    /// The session with this number in the guest.
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

    /// Parses `workload`, a number or 32 hexadecimal digits. A number has at most 20 digits, so it
    /// is never taken for an id.
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

/// ATTACH: attaches to an existing session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attach {
    /// The session.
    pub session: SessionRef,
    /// The generation that the guest must have; `None` accepts any.
    pub generation: Option<Generation>,
    /// How to attach.
    pub mode: AttachMode,
    /// Offset of the first wanted byte of standard output; `None` is the first byte in the ring. An
    /// owner's offset acknowledges everything before it.
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

/// SIGNAL: sends a signal to a session's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal {
    /// The session; `None` is the one that this connection is attached to.
    pub session: Option<SessionRef>,
    /// The signal's number (`signal(7)`), 1 to [`SIGNAL_NUMBER_MAX`].
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

/// EXIT_ACK: the host has EXITED, so the guest can forget the session.
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

/// SESSIONS of the host: asks for the sessions with numbers above `after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionsRequest {
    /// The last number of the previous answer; 0 at first. Session numbers begin at 1.
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

/// SESSIONS of the guest: running sessions, and ended ones whose result it keeps, by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sessions {
    /// At most [`SESSIONS_PER_FRAME_MAX`], and only as many as fit a frame.
    pub sessions: Vec<SessionInfo>,
    /// Whether there are more after the last one.
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

/// One session in a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionInfo {
    /// Its number in this guest, from 1.
    pub session: u64,
    /// The id of the EXEC that started it; `None` for the workload.
    pub id: Option<ExecId>,
    /// Its state.
    pub state: SessionState,
    /// Its process and process group id; 0 while it has no process.
    pub pid: u32,
    /// Time since it was requested, ms of the guest's monotonic clock.
    pub age_ms: u64,
    /// The guest's generation when it was requested.
    pub generation: Option<Generation>,
    /// Its arguments, separated by spaces, cut to [`COMMAND_TEXT_LEN_MAX`] bytes.
    pub command: String,
    /// Whether its standard streams are a terminal.
    pub tty: bool,
    /// Whether it keeps running without a client.
    pub detached: bool,
    /// Number of attached connections.
    pub attached: u32,
    /// Number of restarts. Only the workload is restarted.
    pub restarts: u32,
    /// Whether it has a cgroup of its own, so that no process of it outlives an end that it was
    /// told. False from a guest that does not say.
    pub cgroup: bool,
    /// Bytes of standard output so far.
    pub stdout_end: u64,
    /// Bytes of standard error so far.
    pub stderr_end: u64,
    /// How it ended; `None` while it runs.
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
            cgroup: object.opt_flag("cgroup")?,
            stdout_end: object.number("stdout_end")?,
            stderr_end: object.number("stderr_end")?,
            exited: exited.transpose()?,
        })
    }

    /// Number of bytes that it takes in SESSIONS.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        encoded_len(self)
    }

    /// The JSON object as on the wire, for records.
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
            "cgroup": self.cgroup,
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
