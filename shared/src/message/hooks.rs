//! Payloads of HOOKS and HOOKED.

use serde_json::Value;

use super::control;
use super::exited::{ExitStatus, Fault};
use super::keyword::keywords;
use crate::id::Token;
use crate::json::{JsonError, Object, ToJson, object, value_of};
use crate::limits::{HOOK_NAME_LEN_MAX, HOOKS_MAX};
use crate::text::clipped_to;

keywords! {
    /// When hooks run.
    HookStage {
        /// Before a snapshot, in reverse order of their names.
        Snapshot = "snapshot",
        /// After a restore, in the order of their names.
        Restore = "restore",
    }
}

/// HOOKS: runs the image's hooks of a stage, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hooks {
    /// Identifies this request. A second copy joins the first.
    pub token: Token,
    /// Which hooks to run.
    pub stage: HookStage,
    /// How long each hook may take, in ms of guest time.
    pub limit_ms: u64,
    /// Whether the remaining hooks run after one has failed.
    pub keep_going: bool,
}

impl Hooks {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            token: control::read_token(object)?,
            stage: object.parsed("stage", "\"snapshot\" or \"restore\"")?,
            limit_ms: object.number("limit_ms")?,
            keep_going: object.opt_flag("go_on")?,
        })
    }
}

impl ToJson for Hooks {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "go_on": self.keep_going,
            "limit_ms": self.limit_ms,
            "stage": self.stage,
            "token": self.token,
        });
    }
}

/// HOOKED: how the hooks ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hooked {
    /// The token of HOOKS.
    pub token: Token,
    /// The hooks that ran, in their order; at most [`HOOKS_MAX`].
    pub hooks: Vec<HookResult>,
}

/// How one hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HookResult {
    /// Its file's name, up to [`HOOK_NAME_LEN_MAX`] bytes.
    pub name: String,
    /// Its exit status. As in a shell, 126 and 127 mean that it could not be run. 125 means that
    /// the guest lacked what a process takes.
    pub status: ExitStatus,
    /// Time from spawning to reaping it, µs.
    pub us: u64,
    /// Whether the guest ended it because of `limit_ms`.
    pub timed_out: bool,
    /// What the guest has cut or lost of it.
    pub fault: Option<Fault>,
}

impl HookResult {
    /// Whether it exited with code 0 within its time, and nothing of it was cut or lost.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.shell_code() == 0 && !self.timed_out && self.fault.is_none()
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            name: object.text("name")?,
            status: ExitStatus::from_object(object)?,
            us: object.number("us")?,
            timed_out: object.flag("timed_out")?,
            fault: Fault::opt_of(object)?,
        })
    }

    /// The JSON object as on the wire, for records.
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
            "fault": self.fault,
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
