//! Payloads of FAIL, PING, QUIESCE, BUSY, REOPEN, SEVER, INFO and SHUTDOWN.

use std::collections::BTreeMap;

use serde_json::Value;

use super::keyword::keywords;
use crate::id::{Generation, Token};
use crate::json::{JsonError, Object, ToJson, object, value_of};
use crate::limits::BUSY_SESSIONS_MAX;
use crate::text::clipped;

/// Most counters that one INFO carries.
const COUNTERS_MAX: usize = 256;

keywords! {
    /// Why a FAIL refuses. The host decides by it whether to retry.
    FailCode {
        /// The sides share no protocol version. Final.
        Version = "version",
        /// The peer broke the protocol; the connection ends. Final.
        Protocol = "protocol",
        /// The session does not exist, or is no longer kept. Final.
        NoSession = "no_session",
        /// The agent cannot tell whether it has run the command before: it is not the instance that
        /// the first copy of the request went to, or the result is forgotten. Nothing was started
        /// now. Final.
        Unknown = "unknown",
        /// The request was for another generation than the guest's. Nothing ran.
        Stale = "stale",
        /// A REBIND to another generation took over.
        Superseded = "superseded",
        /// The guest is quiescing, quiesced, or rebinding. Nothing ran; may be retried.
        Refusing = "refusing",
        /// A limit of the guest was reached. Nothing ran; may be retried.
        Limit = "limit",
        /// The command does not exist.
        NotFound = "not_found",
        /// The command exists and cannot be executed.
        NotRunnable = "not_runnable",
        /// A step of the rebind failed. The guest refuses all requests but a new REBIND.
        Rebind = "rebind",
        /// The probe's process could not be spawned or failed.
        Probe = "probe",
        /// The agent does not know the request.
        Unsupported = "unsupported",
        /// An internal error of the agent.
        Internal = "internal",
    }
}

keywords! {
    /// What QUIESCE does with running sessions.
    Policy {
        /// Keeps them in the snapshot.
        Keep = "keep",
        /// Waits until they have ended.
        Drain = "drain",
        /// Refuses the snapshot while any is running.
        Refuse = "refuse",
    }
}

keywords! {
    /// How SHUTDOWN ends the guest.
    PowerAction {
        /// Powers it off.
        PowerOff = "poweroff",
        /// Reboots it.
        Reboot = "reboot",
    }
}

keywords! {
    /// Why the guest cuts a connection.
    SeverReason {
        /// A snapshot is about to be taken.
        Quiesce = "quiesce",
        /// The guest is rebinding to a new generation.
        Rebind = "rebind",
        /// The guest is about to shut down.
        Shutdown = "shutdown",
    }
}

/// FAIL: the request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fail {
    /// The reason, for programs.
    pub code: FailCode,
    /// The step that failed, if the request has steps.
    pub phase: Option<String>,
    /// The error number (`errno(3)`) of the system call that failed, if one did.
    pub errno: Option<i32>,
    /// The reason, for people: what failed on which object.
    pub text: String,
}

impl Fail {
    /// A refusal with a code and a text only.
    #[must_use]
    pub fn new(code: FailCode, text: impl Into<String>) -> Self {
        Self {
            code,
            phase: None,
            errno: None,
            text: text.into(),
        }
    }

    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            code: object.parsed("code", "a failure code")?,
            phase: object.opt_clipped_text("phase")?,
            errno: object.opt_signed("errno")?,
            text: object.clipped_text("text")?,
        })
    }
}

impl ToJson for Fail {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "code": self.code,
            "errno": self.errno,
            "phase": self.phase.as_deref().map(clipped),
            "text": clipped(&self.text),
        });
    }
}

/// PING, and the PONG that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ping {
    /// The answer repeats it.
    pub nonce: u64,
}

impl Ping {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            nonce: object.number("nonce")?,
        })
    }
}

impl ToJson for Ping {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "nonce": self.nonce,
        });
    }
}

/// QUIESCE: asks the guest to be silent for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quiesce {
    /// Identifies this request. A second copy joins the first.
    pub token: Token,
    /// What to do with running sessions.
    pub policy: Policy,
    /// How long draining may take, in ms of guest time.
    pub limit_ms: u64,
}

impl Quiesce {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            token: read_token(object)?,
            policy: object.parsed("policy", "\"keep\", \"drain\" or \"refuse\"")?,
            limit_ms: object.number("limit_ms")?,
        })
    }
}

impl ToJson for Quiesce {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "limit_ms": self.limit_ms,
            "policy": self.policy,
            "token": self.token,
        });
    }
}

