//! Payloads of AWAIT_CHECKPOINT, CHECKPOINT, VERDICT and GENERATION.

use super::keyword::keywords;
use crate::id::Generation;
use crate::json::{JsonError, Object, ToJson, object};
use crate::limits::TAG_LEN_MAX;

keywords! {
    /// What became of a program that waited at a checkpoint.
    Verdict {
        /// A snapshot was taken, and this is the machine it was taken of.
        Source = "source",
        /// A snapshot was taken, and this is a machine that was restored from one.
        Clone = "clone",
        /// Nobody took one in time.
        Cold = "cold",
    }
}

/// Waits for a program in the guest that stands at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AwaitCheckpoint {
    /// The checkpoint's tag; `None` takes any.
    pub tag: Option<String>,
}

impl AwaitCheckpoint {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            tag: read_tag(object)?,
        })
    }
}

impl ToJson for AwaitCheckpoint {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "tag": self.tag,
        });
    }
}

/// A program in the guest waits for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckpointRequest {
    /// What it calls this point of its work.
    pub tag: Option<String>,
    /// How long it waits, in ms of guest time; `None` is for ever.
    pub timeout_ms: Option<u64>,
}

impl CheckpointRequest {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            tag: read_tag(object)?,
            timeout_ms: object.opt_number("timeout_ms")?,
        })
    }
}

impl ToJson for CheckpointRequest {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "tag": self.tag,
            "timeout_ms": self.timeout_ms,
        });
    }
}

/// Tells the host of a program that waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// What the program calls this point of its work.
    pub tag: Option<String>,
    /// How long it still waits, in ms of guest time; `None` is for ever.
    pub left_ms: Option<u64>,
}

impl Checkpoint {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            tag: read_tag(object)?,
            left_ms: object.opt_number("left_ms")?,
        })
    }
}

impl ToJson for Checkpoint {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "left_ms": self.left_ms,
            "tag": self.tag,
        });
    }
}

/// Ends the wait of a program at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckpointVerdict {
    /// What became of it.
    pub verdict: Verdict,
    /// The guest's name, if a host has given it one.
    pub generation: Option<Generation>,
}

impl CheckpointVerdict {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            verdict: object.parsed("verdict", "\"source\", \"clone\" or \"cold\"")?,
            generation: read_generation(object, "generation")?,
        })
    }
}

impl ToJson for CheckpointVerdict {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "generation": self.generation,
            "verdict": self.verdict,
        });
    }
}

/// A program in the guest asks for another name of the guest than the one it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GenerationRequest {
    /// The name it knows; `None` is the one that the guest has when it asks.
    pub from: Option<Generation>,
}

impl GenerationRequest {
    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            from: read_generation(object, "from")?,
        })
    }
}

impl ToJson for GenerationRequest {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "from": self.from,
        });
    }
}

/// The payload that has nothing but the guest's name.
pub(super) fn read_new_generation(object: &Object) -> Result<Generation, JsonError> {
    object.parsed("generation", "32 hexadecimal digits")
}

/// As [`read_new_generation`], the other way round.
pub(super) fn write_new_generation(generation: Generation, out: &mut Vec<u8>) {
    object!(out, { "generation": generation });
}

fn read_generation(object: &Object, field: &'static str) -> Result<Option<Generation>, JsonError> {
    object.opt_parsed(field, "32 hexadecimal digits")
}

fn read_tag(object: &Object) -> Result<Option<String>, JsonError> {
    let tag = object.opt_text("tag")?;
    if tag.as_deref().is_none_or(is_tag) {
        Ok(tag)
    } else {
        Err(object.error("tag", "1 to 256 printable ASCII characters without spaces"))
    }
}

/// Whether `text` can be a checkpoint's tag, such as a digest: 1 to [`TAG_LEN_MAX`] printable ASCII
/// characters without spaces.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    (1..=TAG_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
