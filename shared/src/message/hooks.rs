//! Payloads of HOOKS and HOOKED.

use serde_json::Value;

use super::control;
use super::exited::ExitStatus;
use super::keyword::keywords;
use crate::id::Token;
use crate::json::{JsonError, Object, ToJson, object, value_of};
use crate::limits::{HOOK_NAME_LEN_MAX, HOOKS_MAX};
use crate::text::clipped_to;

keywords! {
    /// When hooks run.
    HookStage {
        /// Before a snapshot, in reverse order.
        Snapshot = "snapshot",
        /// After a restore, in order.
        Restore = "restore",
    }
}

/// Has the image's hooks run, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hooks {
    /// Names this request; sent again, it joins.
    pub token: Token,
    /// Which hooks.
    pub stage: HookStage,
    /// How long each may take, in ms of guest time.
    pub limit_ms: u64,
    /// Whether the next one runs although one has failed.
    pub go_on: bool,
}

impl Hooks {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            token: control::read_token(object)?,
            stage: object.parsed("stage", "\"snapshot\" or \"restore\"")?,
            limit_ms: object.number("limit_ms")?,
            go_on: object.opt_flag("go_on")?,
        })
    }
}

impl ToJson for Hooks {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "go_on": self.go_on,
            "limit_ms": self.limit_ms,
            "stage": self.stage,
            "token": self.token,
        });
    }
}

/// What came of hooks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hooked {
    /// The request.
    pub token: Token,
    /// Those that ran, in the order in which they did; at most [`HOOKS_MAX`].
    pub hooks: Vec<HookResult>,
}

/// What came of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HookResult {
    /// Name of its file.
    pub name: String,
    /// How it ended; as a shell has it, 126 and 127 are one that could not be run.
    pub status: ExitStatus,
    /// Spawn to reap, µs.
    pub us: u64,
    /// Whether it was ended because it took too long.
    pub timed_out: bool,
}

impl HookResult {
    /// Whether it did what it is there for.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.shell_code() == 0 && !self.timed_out
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            name: object.text("name")?,
            status: ExitStatus::from_object(object)?,
            us: object.number("us")?,
            timed_out: object.flag("timed_out")?,
        })
    }

    /// The result as a JSON object, for records.
    #[must_use]
    pub fn to_value(&self) -> Value {
        value_of(self)
    }
}

impl ToJson for HookResult {
    fn write_json(&self, out: &mut Vec<u8>) {
        let (code, signal, core) = self.status.parts();
        object!(out, {
            "code": code,
            "core": core,
            "name": clipped_to(&self.name, HOOK_NAME_LEN_MAX),
            "signal": signal,
            "timed_out": self.timed_out,
            "us": self.us,
        });
    }
}

impl Hooked {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let hooks = object.objects("hooks", HOOKS_MAX)?;
        Ok(Self {
            token: control::read_token(object)?,
            hooks: hooks
                .iter()
                .map(HookResult::from_object)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl ToJson for Hooked {
    fn write_json(&self, out: &mut Vec<u8>) {
        let hooks = &self.hooks[..self.hooks.len().min(HOOKS_MAX)];
        object!(out, {
            "hooks": hooks,
            "token": self.token,
        });
    }
}
