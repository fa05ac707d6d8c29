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
    /// What kind of no a FAIL is. The host decides by it what to do next.
    FailCode {
        /// No common protocol version. Final.
        Version = "version",
        /// The peer broke the protocol; the connection ends. Final.
        Protocol = "protocol",
        /// There is no such session, or it is known no more. Final.
        NoSession = "no_session",
        /// The request named another generation than the guest's. Nothing ran.
        Stale = "stale",
        /// A REBIND to another generation took over.
        Superseded = "superseded",
        /// The guest is quiescing, quiesced, or between two names. Nothing ran; may be retried.
        Refusing = "refusing",
        /// A named limit was reached. Nothing ran; may be retried.
        Limit = "limit",
        /// The command does not exist.
        NotFound = "not_found",
        /// The command exists and cannot be run.
        NotRunnable = "not_runnable",
        /// A step of the rebind failed; the guest refuses all but a new REBIND.
        Rebind = "rebind",
        /// The probe's process could not be spawned or did not end well.
        Probe = "probe",
        /// The agent has no such request.
        Unsupported = "unsupported",
        /// The agent's own defect.
        Internal = "internal",
    }
}

keywords! {
    /// What QUIESCE does about running sessions.
    Policy {
        /// They are carried into the snapshot.
        Keep = "keep",
        /// Wait until they have ended.
        Drain = "drain",
        /// Refuse the snapshot while there are any.
        Refuse = "refuse",
    }
}

keywords! {
    /// How SHUTDOWN ends the guest.
    PowerAction {
        /// Power off.
        PowerOff = "poweroff",
        /// Restart.
        Reboot = "reboot",
    }
}

keywords! {
    /// Why a connection is cut on purpose.
    SeverReason {
        /// A snapshot is about to be taken.
        Quiesce = "quiesce",
        /// The guest is getting a new name.
        Rebind = "rebind",
        /// The guest is about to end.
        Shutdown = "shutdown",
    }
}

/// A request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fail {
    /// What kind of no this is.
    pub code: FailCode,
    /// The step or phase that failed.
    pub phase: Option<String>,
    /// The system call's error number, where there was one.
    pub errno: Option<i32>,
    /// For people: what failed on which object.
    pub text: String,
}

impl Fail {
    /// A refusal with a text and nothing else.
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

/// Asks for, or is, a PONG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ping {
    /// Echoed by the answer.
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

/// Asks the guest to be silent for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quiesce {
    /// Names this request; sent again, it joins.
    pub token: Token,
    /// What to do about running sessions.
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

/// Sessions that QUIESCE waits for. Also a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Busy {
    /// The request.
    pub token: Token,
    /// Session numbers, the first [`BUSY_SESSIONS_MAX`] of them.
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

/// Takes a QUIESCE back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reopen {
    /// The request to take back.
    pub token: Token,
}

impl Reopen {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            token: read_token(object)?,
        })
    }
}

/// This connection is about to be cut, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sever {
    /// Why.
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

/// The agent's own figures.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Info {
    /// Version of the agent program.
    pub agent_version: String,
    /// The guest's name, if it has one.
    pub generation: Option<Generation>,
    /// The guest kernel's boot id.
    pub boot_id: String,
    /// State of the root machine, for people.
    pub state: String,
    /// Guest kernel release.
    pub kernel: String,
    /// Guest monotonic time since the agent started, ms.
    pub uptime_ms: u64,
    /// Sessions that run.
    pub sessions: u32,
    /// Connections that are open.
    pub connections: u32,
    /// Open file descriptors of the agent.
    pub fds: u32,
    /// Resident memory of the agent, KiB.
    pub rss_kib: u64,
    /// Children reaped that belonged to no session.
    pub orphans_reaped: u64,
    /// Named counters that only grow.
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
            orphans_reaped: object.number("orphans_reaped")?,
            counters: counters.unwrap_or_default(),
        })
    }

    /// The figures as a JSON object, for records.
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
            "connections": self.connections,
            "counters": self.counters,
            "fds": self.fds,
            "generation": self.generation,
            "kernel": clipped(&self.kernel),
            "orphans_reaped": self.orphans_reaped,
            "rss_kib": self.rss_kib,
            "sessions": self.sessions,
            "state": clipped(&self.state),
            "uptime_ms": self.uptime_ms,
        });
    }
}

/// Ends the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shutdown {
    /// How.
    pub action: PowerAction,
    /// How long sessions have between TERM and KILL, ms.
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

/// The token of a payload that has little else.
pub(super) fn read_token(object: &Object) -> Result<Token, JsonError> {
    object.parsed("token", "32 hexadecimal digits")
}

/// A payload with only a token.
pub(super) fn write_token(token: Token, out: &mut Vec<u8>) {
    object!(out, { "token": token });
}
