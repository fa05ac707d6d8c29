//! The calls of Firecracker's API, with their bodies. No I/O.
//!
//! Field names and values are those of every version from 1.10 on.

use std::path::Path;

use serde_json::{Value, json};

use crate::vmm::firecracker::http::Method;
use crate::vmm::launch::NIC_ID;
use crate::vmm::{MachineSpec, StateFiles, VSOCK_SOCKET, VmmError, VmmKind, drive_link};

/// The kernel command line that a guest of Firecracker needs. It sets the console, ends the VMM
/// process when the guest reboots (`reboot=k`) or panics, and skips the search for keyboards. The
/// console is quiet because each byte on it is an exit from the guest.
const BOOT_ARGS: &str =
    "console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd quiet";

/// Most drives of one machine.
const DRIVES_MAX: usize = 8;

/// One API call, not sent yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Value>,
}

const LOAD_PATH: &str = "/snapshot/load";

impl Call {
    fn new(method: Method, path: impl Into<String>, body: Option<Value>) -> Self {
        Self {
            method,
            path: path.into(),
            body,
        }
    }

    fn get(path: &str) -> Self {
        Self::new(Method::Get, path, None)
    }

    fn put(path: impl Into<String>, body: Value) -> Self {
        Self::new(Method::Put, path, Some(body))
    }

    /// The request line without the protocol version.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Only the failure of a load can be the fault of a file.
    pub(super) fn is_load(&self) -> bool {
        self.path == LOAD_PATH
    }
}

pub(super) fn version() -> Call {
    Call::get("/version")
}

pub(super) fn instance() -> Call {
    Call::get("/")
}

pub(super) fn config() -> Call {
    Call::get("/vm/config")
}

pub(super) fn pause() -> Call {
    vm_state("Paused")
}

pub(super) fn resume() -> Call {
    vm_state("Resumed")
}

fn vm_state(state: &str) -> Call {
    Call::new(Method::Patch, "/vm", Some(json!({ "state": state })))
}

/// The calls that turn a new process into a running guest, in order.
pub(super) fn boot(spec: &MachineSpec) -> Result<Vec<Call>, VmmError> {
    let boot_args = format!("{BOOT_ARGS} {}", spec.append);
    let mut calls = vec![
        Call::put(
            "/machine-config",
            json!({ "vcpu_count": spec.vcpu_count, "mem_size_mib": spec.memory_mib }),
        ),
        Call::put(
            "/boot-source",
            json!({
                "kernel_image_path": text(&spec.kernel)?,
                "initrd_path": text(&spec.initrd)?,
                "boot_args": boot_args.trim_end(),
            }),
        ),
    ];
    for (index, drive) in spec.drives.iter().enumerate() {
        calls.push(put_drive(index, drive.read_only)?);
    }
    if let Some(nic) = &spec.nic {
        let body = json!({
            "iface_id": NIC_ID,
            "host_dev_name": nic.tap,
            "guest_mac": nic.mac.to_string(),
        });
        calls.push(Call::put(format!("/network-interfaces/{NIC_ID}"), body));
        if nic.has_mmds {
            // Version 1 needs no token: a program in the guest can be tricked into a request.
            let body = json!({ "version": "V2", "network_interfaces": [NIC_ID] });
            calls.push(Call::put("/mmds/config", body));
        }
    }
    calls.push(Call::put(
        "/vsock",
        json!({ "guest_cid": spec.guest_cid, "uds_path": VSOCK_SOCKET }),
    ));
    calls.push(Call::put(
        "/actions",
        json!({ "action_type": "InstanceStart" }),
    ));
    Ok(calls)
}

/// The metadata service's data. Besides the logger's settings, this is all that Firecracker accepts
/// before a load.
pub(super) fn metadata(data: &Value) -> Call {
    Call::put("/mmds", data.clone())
}

/// The path is the drive's link in the VM directory. The snapshot records it, and each clone has
/// its own file behind it.
fn put_drive(index: usize, is_read_only: bool) -> Result<Call, VmmError> {
    if index >= DRIVES_MAX {
        return Err(unsupported(&format!(
            "attach more than {DRIVES_MAX} drives"
        )));
    }
    let name = drive_link(index);
    let path = format!("/drives/{name}");
    let body = json!({
        "drive_id": name,
        "path_on_host": name,
        "is_root_device": false,
        "is_read_only": is_read_only,
    });
    Ok(Call::put(path, body))
}

/// A load that resumes in the same step: a CONNECT between load and resume would be answered and
/// then reset. `vsock_override` needs 1.16, as does every state that has its vsock socket outside
/// the VM directory. `network_overrides` needs 1.12.
pub(super) fn load(files: &StateFiles) -> Result<Call, VmmError> {
    let (state, memory) = paths(files)?;
    let mut body = json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "File", "backend_path": memory },
        "resume_vm": true,
    });
    if files.overrides_vsock {
        body["vsock_override"] = json!({ "uds_path": VSOCK_SOCKET });
    }
    if let Some(tap) = &files.tap {
        body["network_overrides"] = json!([{ "iface_id": NIC_ID, "host_dev_name": tap }]);
    }
    Ok(Call::put(LOAD_PATH, body))
}

pub(super) fn create(files: &StateFiles) -> Result<Call, VmmError> {
    let (state, memory) = paths(files)?;
    let body = json!({
        "snapshot_type": "Full",
        "snapshot_path": state,
        "mem_file_path": memory,
    });
    Ok(Call::put("/snapshot/create", body))
}

/// A create that fails because no file can be created below a device.
pub(super) fn create_nothing() -> Call {
    let body = json!({
        "snapshot_type": "Full",
        "snapshot_path": "/dev/null/vmstate",
        "mem_file_path": "/dev/null/memory",
    });
    Call::put("/snapshot/create", body)
}

