//! Payloads of EXEC, STARTED and ATTACHED.

use std::fmt;
use std::num::NonZeroU64;

use serde_json::Value;

use super::stream::{OutputPolicy, TtySize, Window};
use crate::frame::FrameKind;
use crate::id::{ExecId, Generation, Instance};
use crate::json::{Bytes, JsonError, Object, ToJson, encoded_len, object, value_to_bytes};
use crate::limits::{EXEC_BYTES_MAX, EXEC_STRINGS_MAX};

/// An argument, path or environment entry: bytes without NUL, usually UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct ByteString(Vec<u8>);

impl ByteString {
    /// `None` if one of the bytes is NUL.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        (!bytes.contains(&0)).then_some(Self(bytes))
    }

    /// Refuses NUL: a C string cannot contain it, and Linux would silently cut the argument there.
    fn from_value(value: &Value) -> Option<Self> {
        value_to_bytes(value).and_then(Self::new)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Display for ByteString {
    /// Escapes what is not printable, because any client may have sent it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).escape_debug().fmt(f)
    }
}

impl ToJson for ByteString {
    fn write_json(&self, out: &mut Vec<u8>) {
        Bytes(&self.0).write_json(out);
    }
}

/// The guest to which the first copy of an EXEC was sent, as its HELLO described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Which run of the agent it was.
    pub instance: Instance,
    /// Its generation. A clone that was restored meanwhile did not live through it. `None` is not
    /// compared.
    pub generation: Option<Generation>,
    /// How many sessions it had begun: the session of the first copy has a higher number. 0 if that
    /// is not known.
    pub sessions_begun: u64,
}

impl Origin {
    fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            instance: object.parsed("instance", "32 hexadecimal digits")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            sessions_begun: object.opt_number("sessions_begun")?.unwrap_or(0),
        })
    }
}

impl ToJson for Origin {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "generation": self.generation,
            "instance": self.instance,
            "sessions_begun": self.sessions_begun,
        });
    }
}

/// EXEC: runs a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Exec {
    /// Identifies the request. A second copy attaches to the command that the first one started.
    pub id: ExecId,
    /// The generation that the guest must have; `None` accepts any.
    pub generation: Option<Generation>,
    /// Where the first copy of the request was sent. A guest that cannot tell whether that copy has
    /// started the command answers FAIL(`unknown`), and starts nothing. With `None` the guest
    /// answers for its own instance.
    pub origin: Option<Box<Origin>>,
    /// The program and its arguments; at least one.
    pub argv: Vec<ByteString>,
    /// `NAME=value` pairs that extend or replace those of the agent's default environment.
    pub env: Vec<ByteString>,
    /// Working directory; `None` is `/`.
    pub cwd: Option<ByteString>,
    /// The user it runs as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up in the image's
    /// files. `None` is the agent's user.
    pub user: Option<ByteString>,
    /// The size of its terminal; `None` runs it without one.
    pub tty: Option<TtySize>,
    /// Whether the host will send standard input; otherwise it is empty.
    pub stdin: bool,
    /// Whether it keeps running without a client. Its connection then observes.
    pub detached: bool,
    /// What the guest does when an output ring is full.
    pub output: OutputPolicy,
    /// How long it may run, ms; then the guest ends it. `None` is without limit.
    pub timeout_ms: Option<u64>,
    /// How long it keeps running after its owner's connection has ended, ms; `None` is 0. If the
    /// guest cut the connection, or the transport reset it, this is at least a minute.
    pub keep_ms: Option<u64>,
    /// Most processes of the command and its descendants. `None` is the guest's default.
    pub pids_max: Option<NonZeroU64>,
    /// Most bytes of memory that they use. `None` is the guest's default.
    pub memory_max: Option<NonZeroU64>,
    /// Offset of the first wanted byte of standard output, in a second copy of the request.
    pub stdout_from: u64,
    /// The same for standard error.
    pub stderr_from: u64,
}

impl Exec {
    /// A request for a command with all options at their defaults.
    #[must_use]
    pub const fn new(id: ExecId, argv: Vec<ByteString>) -> Self {
        Self {
            id,
            generation: None,
            origin: None,
            argv,
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            detached: false,
            output: OutputPolicy::Block,
            timeout_ms: None,
            keep_ms: None,
            pids_max: None,
            memory_max: None,
            stdout_from: 0,
            stderr_from: 0,
        }
    }

