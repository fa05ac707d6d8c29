//! Payload of HELLO.

use serde_json::Value;

use super::exec::Origin;
use super::keyword::keywords;
use crate::id::{Generation, Instance};
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
    /// From a guest, which run of the agent this is.
    pub instance: Option<Instance>,
    /// From a guest, how many sessions this instance has begun.
    pub sessions_begun: u64,
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
            instance: None,
            sessions_begun: 0,
        }
    }

    /// What a request that is sent now for the first time names as its origin. `None` if the sender
    /// is not a guest.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        Some(Origin {
            instance: self.instance?,
            generation: self.generation,
            sessions_begun: self.sessions_begun,
        })
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
        let hello = Self {
            protocol: protocol?,
            role: object.parsed("role", "\"host\", \"guest\" or \"local\"")?,
            version: object.clipped_text("version")?,
            boot_id: object.opt_clipped_text("boot_id")?,
            generation: object.opt_parsed("generation", "32 hexadecimal digits")?,
            instance: object.opt_parsed("instance", "32 hexadecimal digits")?,
            sessions_begun: object.opt_number("sessions_begun")?.unwrap_or(0),
        };
        if hello.role == Role::Guest {
            return Ok(hello);
        }
        // Only a guest has the others, and they are not written for any other side.
        Ok(Self {
            protocol: hello.protocol,
            ..Self::of(hello.role, &hello.version)
        })
    }
}

impl ToJson for Hello {
    fn write_json(&self, out: &mut Vec<u8>) {
        let protocol = [self.protocol.min, self.protocol.max];
        if self.role != Role::Guest {
            // Every connection begins so, and the guest parses it before anything else.
            return object!(out, {
                "protocol": protocol,
                "role": self.role,
                "version": clipped(&self.version),
            });
        }
        object!(out, {
            "boot_id": self.boot_id.as_deref().map(clipped),
            "generation": self.generation,
            "instance": self.instance,
            "protocol": protocol,
            "role": self.role,
            "sessions_begun": self.sessions_begun,
            "version": clipped(&self.version),
        });
    }
}
