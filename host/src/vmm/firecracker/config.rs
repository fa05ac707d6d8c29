//! Firecracker's description of a machine that another program configured. No I/O.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::vmm::{Drive, MachineSpec, VSOCK_SOCKET, drive_link};

/// A machine that another program started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExternalMachine {
    /// The machine. The paths of its drives are those that the state will contain, and may be
    /// relative to Firecracker's working directory.
    pub(crate) machine: MachineSpec,
    /// The path of the vsock socket in the state, unless it is the one that our VMs use. A load has
    /// to override it.
    pub(crate) vsock_path: Option<PathBuf>,
    pub(crate) interface_count: usize,
}

impl ExternalMachine {
    /// Parses the answer to `GET /vm/config`.
    pub(super) fn parse(config: &Value) -> Result<Self, String> {
        let number = |pointer: &str| {
            let number = config.pointer(pointer).and_then(Value::as_u64);
            number.ok_or_else(|| format!("no number at {pointer}"))
        };
        let path = |pointer: &str| config.pointer(pointer).and_then(Value::as_str);
        let list = |pointer: &str| {
            let list = config.pointer(pointer).and_then(Value::as_array);
            list.map_or(&[][..], Vec::as_slice)
        };
        let out_of_range = |_| "a number is out of range".to_owned();
        let vsock_path = path("/vsock/uds_path").ok_or("the machine has no vsock device")?;
        let machine = MachineSpec {
            // A machine that was itself restored has no boot source.
            kernel: path("/boot-source/kernel_image_path")
                .unwrap_or_default()
                .into(),
            initrd: path("/boot-source/initrd_path").unwrap_or_default().into(),
            memory_mib: u32::try_from(number("/machine-config/mem_size_mib")?)
                .map_err(out_of_range)?,
            vcpu_count: u8::try_from(number("/machine-config/vcpu_count")?)
                .map_err(out_of_range)?,
            drives: list("/drives")
                .iter()
                .map(parse_drive)
                .collect::<Result<_, _>>()?,
            // The other program owns the interfaces; see `interface_count`.
            nic: None,
            append: path("/boot-source/boot_args")
                .unwrap_or_default()
                .to_owned(),
            guest_cid: u32::try_from(number("/vsock/guest_cid")?).map_err(out_of_range)?,
        };
        let is_ours = vsock_path == VSOCK_SOCKET;
        Ok(Self {
            machine,
            vsock_path: (!is_ours).then(|| vsock_path.into()),
            interface_count: list("/network-interfaces").len(),
        })
    }

    /// The first drive that a clone of the machine would share with it and could corrupt. The
    /// relative name of our links leads each clone to its own file. An absolute path leads all
    /// clones to the same file, which is fine if it is read-only.
    pub(crate) fn shared_drive(&self) -> Option<&Path> {
        let mut drives = self.machine.drives.iter().enumerate();
        let is_shared = |(index, drive): &(usize, &Drive)| {
            let is_relative = drive.path == Path::new(&drive_link(*index));
            let is_harmless = drive.path.is_absolute() && drive.read_only;
            !(is_relative || is_harmless)
        };
        drives
            .find(is_shared)
            .map(|(_, drive)| drive.path.as_path())
    }
}

fn parse_drive(drive: &Value) -> Result<Drive, String> {
    // A vhost-user drive has a socket instead: another process holds its content.
    let path = drive.get("path_on_host").and_then(Value::as_str);
    let path = path.ok_or("a drive is not backed by a file")?;
    let read_only = drive.get("is_read_only").and_then(Value::as_bool);
    Ok(Drive {
        path: path.into(),
        read_only: read_only.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An answer of Firecracker 1.16.1, without the fields that are not read.
    fn config() -> Value {
        json!({
            "boot-source": { "kernel_image_path": "/k", "initrd_path": "/i", "boot_args": "a=b" },
            "machine-config": { "vcpu_count": 2, "mem_size_mib": 256, "smt": false },
            "drives": [
                { "drive_id": "x", "path_on_host": "drive0", "is_read_only": false },
                { "drive_id": "y", "path_on_host": "/ro", "is_read_only": true },
            ],
            "network-interfaces": [],
            "vsock": { "guest_cid": 3, "uds_path": "/run/v.sock" },
        })
    }

    #[test]
    fn a_machine_is_parsed_from_its_configuration() {
        let external = ExternalMachine::parse(&config()).unwrap();
        assert_eq!(
            external.vsock_path.as_deref(),
            Some(Path::new("/run/v.sock"))
        );
        assert_eq!(
            (external.machine.memory_mib, external.machine.vcpu_count),
            (256, 2)
        );
        assert_eq!(external.machine.drives.len(), 2);
        assert_eq!(external.shared_drive(), None);

        let mut restored = config();
        restored["boot-source"] = json!({});
        restored["vsock"]["uds_path"] = VSOCK_SOCKET.into();
        let external = ExternalMachine::parse(&restored).unwrap();
        assert_eq!(external.machine.kernel, Path::new(""));
        assert_eq!(external.vsock_path, None);
    }

    #[test]
    fn a_drive_that_clones_would_share_is_found() {
        for (path, is_read_only, is_shared) in [
            ("drive0", true, false),
            ("drive0", false, false),
            ("/d", true, false),
            ("/d", false, true),
            ("d", true, true),
            ("drive1", false, true),
        ] {
            let mut value = config();
            value["drives"] = json!([{ "path_on_host": path, "is_read_only": is_read_only }]);
            let external = ExternalMachine::parse(&value).unwrap();
            assert_eq!(external.shared_drive().is_some(), is_shared, "{path}");
        }
    }

    #[test]
    fn a_machine_that_cannot_be_snapshotted_is_refused() {
        let mut value = config();
        value["vsock"] = Value::Null;
        let error = ExternalMachine::parse(&value).unwrap_err();
        assert_eq!(error, "the machine has no vsock device");
        let mut value = config();
        value["machine-config"]["vcpu_count"] = 1000.into();
        ExternalMachine::parse(&value).unwrap_err();
        let mut value = config();
        value["drives"][0] = json!({ "socket": "/s" });
        ExternalMachine::parse(&value).unwrap_err();
    }
}
