//! Payload of EXITED.

use std::fmt;

use serde_json::Value;

use super::keyword::keywords;
use crate::json::{JsonError, Object, ToJson, object, value_of};
use crate::limits::SIGNAL_NUMBER_MAX;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// The signal's number, 1 to [`SIGNAL_NUMBER_MAX`].
        number: u8,
        /// Whether the kernel dumped core.
        core: bool,
    },
}

impl ExitStatus {
    /// The status as a shell reports it: the code, or 128 plus the signal's number.
    #[must_use]
    pub const fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal { number, .. } => number.saturating_add(128),
        }
    }

    /// Reads the members `code`, `signal` and `core`.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        match (object.opt_number("code")?, object.opt_number("signal")?) {
            (Some(code), None) => Ok(Self::Code(code)),
            (None, Some(number)) if (1..=SIGNAL_NUMBER_MAX).contains(&number) => Ok(Self::Signal {
                number,
                core: object.flag("core")?,
            }),
            (None, Some(_)) => Err(object.error("signal", "a signal's number, 1 to 64")),
            _ => Err(object.error("code", "given, or else \"signal\"")),
        }
    }

    /// The values of `code`, `signal` and `core`.
    pub(super) const fn parts(self) -> (Option<u8>, Option<u8>, Option<bool>) {
        match self {
            Self::Code(code) => (Some(code), None, None),
            Self::Signal { number, core } => (None, Some(number), Some(core)),
        }
    }
}

/// What the process used, as `wait4(2)` reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResourceUsage {
    /// CPU time in user mode, µs.
    pub user_us: u64,
    /// CPU time in the kernel, µs.
    pub system_us: u64,
    /// Peak resident memory, KiB.
    pub rss_max_kib: u64,
}

impl ToJson for ResourceUsage {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "rss_max_kib": self.rss_max_kib,
            "system_us": self.system_us,
            "user_us": self.user_us,
        });
    }
}

keywords! {
    /// What the guest has cut or lost of a command.
    FaultPart {
        /// Its standard input.
        Stdin = "stdin",
        /// Its standard output.
        Stdout = "stdout",
        /// Its standard error.
        Stderr = "stderr",
        /// Its process: the kernel no longer knows it, so its status is unknown.
        Process = "process",
    }
}

/// A system call of the guest failed for a command, which did not get all of its input, or not all
/// of whose output was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// What was cut or lost.
    pub part: FaultPart,
    /// Bytes of the stream before the cut; 0 for a process.
    pub offset: u64,
    /// The error number (`errno(3)`) of the system call.
    pub errno: i32,
}

impl Fault {
    /// Reads the members `part`, `offset` and `errno`.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        let errno = object.opt_signed("errno")?;
        Ok(Self {
            part: object.parsed("part", "a part of a command")?,
            offset: object.number("offset")?,
            errno: errno.ok_or_else(|| object.error("errno", "a whole number in range"))?,
        })
    }

    /// The fault of a command or hook, in the member `fault`. Older agents have none.
    pub fn opt_of(object: &Object) -> Result<Option<Self>, JsonError> {
        let fault = object.opt_object("fault")?;
        fault.as_ref().map(Self::from_object).transpose()
    }

    /// The JSON object as on the wire, for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for Fault {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "errno": self.errno,
            "offset": self.offset,
            "part": self.part,
        });
    }
}

/// What happened, without the words for the error number, which only an operating system has.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.offset;
        match self.part {
            FaultPart::Stdin => write!(f, "the guest cut standard input at byte {offset}"),
            FaultPart::Stdout => write!(f, "the guest lost standard output from byte {offset} on"),
            FaultPart::Stderr => write!(f, "the guest lost standard error from byte {offset} on"),
            FaultPart::Process => {
                f.write_str("the guest lost the command's process; how it ended is unknown")
            }
        }
    }
}

/// EXITED: how the command ended. Sent after its last byte of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Exited {
    /// The session's number.
    pub session: u64,
    /// How it ended.
    pub status: ExitStatus,
    /// Total bytes of standard output.
    pub stdout_end: u64,
    /// Total bytes of standard error.
    pub stderr_end: u64,
    /// Another process still held the command's output open when the guest stopped waiting for it.
    pub writers_alive: bool,
    /// The guest ended the command because of its `timeout_ms`.
    pub timed_out: bool,
    /// What the guest has cut or lost, at first. The status then says nothing about the command.
    pub fault: Option<Fault>,
    /// The resources that its process used.
    pub usage: ResourceUsage,
}

impl Exited {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let usage = object.object("rusage")?;
        Ok(Self {
            session: object.number("session")?,
            status: ExitStatus::from_object(object)?,
            stdout_end: object.number("stdout_end")?,
            stderr_end: object.number("stderr_end")?,
            writers_alive: object.flag("writers_alive")?,
            timed_out: object.flag("timed_out")?,
            fault: Fault::opt_of(object)?,
            usage: ResourceUsage {
                user_us: usage.number("user_us")?,
                system_us: usage.number("system_us")?,
                rss_max_kib: usage.number("rss_max_kib")?,
            },
        })
    }

    /// The JSON object as on the wire, for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for Exited {
    fn write_json(&self, out: &mut Vec<u8>) {
        let (code, signal, core) = self.status.parts();
        object!(out, {
            "code": code,
            "core": core,
            "fault": self.fault,
            "rusage": self.usage,
            "session": self.session,
            "signal": signal,
            "stderr_end": self.stderr_end,
            "stdout_end": self.stdout_end,
            "timed_out": self.timed_out,
            "writers_alive": self.writers_alive,
        });
    }
}