    /// Whether it limits what the command may use.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        self.pids_max.is_some() || self.memory_max.is_some()
    }

    /// Which limit this request exceeds, if any. The sender checks it before encoding.
    #[must_use]
    pub fn limit_exceeded(&self) -> Option<ExecLimit> {
        // JSON escapes and hexadecimal lengthen some strings on the wire.
        self.content_limit_exceeded().or_else(|| {
            let encoded = encoded_len(self);
            (encoded > FrameKind::Exec.payload_len_max()).then_some(ExecLimit::Encoded { encoded })
        })
    }

    /// As [`limit_exceeded`](Self::limit_exceeded) without the limit of a frame, which the receiver
    /// need not check.
    #[must_use]
    pub fn content_limit_exceeded(&self) -> Option<ExecLimit> {
        let strings = || {
            let optional = self.cwd.iter().chain(&self.user);
            self.argv.iter().chain(&self.env).chain(optional)
        };
        let count = strings().count();
        let bytes = strings()
            .map(|string| string.as_bytes().len() + 1)
            .sum::<usize>();
        if count > EXEC_STRINGS_MAX {
            return Some(ExecLimit::Strings { count });
        }
        (bytes > EXEC_BYTES_MAX).then_some(ExecLimit::Bytes { bytes })
    }

    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let strings =
            |name, expected| object.list(name, EXEC_STRINGS_MAX, expected, ByteString::from_value);
        let argv = strings("argv", "a list of strings without NUL")?;
        if argv.is_empty() {
            return Err(object.error("argv", "a list of at least one string"));
        }
        let env = strings("env", "a list of NAME=value strings without NUL")?;
        if !env.iter().all(|pair| is_environment_pair(pair.as_bytes())) {
            return Err(object.error("env", "a list of NAME=value strings without NUL"));
        }
        let optional = |name, expected| {
            let non_empty = |string: &ByteString| !string.as_bytes().is_empty();
            object.opt(name, expected, |value| {
                ByteString::from_value(value).filter(non_empty)
            })
        };
        let limit = |name| {
            object.opt(name, "a whole number from 1", |value| {
                NonZeroU64::new(value.as_u64()?)
            })
        };
        let tty = object.opt_object("tty")?.as_ref().map(TtySize::from_object);
        let origin = object.opt_object("origin")?;
        let origin = origin.as_ref().map(Origin::from_object);
        Ok(Self {
            id: object.parsed("id", "32 hexadecimal digits")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            origin: origin.transpose()?.map(Box::new),
            argv,
            env,
            cwd: optional("cwd", "a path without NUL")?,
            user: optional("user", "a user without NUL")?,
            tty: tty.transpose()?,
            stdin: object.opt_flag("stdin")?,
            detached: object.opt_flag("detached")?,
            output: object
                .opt_parsed("output", "block or drop_oldest")?
                .unwrap_or(OutputPolicy::Block),
            timeout_ms: object.opt_number("timeout_ms")?,
            keep_ms: object.opt_number("keep_ms")?,
            pids_max: limit("pids_max")?,
            memory_max: limit("memory_max")?,
            stdout_from: object.opt_number("stdout_from")?.unwrap_or(0),
            stderr_from: object.opt_number("stderr_from")?.unwrap_or(0),
        })
    }
}

impl ToJson for Exec {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "argv": self.argv,
            "cwd": self.cwd,
            "detached": self.detached,
            "env": self.env,
            "generation": self.generation,
            "id": self.id,
            "keep_ms": self.keep_ms,
            "memory_max": self.memory_max.map(NonZeroU64::get),
            "origin": self.origin.as_deref().copied(),
            "output": self.output,
            "pids_max": self.pids_max.map(NonZeroU64::get),
            "stderr_from": self.stderr_from,
            "stdin": self.stdin,
            "stdout_from": self.stdout_from,
            "timeout_ms": self.timeout_ms,
            "tty": self.tty,
            "user": self.user,
        });
    }
}

/// Whether `pair` is `NAME=value` and NAME is not empty.
fn is_environment_pair(pair: &[u8]) -> bool {
    pair.iter()
        .position(|&byte| byte == b'=')
        .is_some_and(|index| index > 0)
}

/// The limit that an EXEC exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecLimit {
    /// [`EXEC_STRINGS_MAX`].
    Strings {
        /// Number of strings in the request.
        count: usize,
    },
    /// [`EXEC_BYTES_MAX`].
    Bytes {
        /// Bytes of all strings, with a terminator for each.
        bytes: usize,
    },
    /// The payload of one frame.
    Encoded {
        /// Bytes of the encoded request.
        encoded: usize,
    },
}

impl fmt::Display for ExecLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strings { count } => write!(
                f,
                "{count} arguments and environment entries exceed the limit of {EXEC_STRINGS_MAX}"
            ),
            Self::Bytes { bytes } => write!(
                f,
                "{bytes} bytes of arguments and environment exceed the limit of {EXEC_BYTES_MAX}"
            ),
            Self::Encoded { encoded } => write!(
                f,
                "the request takes {encoded} bytes on the wire, over the limit of {}",
                FrameKind::Exec.payload_len_max()
            ),
        }
    }
}

impl std::error::Error for ExecLimit {}

/// STARTED answers EXEC: the command runs, or an earlier copy started it. ATTACHED answers ATTACH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Started {
    /// The session's number in this guest, from 1.
    pub session: u64,
    /// The id of the EXEC that started it; `None` for the workload.
    pub id: Option<ExecId>,
    /// The process id in the guest; 0 if there is no process now.
    pub pid: u32,
    /// Whether this very request started it; otherwise the session existed before.
    pub fresh: bool,
    /// Whether its standard streams are a terminal.
    pub tty: bool,
    /// Offset of the first byte of standard output that this connection gets. If it is higher than
    /// requested, a GAP follows.
    pub stdout_from: u64,
    /// The same for standard error.
    pub stderr_from: u64,
    /// Credit for standard input.
    pub stdin: Window,
}

impl Started {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            session: object.number("session")?,
            id: object.opt_parsed("id", "32 hexadecimal digits")?,
            pid: object.number("pid")?,
            fresh: object.flag("fresh")?,
            tty: object.flag("tty")?,
            stdout_from: object.number("stdout_from")?,
            stderr_from: object.number("stderr_from")?,
            stdin: Window::from_object(&object.object("stdin")?)?,
        })
    }
}

impl ToJson for Started {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "fresh": self.fresh,
            "id": self.id,
            "pid": self.pid,
            "session": self.session,
            "stderr_from": self.stderr_from,
            "stdin": self.stdin,
            "stdout_from": self.stdout_from,
            "tty": self.tty,
        });
    }
}
