//! Payloads of AWAIT_CHECKPOINT, CHECKPOINT, VERDICT and GENERATION.

use super::keyword::keywords;
use crate::id::Generation;
use crate::json::{JsonError, Object, ToJson, object};
use crate::limits::TAG_LEN_MAX;

keywords! {
    /// How a program's wait at a checkpoint ended.
    Verdict {
        /// A snapshot was taken, and the program runs in the VM that it was taken of.
        Source = "source",
        /// A snapshot was taken, and the program runs in a VM that was restored from it.
        Clone = "clone",
        /// The wait timed out without a snapshot.
        Cold = "cold",
    }
}

/// AWAIT_CHECKPOINT: the host waits for a program at a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AwaitCheckpoint {
    /// The checkpoint's tag; `None` accepts any.
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

/// CHECKPOINT of a program in the guest, which waits for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CheckpointRequest {
    /// The tag by which the program identifies this point of its work; see [`is_tag`].
    pub tag: Option<String>,
    /// How long it waits, in ms of guest time; `None` waits for ever.
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

/// CHECKPOINT of the guest, which completes AWAIT_CHECKPOINT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// The tag of the program that waits.
    pub tag: Option<String>,
    /// How long the program will still wait, in ms of guest time; `None` waits for ever.
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

/// VERDICT: ends a program's wait at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckpointVerdict {
    /// How the wait ended.
    pub verdict: Verdict,
    /// The guest's generation; `None` before the first REBIND.
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

/// GENERATION of a program in the guest, which waits until the guest's generation differs from
/// `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GenerationRequest {
    /// The generation that the program knows; `None` is the guest's present one.
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

/// Reads the payload of the guest's GENERATION.
pub(super) fn read_new_generation(object: &Object) -> Result<Generation, JsonError> {
    object.parsed("generation", "32 hexadecimal digits")
}

/// Writes the payload of the guest's GENERATION.
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

/// Whether `text` is a valid tag of a checkpoint, such as a digest: 1 to [`TAG_LEN_MAX`] printable
/// ASCII characters without spaces.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    (1..=TAG_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
