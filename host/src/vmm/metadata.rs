//! The data of Firecracker's metadata service (MMDS): the user's, and a restore epoch.
//!
//! The epoch is the guest's generation, at `latest/host-tool/restore_epoch`. Programs in the guest
//! may take a new epoch as a hint that they were restored. Neither this program nor the agent
//! depends on it: generation and readiness are established over vsock.
//!
//! A snapshot contains the service's settings but not its data: every load puts the data anew,
//! before the guest runs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use shared::id::Generation;

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::vmm::{MachineSpec, VmmKind};

/// Most bytes of the file: the service's default limit.
const FILE_LEN_MAX: u64 = 51_200;

/// The user's data, a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata(Map<String, Value>);

impl Metadata {
    /// Reads the file of `--mmds`.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let mut text = String::new();
        let read =
            File::open(path).and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_string(&mut text));
        let len = read.or_fail(Exit::Artifact, || format!("cannot read {}", path.display()))?;
        let refuse = |what: &str| {
            let text = format!("{}: {what}", path.display());
            Failure::new(Exit::Artifact, text)
        };
        if u64::try_from(len).is_ok_and(|len| len > FILE_LEN_MAX) {
            return Err(refuse("the metadata service accepts at most 51200 bytes"));
        }
        Self::parse(&text).map_err(refuse)
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let Ok(Value::Object(map)) = serde_json::from_str(text) else {
            return Err("not a JSON object");
        };
        let latest = map.get("latest");
        let ours = latest.and_then(|latest| latest.get(TOOL));
        match [latest, ours]
            .iter()
            .flatten()
            .all(|value| value.is_object())
        {
            true => Ok(Self(map)),
            false => Err("'latest', and 'host-tool' in it, must be objects"),
        }
    }

    /// The data for a guest of this generation.
    pub(crate) fn with_epoch(&self, generation: Generation) -> Value {
        let mut value = Value::Object(self.0.clone());
        // Each of these is an object, or is missing and created here.
        value["latest"][TOOL]["restore_epoch"] = generation.to_string().into();
        value
    }
}

/// Key of this program's own data in `latest`.
const TOOL: &str = "host-tool";

/// Fails if there are metadata and the machine has no service to serve them.
pub(crate) fn require_service(
    metadata: Option<&Metadata>,
    machine: &MachineSpec,
    kind: VmmKind,
) -> Result<(), Failure> {
    let has_service = machine.nic.as_ref().is_some_and(|nic| nic.has_mmds);
    let text = match (metadata, kind) {
        (None, _) => return Ok(()),
        (Some(_), VmmKind::Qemu) => "--mmds is for Firecracker: QEMU has no metadata service",
        (Some(_), VmmKind::Firecracker) if has_service => return Ok(()),
        (Some(_), VmmKind::Firecracker) => {
            "--mmds needs a VM that was booted with --nic and --mmds: its metadata service answers \
             on that network interface"
        }
    };
    Err(Failure::usage(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::network;
    use crate::vmm::testing::machine;

    #[test]
    fn the_epoch_is_added_to_the_users_data() {
        let generation = Generation::from_bytes([0xab; 16]);
        let epoch = "ab".repeat(16);
        for (text, expected) in [
            (
                "{}",
                format!(r#"{{"latest":{{"host-tool":{{"restore_epoch":"{epoch}"}}}}}}"#),
            ),
            (
                r#"{"a":1,"latest":{"b":2,"host-tool":{"c":3}}}"#,
                format!(
                    r#"{{"a":1,"latest":{{"b":2,"host-tool":{{"c":3,"restore_epoch":"{epoch}"}}}}}}"#
                ),
            ),
        ] {
            let value = Metadata::parse(text).unwrap().with_epoch(generation);
            assert_eq!(value, serde_json::from_str::<Value>(&expected).unwrap());
        }
        for bad in [
            "",
            "[]",
            r#"{"latest":1}"#,
            r#"{"latest":{"host-tool":[]}}"#,
        ] {
            assert!(Metadata::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_need_the_service_of_the_machine() {
        let metadata = Metadata::parse("{}").ok();
        let with_nic = |has_mmds| MachineSpec {
            nic: Some(network::nic(&"tap0".parse().unwrap(), has_mmds).unwrap()),
            ..machine()
        };
        let is_accepted =
            |machine: &MachineSpec, kind| require_service(metadata.as_ref(), machine, kind).is_ok();
        assert!(!is_accepted(&machine(), VmmKind::Firecracker));
        assert!(!is_accepted(&with_nic(false), VmmKind::Firecracker));
        assert!(is_accepted(&with_nic(true), VmmKind::Firecracker));
        assert!(!is_accepted(&with_nic(true), VmmKind::Qemu));
        require_service(None, &machine(), VmmKind::Qemu).unwrap();
    }
}
