//! Payloads of REBIND, PROGRESS, REBOUND, PROBE and PROBED.

use super::keyword::keywords;
use super::network::Network;
use crate::id::{Generation, Nonce};
use crate::json::{Hex, JsonError, Object, ToJson, object};
use crate::limits::HOSTNAME_LEN_MAX;
use crate::text::clipped;

/// Most steps that one REBOUND reports.
const STEPS_MAX: usize = 32;

keywords! {
    /// Why the guest gets a new name.
    Cause {
        /// It was booted.
        Boot = "boot",
        /// It was loaded from a snapshot.
        Restore = "restore",
        /// It goes on after a snapshot was taken of it.
        Resume = "resume",
    }
}

keywords! {
    /// What becomes of the sessions that an earlier generation started.
    InheritedSessions {
        /// They go on and can be attached to.
        Keep = "keep",
        /// Their process groups are killed.
        Kill = "kill",
    }
}

keywords! {
    /// How far a probe goes.
    Depth {
        /// The listener accepts and the loop answers.
        Listener = "listener",
        /// A process was spawned and reaped as well.
        Exec = "exec",
    }
}

keywords! {
    /// One step of a rebind, in the order in which they happen.
    StepName {
        /// Connections of older generations deregistered and closed.
        Connections = "connections",
        /// The listener taken out of the poll set, put back, and drained.
        Listener = "listener",
        /// The wall clock set.
        Clock = "clock",
        /// The kernel's random pool credited and reseeded.
        Entropy = "entropy",
        /// Host name, machine id and network set.
        Identity = "identity",
    }
}

keywords! {
    /// How a step ended.
    StepResult {
        /// Done.
        Done = "done",
        /// Not asked for.
        Skipped = "skipped",
        /// Not permitted to this process, which runs without privileges on purpose.
        Unprivileged = "unprivileged",
        /// Not done; the guest goes on without it.
        Failed = "failed",
    }
}

/// What tells one clone from another. Missing parts are left as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// 1 to [`HOSTNAME_LEN_MAX`] bytes, letters, digits, `-` and `.`.
    pub hostname: Option<String>,
    /// 32 lower-case hexadecimal digits (`machine-id(5)`).
    pub machine_id: Option<String>,
    /// Its network interface.
    pub network: Network,
}

impl Identity {
    /// Whether `text` can be a host name.
    #[must_use]
    pub fn is_hostname(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        (1..=HOSTNAME_LEN_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with(['-', '.'])
    }

    /// Whether `text` can be a machine id.
    #[must_use]
    pub fn is_machine_id(text: &str) -> bool {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        text.len() == 32 && text.bytes().all(digit)
    }

    /// Reads the members `hostname`, `machine_id` and `network`.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        let hostname = object.opt_text("hostname")?;
        if !hostname.as_deref().is_none_or(Self::is_hostname) {
            return Err(object.error(
                "hostname",
                "a host name of at most 64 letters, digits, - or .",
            ));
        }
        let machine_id = object.opt_text("machine_id")?;
        if !machine_id.as_deref().is_none_or(Self::is_machine_id) {
            return Err(object.error("machine_id", "32 lower-case hexadecimal digits"));
        }
        let network = object
            .opt_object("network")?
            .as_ref()
            .map(Network::from_object);
        Ok(Self {
            hostname,
            machine_id,
            network: network.transpose()?.unwrap_or_default(),
        })
    }
}

impl ToJson for Identity {
    fn write_json(&self, out: &mut Vec<u8>) {
        let network = &self.network;
        object!(out, {
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "network": (*network != Network::default()).then_some(network),
        });
    }
}

/// Names the guest and asks it to become usable under that name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rebind {
    /// The new name.
    pub generation: Generation,
    /// Why there is one.
    pub cause: Cause,
    /// The name that the snapshot or the source had.
    pub parent: Option<Generation>,
    /// The host's wall clock, ns since 1970 UTC, taken just before the write.
    pub wall_clock_ns: u64,
    /// Random bytes to credit; always there when the cause is a restore.
    pub entropy: Option<[u8; 32]>,
    /// What tells this clone from its siblings.
    pub identity: Identity,
    /// What becomes of inherited sessions.
    pub sessions: InheritedSessions,
    /// Which attempt of the host this is, from 1.
    pub attempt: u32,
}

impl Rebind {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let cause = object.parsed("cause", "\"boot\", \"restore\" or \"resume\"")?;
        let entropy = object.opt_hex("entropy", "64 hexadecimal digits")?;
        if cause == Cause::Restore && entropy.is_none() {
            return Err(object.error("entropy", "given for a restore"));
        }
        let identity = object
            .opt_object("identity")?
            .as_ref()
            .map(Identity::from_object);
        Ok(Self {
            generation: object.parsed("generation", "32 hexadecimal digits")?,
            cause,
            parent: object.opt_parsed("parent", "32 hexadecimal digits")?,
            wall_clock_ns: object.number("wall_clock_ns")?,
            entropy,
            identity: identity.transpose()?.unwrap_or_default(),
            sessions: object.parsed("sessions", "\"keep\" or \"kill\"")?,
            attempt: object.number("attempt")?,
        })
    }
}

