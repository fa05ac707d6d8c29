//! Payload of HELLO.

use serde_json::Value;

use super::keyword::keywords;
use crate::id::Generation;
use crate::json::{JsonError, Object, ToJson, object};
use crate::text::clipped;
use crate::version::{NoCommonVersion, SUPPORTED, VersionRange};

keywords! {
    /// A side of the conversation.
    Role {
        /// `host-tool`, or another client on the host.
        Host = "host",
        /// `guest-agent`.
        Guest = "guest",
        /// A program in the guest, connected to the agent's local socket.
        Local = "local",
    }
}

/// HELLO: the first frame each way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The protocol versions that the sender speaks.
    pub protocol: VersionRange,
    /// The sender's side.
    pub role: Role,
    /// The sender's program version.
    pub version: String,
    /// From a guest, its kernel's boot id. All clones of one boot have the same.
    pub boot_id: Option<String>,
    /// From a guest, its generation; `None` before the first REBIND.
    pub generation: Option<Generation>,
}

impl Hello {
    /// HELLO of a host with this program version.
    #[must_use]
    pub fn host(version: &str) -> Self {
        Self::of(Role::Host, version)
    }

    /// HELLO of a side with this program version, without the fields of a guest.
    #[must_use]
    pub fn of(role: Role, version: &str) -> Self {
        Self {
            protocol: SUPPORTED,
            role,
            version: version.to_owned(),
            boot_id: None,
            generation: None,
        }
    }

    /// The protocol version to speak with the sender.
    ///
    /// # Errors
    ///
    /// When the sides share none.
    pub fn negotiate(&self) -> Result<u16, NoCommonVersion> {
        SUPPORTED.negotiate(self.protocol)
    }

    pub(super) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let bound = |value: &Value| u16::try_from(value.as_u64()?).ok();
        let range = |value: &Value| match value.as_array()?.as_slice() {
            [min, max] => Some(VersionRange {
                min: bound(min)?,
                max: bound(max)?,
            }),
            _ => None,
        };
        let protocol = object.get("protocol", "a pair of versions, lowest first", |value| {
            range(value).filter(|range| range.min <= range.max)
        });
        Ok(Self {
            protocol: protocol?,
            role: object.parsed("role", "\"host\", \"guest\" or \"local\"")?,
            version: object.clipped_text("version")?,
            boot_id: object.opt_clipped_text("boot_id")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
        })
    }
}

impl ToJson for Hello {
    fn write_json(&self, out: &mut Vec<u8>) {
        object!(out, {
            "boot_id": self.boot_id.as_deref().map(clipped),
            "generation": self.generation,
            "protocol": [self.protocol.min, self.protocol.max],
            "role": self.role,
            "version": clipped(&self.version),
        });
    }
}