/// BUSY: the sessions that QUIESCE waits for. Sent once a second as a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Busy {
    /// The token of the QUIESCE.
    pub token: Token,
    /// Session numbers. Only the first [`BUSY_SESSIONS_MAX`] are sent.
    pub sessions: Vec<u64>,
}

impl Busy {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let expected = "a list of session numbers";
        Ok(Self {
            token: read_token(object)?,
            sessions: object.list("sessions", BUSY_SESSIONS_MAX, expected, Value::as_u64)?,
        })
    }
}

impl ToJson for Busy {
    fn write_json(&self, out: &mut Vec<u8>) {
        let sessions = &self.sessions[..self.sessions.len().min(BUSY_SESSIONS_MAX)];
        object!(out, {
            "sessions": sessions,
            "token": self.token,
        });
    }
}

/// REOPEN: takes a QUIESCE back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reopen {
    /// The token of the QUIESCE.
    pub token: Token,
}

impl Reopen {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            token: read_token(object)?,
        })
    }
}

/// SEVER: the guest is about to cut this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sever {
    /// Why the guest cuts it.
    pub reason: SeverReason,
}

impl Sever {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            reason: object.parsed("reason", "a reason")?,
        })
    }
}

impl ToJson for Sever {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "reason": self.reason,
        });
    }
}

/// INFO: the agent's figures.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Info {
    /// The agent's program version.
    pub agent_version: String,
    /// The guest's generation; `None` before the first REBIND.
    pub generation: Option<Generation>,
    /// The guest kernel's boot id (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The agent's state, for people.
    pub state: String,
    /// The guest kernel's release (`uname(2)`).
    pub kernel: String,
    /// Time since the agent started, ms of the guest's monotonic clock.
    pub uptime_ms: u64,
    /// Number of running sessions.
    pub sessions: u32,
    /// Number of open connections.
    pub connections: u32,
    /// Number of open file descriptors of the agent.
    pub fds: u32,
    /// Resident memory of the agent, KiB.
    pub rss_kib: u64,
    /// Whether each session has a cgroup of its own. False from a guest that does not say.
    pub cgroup: bool,
    /// Whether sessions can have limits of memory and processes. False from a guest that does not
    /// say.
    pub limits: bool,
    /// Number of reaped children that did not belong to a session.
    pub orphans_reaped: u64,
    /// Counters that only grow, by name. At most 256.
    pub counters: BTreeMap<String, u64>,
}

impl Info {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let counter = |(name, value): (&String, &Value)| Some((name.clone(), value.as_u64()?));
        let counters = object.opt("counters", "an object of whole numbers", |value| {
            let map = value.as_object().filter(|map| map.len() <= COUNTERS_MAX)?;
            map.iter().map(counter).collect()
        })?;
        Ok(Self {
            agent_version: object.clipped_text("agent_version")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            boot_id: object.clipped_text("boot_id")?,
            state: object.clipped_text("state")?,
            kernel: object.clipped_text("kernel")?,
            uptime_ms: object.number("uptime_ms")?,
            sessions: object.number("sessions")?,
            connections: object.number("connections")?,
            fds: object.number("fds")?,
            rss_kib: object.number("rss_kib")?,
            cgroup: object.opt_flag("cgroup")?,
            limits: object.opt_flag("limits")?,
            orphans_reaped: object.number("orphans_reaped")?,
            counters: counters.unwrap_or_default(),
        })
    }

    /// The JSON object as on the wire, for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for Info {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "agent_version": clipped(&self.agent_version),
            "boot_id": clipped(&self.boot_id),
            "cgroup": self.cgroup,
            "connections": self.connections,
            "counters": self.counters,
            "fds": self.fds,
            "generation": self.generation,
            "kernel": clipped(&self.kernel),
            "limits": self.limits,
            "orphans_reaped": self.orphans_reaped,
            "rss_kib": self.rss_kib,
            "sessions": self.sessions,
            "state": clipped(&self.state),
            "uptime_ms": self.uptime_ms,
        });
    }
}

/// SHUTDOWN: ends the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shutdown {
    /// How to end it.
    pub action: PowerAction,
    /// How long sessions have between SIGTERM and SIGKILL, ms.
    pub grace_ms: u64,
}

impl Shutdown {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            action: object.parsed("action", "\"poweroff\" or \"reboot\"")?,
            grace_ms: object.number("grace_ms")?,
        })
    }
}

impl ToJson for Shutdown {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "action": self.action,
            "grace_ms": self.grace_ms,
        });
    }
}

/// Reads the member `token`.
pub(super) fn read_token(object: &Object) -> Result<Token, JsonError> {
    object.parsed("token", "32 hexadecimal digits")
}

/// Writes a payload whose only member is `token`.
pub(super) fn write_token(token: Token, out: &mut Vec<u8>) {
    object!(out, { "token": token });
}