impl ToJson for Rebind {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "attempt": self.attempt,
            "cause": self.cause,
            "entropy": self.entropy.as_ref().map(|bytes| Hex(bytes)),
            "generation": self.generation,
            "identity": self.identity,
            "parent": self.parent,
            "sessions": self.sessions,
            "wall_clock_ns": self.wall_clock_ns,
        });
    }
}

/// A step has begun; whoever waits may go on waiting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    /// What has begun, for people.
    pub step: String,
}

impl Progress {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            step: object.clipped_text("step")?,
        })
    }
}

impl ToJson for Progress {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "step": clipped(&self.step),
        });
    }
}

/// One step of a rebind, as it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// Which step.
    pub name: StepName,
    /// How long it took, in µs of guest time.
    pub us: u64,
    /// How it ended.
    pub result: StepResult,
}

impl ToJson for Step {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "name": self.name,
            "result": self.result,
            "us": self.us,
        });
    }
}

/// The guest is rebound: the listener is registered and drained under the new name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rebound {
    /// The name.
    pub generation: Generation,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// How far the wall clock was moved, ns; positive is forward.
    pub clock_step_ns: i64,
    /// Whether the kernel took the host's bytes with credit.
    pub entropy_credited: bool,
    /// How often the listener has been registered in the life of this agent.
    pub listener_serial: u64,
    /// Connections closed because they were of an older generation.
    pub connections_dropped: u32,
    /// Sessions ended because they were of an older generation.
    pub sessions_dropped: u32,
}

impl Rebound {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let read_step = |step: &Object| -> Result<Step, JsonError> {
            Ok(Step {
                name: step.parsed("name", "a step's name")?,
                us: step.number("us")?,
                result: step.parsed("result", "a step's result")?,
            })
        };
        let steps = object.objects("steps", STEPS_MAX)?;
        Ok(Self {
            generation: object.parsed("generation", "32 hexadecimal digits")?,
            steps: steps.iter().map(read_step).collect::<Result<_, _>>()?,
            clock_step_ns: object.opt_signed("clock_step_ns")?.unwrap_or(0),
            entropy_credited: object.flag("entropy_credited")?,
            listener_serial: object.number("listener_serial")?,
            connections_dropped: object.number("connections_dropped")?,
            sessions_dropped: object.number("sessions_dropped")?,
        })
    }
}

impl ToJson for Rebound {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "clock_step_ns": self.clock_step_ns,
            "connections_dropped": self.connections_dropped,
            "entropy_credited": self.entropy_credited,
            "generation": self.generation,
            "listener_serial": self.listener_serial,
            "sessions_dropped": self.sessions_dropped,
            "steps": self.steps,
        });
    }
}

/// Asks for proof that commands can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The name the guest must have; `None` takes whatever name it has (`host-tool probe`).
    pub generation: Option<Generation>,
    /// To be echoed.
    pub nonce: Nonce,
    /// How far to go.
    pub depth: Depth,
}

impl Probe {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            nonce: object.parsed("nonce", "32 hexadecimal digits")?,
            depth: object.parsed("depth", "\"listener\" or \"exec\"")?,
        })
    }
}

impl ToJson for Probe {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "depth": self.depth,
            "generation": self.generation,
            "nonce": self.nonce,
        });
    }
}

/// The proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probed {
    /// The guest's name.
    pub generation: Option<Generation>,
    /// The nonce of the request.
    pub nonce: Nonce,
    /// How often the listener has been registered in the life of this agent.
    pub listener_serial: u64,
    /// Connections accepted since the last rebind, this one included.
    pub accepts_since_rebind: u64,
    /// Spawn to reap of the no-op process, µs; `None` at depth `listener`.
    pub exec_us: Option<u64>,
    /// Whether the image has hooks for after a restore, as far as the agent knows.
    pub hooks: bool,
}

impl Probed {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            nonce: object.parsed("nonce", "32 hexadecimal digits")?,
            listener_serial: object.number("listener_serial")?,
            accepts_since_rebind: object.number("accepts_since_rebind")?,
            exec_us: object.opt_number("exec_us")?,
            hooks: object.opt_flag("hooks")?,
        })
    }
}

impl ToJson for Probed {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "accepts_since_rebind": self.accepts_since_rebind,
            "exec_us": self.exec_us,
            "generation": self.generation,
            "hooks": self.hooks,
            "listener_serial": self.listener_serial,
            "nonce": self.nonce,
        });
    }
}