fn paths(files: &StateFiles) -> Result<(&str, &str), VmmError> {
    let memory = files
        .memory
        .as_deref()
        .ok_or_else(|| unsupported("do without a memory file"))?;
    Ok((text(&files.state)?, text(memory)?))
}

/// The API is JSON, which can only hold paths that are UTF-8.
fn text(path: &Path) -> Result<&str, VmmError> {
    path.to_str()
        .ok_or_else(|| unsupported("be given a path that is not UTF-8"))
}

fn unsupported(what: &str) -> VmmError {
    VmmError::Unsupported {
        kind: VmmKind::Firecracker,
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;
    use crate::vmm::testing::{machine, state_files};
    use crate::vmm::{Drive, Nic};

    fn spec() -> MachineSpec {
        let drive = |path: &str, read_only| Drive {
            path: path.into(),
            read_only,
        };
        MachineSpec {
            drives: vec![drive("/a", true), drive("/b", false)],
            ..machine()
        }
    }

    fn lines(calls: &[Call]) -> Vec<String> {
        calls
            .iter()
            .map(|call| format!("{} {}", call.name(), call.body.as_ref().unwrap()))
            .collect()
    }

    #[test]
    fn boot_configures_and_then_starts() {
        let expected = [
            r#"PUT /machine-config {"mem_size_mib":256,"vcpu_count":2}"#,
            concat!(
                r#"PUT /boot-source {"boot_args":"console=ttyS0 reboot=k panic=-1 "#,
                r#"i8042.noaux i8042.nomux i8042.dumbkbd quiet agent.port=1","#,
                r#""initrd_path":"/i","kernel_image_path":"/k"}"#
            ),
            concat!(
                r#"PUT /drives/drive0 {"drive_id":"drive0","is_read_only":true,"#,
                r#""is_root_device":false,"path_on_host":"drive0"}"#
            ),
            concat!(
                r#"PUT /drives/drive1 {"drive_id":"drive1","is_read_only":false,"#,
                r#""is_root_device":false,"path_on_host":"drive1"}"#
            ),
            r#"PUT /vsock {"guest_cid":3,"uds_path":"vsock.sock"}"#,
            r#"PUT /actions {"action_type":"InstanceStart"}"#,
        ];
        assert_eq!(lines(&boot(&spec()).unwrap()), expected);
    }

    #[test]
    fn drives_up_to_the_limit() {
        let with = |count: usize| {
            let drive = Drive {
                path: "/a".into(),
                read_only: true,
            };
            boot(&MachineSpec {
                drives: vec![drive; count],
                ..spec()
            })
        };
        assert_eq!(with(8).unwrap().len(), 12);
        assert!(matches!(with(9), Err(VmmError::Unsupported { .. })));
    }

    /// Newer fields would turn the whole request into a 400 on older versions.
    #[test]
    fn load_and_create_have_the_fields_that_every_version_takes() {
        assert_eq!(
            lines(&[
                load(&state_files()).unwrap(),
                create(&state_files()).unwrap(),
                pause(),
                resume()
            ]),
            [
                concat!(
                    r#"PUT /snapshot/load {"mem_backend":{"backend_path":"/m","#,
                    r#""backend_type":"File"},"resume_vm":true,"snapshot_path":"/s"}"#
                ),
                concat!(
                    r#"PUT /snapshot/create {"mem_file_path":"/m","snapshot_path":"/s","#,
                    r#""snapshot_type":"Full"}"#
                ),
                r#"PATCH /vm {"state":"Paused"}"#,
                r#"PATCH /vm {"state":"Resumed"}"#,
            ]
        );
    }

    #[test]
    fn an_external_vsock_socket_is_overridden() {
        let files = StateFiles {
            overrides_vsock: true,
            ..state_files()
        };
        let body = load(&files).unwrap().body.unwrap();
        assert_eq!(body["vsock_override"], json!({ "uds_path": "vsock.sock" }));
    }

    #[test]
    fn an_interface_is_on_its_tap_device_and_can_be_loaded_with_another() {
        let nic = Nic {
            tap: "tap0".to_owned(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            has_mmds: true,
        };
        let calls = boot(&MachineSpec {
            nic: Some(nic),
            drives: Vec::new(),
            ..spec()
        });
        assert_eq!(
            lines(&calls.unwrap())[2..4],
            [
                concat!(
                    r#"PUT /network-interfaces/nic0 {"guest_mac":"02:00:00:00:00:01","#,
                    r#""host_dev_name":"tap0","iface_id":"nic0"}"#
                ),
                r#"PUT /mmds/config {"network_interfaces":["nic0"],"version":"V2"}"#,
            ]
        );
        let data = json!({ "a": 1 });
        assert_eq!(lines(&[metadata(&data)]), [r#"PUT /mmds {"a":1}"#]);
        let files = StateFiles {
            tap: Some("tap1".to_owned()),
            ..state_files()
        };
        let body = load(&files).unwrap().body.unwrap();
        let expected = json!([{ "iface_id": "nic0", "host_dev_name": "tap1" }]);
        assert_eq!(body["network_overrides"], expected);
    }

    #[test]
    fn paths_that_json_cannot_hold_and_a_missing_memory_file_are_errors() {
        let not_utf8 = StateFiles {
            state: PathBuf::from(OsString::from_vec(vec![b'/', 0xff])),
            ..state_files()
        };
        let err = load(&not_utf8).unwrap_err();
        assert_eq!(
            err.to_string(),
            "firecracker cannot be given a path that is not UTF-8"
        );
        let without_memory = StateFiles {
            memory: None,
            ..state_files()
        };
        assert!(load(&without_memory).is_err() && create(&without_memory).is_err());
    }
}
