//! Payloads of REBIND, PROGRESS, REBOUND, PROBE and PROBED.

use super::keyword::keywords;
use super::network::Network;
use crate::id::{Generation, Nonce};
use crate::json::{Hex, JsonError, Object, ToJson, object};
use crate::limits::HOSTNAME_LEN_MAX;
use crate::text::clipped;

/// Most steps in one REBOUND.
const STEPS_MAX: usize = 32;

keywords! {
    /// Why the guest gets a new generation.
    Cause {
        /// It was booted.
        Boot = "boot",
        /// It was loaded from a snapshot.
        Restore = "restore",
        /// It was resumed after a snapshot of it.
        Resume = "resume",
    }
}

keywords! {
    /// What REBIND does with sessions of earlier generations.
    InheritedSessions {
        /// They keep running and can be attached to.
        Keep = "keep",
        /// Their process groups are killed.
        Kill = "kill",
    }
}

keywords! {
    /// What a probe tests.
    Depth {
        /// The listener accepts and the agent's loop answers.
        Listener = "listener",
        /// The agent also spawns and reaps a process.
        Exec = "exec",
    }
}

keywords! {
    /// The steps of a rebind, in their order.
    StepName {
        /// Connections of earlier generations deregistered and closed.
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
        /// Not requested.
        Skipped = "skipped",
        /// Not permitted: the agent runs with `--unprivileged`.
        Unprivileged = "unprivileged",
        /// Failed; the guest is usable without it.
        Failed = "failed",
    }
}

/// What distinguishes one clone from another. The guest leaves missing parts unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Host name; see [`is_hostname`](Self::is_hostname).
    pub hostname: Option<String>,
    /// 32 lower-case hexadecimal digits (`machine-id(5)`).
    pub machine_id: Option<String>,
    /// Settings of its network interface.
    pub network: Network,
}

impl Identity {
    /// Whether `text` is a valid host name: 1 to [`HOSTNAME_LEN_MAX`] ASCII letters, digits, `-`
    /// and `.`, of which the first is a letter or digit.
    #[must_use]
    pub fn is_hostname(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        (1..=HOSTNAME_LEN_MAX).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with(['-', '.'])
    }

    /// Whether `text` is a valid machine id (`machine-id(5)`).
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

/// REBIND: gives the guest a generation and asks it to become usable under it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rebind {
    /// The new generation.
    pub generation: Generation,
    /// Why the guest gets it.
    pub cause: Cause,
    /// The generation of the guest when its snapshot was taken.
    pub parent: Option<Generation>,
    /// The host's wall clock, ns since 1970 UTC, read just before the write.
    pub wall_clock_ns: u64,
    /// Random bytes to credit to the kernel's pool; required if the cause is a restore.
    pub entropy: Option<[u8; 32]>,
    /// The identity to set.
    pub identity: Identity,
    /// What to do with sessions of earlier generations.
    pub sessions: InheritedSessions,
    /// Number of this attempt, from 1.
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

/// PROGRESS: the guest works on the request, so the host should wait longer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Progress {
    /// What the guest is doing, for people.
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

/// How one step of a rebind ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// Which step.
    pub name: StepName,
    /// How long it took, in µs of guest time.
    pub us: u64,
    /// Its result.
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

/// REBOUND: the listener is registered and drained under the new generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rebound {
    /// The new generation.
    pub generation: Generation,
    /// The steps in their order.
    pub steps: Vec<Step>,
    /// By how much the wall clock was set forward, ns.
    pub clock_step_ns: i64,
    /// Whether the kernel credited the host's random bytes.
    pub entropy_credited: bool,
    /// How often this agent has registered its listener.
    pub listener_serial: u64,
    /// Number of connections of earlier generations that were closed.
    pub connections_dropped: u32,
    /// Number of sessions of earlier generations that were killed.
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

/// PROBE: asks for proof that commands can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The generation that the guest must have; `None` accepts any (`host-tool probe`).
    pub generation: Option<Generation>,
    /// The answer repeats it.
    pub nonce: Nonce,
    /// What to test.
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

/// PROBED: the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probed {
    /// The guest's generation; `None` before the first REBIND.
    pub generation: Option<Generation>,
    /// The request's nonce.
    pub nonce: Nonce,
    /// How often this agent has registered its listener.
    pub listener_serial: u64,
    /// Number of connections accepted since the last rebind, this one included.
    pub accepts_since_rebind: u64,
    /// Time from spawning to reaping the probe's process, µs; `None` at depth `listener`.
    pub exec_us: Option<u64>,
    /// Whether the image may have hooks of the stage `restore`; if not, the host skips HOOKS.
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
