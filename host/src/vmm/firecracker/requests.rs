//! What is said to Firecracker: its command line and the bodies of its API calls. No I/O.
//!
//! Field names and values are those of every version from 1.10 on.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use crate::vmm::firecracker::http::Method;
use crate::vmm::{
    API_SOCKET, MachineSpec, NIC_ID, StateFiles, VMM_LOG, VSOCK_SOCKET, VmmError, VmmKind,
    drive_link,
};

/// The kernel command line that a guest of Firecracker needs: its console, an end of the process
/// when the guest reboots (`reboot=k`) or panics, and no search for keyboards. A quiet console
/// matters: each of its bytes is an exit from the guest.
const BOOT_ARGS: &str =
    "console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux i8042.dumbkbd quiet";

/// Longest instance id that Firecracker takes.
const INSTANCE_ID_LEN_MAX: usize = 64;

/// One API call, as yet unsent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) body: Option<Value>,
}

const LOAD_PATH: &str = "/snapshot/load";

impl Call {
    const fn get(path: &'static str) -> Self {
        Self {
            method: Method::Get,
            path,
            body: None,
        }
    }

    const fn put(path: &'static str, body: Value) -> Self {
        Self {
            method: Method::Put,
            path,
            body: Some(body),
        }
    }

    /// The request line without the protocol version.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// A failure of this call can be a file's fault.
    pub(super) fn is_load(&self) -> bool {
        self.path == LOAD_PATH
    }
}

/// Arguments of a Firecracker that runs in its VM directory. Its own log goes to a file, because
/// its standard output is the guest's serial console.
pub(in crate::vmm) fn launch_args(name: &str) -> Vec<OsString> {
    let id = instance_id(name);
    [
        "--api-sock",
        API_SOCKET,
        "--id",
        &id,
        "--log-path",
        VMM_LOG,
        "--level",
        "Info",
    ]
    .map(OsString::from)
    .into()
}

/// Firecracker takes letters, digits and hyphens; nothing but its log shows the result.
fn instance_id(name: &str) -> String {
    let is_taken = |c: char| c.is_ascii_alphanumeric();
    name.chars()
        .take(INSTANCE_ID_LEN_MAX)
        .map(|c| if is_taken(c) { c } else { '-' })
        .collect()
}

pub(super) const fn version() -> Call {
    Call::get("/version")
}

pub(super) const fn instance() -> Call {
    Call::get("/")
}

pub(super) const fn config() -> Call {
    Call::get("/vm/config")
}

pub(super) fn pause() -> Call {
    vm_state("Paused")
}

pub(super) fn resume() -> Call {
    vm_state("Resumed")
}

fn vm_state(state: &str) -> Call {
    Call {
        method: Method::Patch,
        path: "/vm",
        body: Some(json!({ "state": state })),
    }
}

/// Everything between a fresh process and a running guest, in order.
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
        calls.push(Call::put(NIC_PATH, body));
        if nic.has_mmds {
            // Version 1 answers whoever asks, also by way of a program that was tricked into it.
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

/// What the metadata service tells: the one thing besides logs that a process may be given before a
/// load.
pub(super) fn metadata(data: &Value) -> Call {
    Call::put("/mmds", data.clone())
}

/// Ends in [`NIC_ID`].
const NIC_PATH: &str = "/network-interfaces/nic0";

/// Paths of calls with the drive's id in them; [`Call`] holds only constants.
const DRIVE_PATHS: [&str; 8] = [
    "/drives/drive0",
    "/drives/drive1",
    "/drives/drive2",
    "/drives/drive3",
    "/drives/drive4",
    "/drives/drive5",
    "/drives/drive6",
    "/drives/drive7",
];

/// The drive is named by its link in the VM directory: the snapshot records this path, and each
/// clone has a file of its own behind it.
fn put_drive(index: usize, is_read_only: bool) -> Result<Call, VmmError> {
    let path = DRIVE_PATHS
        .get(index)
        .ok_or_else(|| unsupported("attach more than 8 drives"))?;
    let name = drive_link(index);
    let body = json!({
        "drive_id": name,
        "path_on_host": name,
        "is_root_device": false,
        "is_read_only": is_read_only,
    });
    Ok(Call::put(path, body))
}

/// The load that resumes in the same step: a CONNECT between load and resume would be answered
/// and then reset. A state that names a vsock socket elsewhere was saved by 1.16 or newer, which
/// takes the override. Another tap device than the one that the state names takes 1.12.
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

/// A create whose files can be made nowhere: nothing lies below a device.
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

/// The API is JSON, and JSON is Unicode.
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
    use super::*;
    use crate::vmm::Drive;

    fn spec() -> MachineSpec {
        MachineSpec {
            kernel: "/k".into(),
            initrd: "/i".into(),
            memory_mib: 256,
            vcpu_count: 2,
            drives: vec![
                Drive {
                    path: "/a".into(),
                    read_only: true,
                },
                Drive {
                    path: "/b".into(),
                    read_only: false,
                },
            ],
            nic: None,
            append: "agent.port=1".to_owned(),
            guest_cid: 3,
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
        let files = StateFiles {
            state: "/s".into(),
            memory: Some("/m".into()),
            overrides_vsock: false,
            tap: None,
        };
        assert_eq!(
            lines(&[
                load(&files).unwrap(),
                create(&files).unwrap(),
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
    fn a_foreign_vsock_socket_is_overridden() {
        let files = StateFiles {
            state: "/s".into(),
            memory: Some("/m".into()),
            overrides_vsock: true,
            tap: None,
        };
        let body = load(&files).unwrap().body.unwrap();
        assert_eq!(body["vsock_override"], json!({ "uds_path": "vsock.sock" }));
    }

    #[test]
    fn an_interface_is_on_its_tap_device_and_can_be_loaded_with_another() {
        assert_eq!(NIC_PATH, format!("/network-interfaces/{NIC_ID}"));
        let nic = crate::vmm::Nic {
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
            state: "/s".into(),
            memory: Some("/m".into()),
            overrides_vsock: false,
            tap: Some("tap1".to_owned()),
        };
        let body = load(&files).unwrap().body.unwrap();
        let expected = json!([{ "iface_id": "nic0", "host_dev_name": "tap1" }]);
        assert_eq!(body["network_overrides"], expected);
    }

    #[test]
    fn what_json_cannot_say_is_an_error() {
        use std::os::unix::ffi::OsStringExt;
        let odd = std::path::PathBuf::from(OsString::from_vec(vec![b'/', 0xff]));
        let files = StateFiles {
            state: odd,
            memory: Some("/m".into()),
            overrides_vsock: false,
            tap: None,
        };
        let err = load(&files).unwrap_err();
        assert_eq!(
            err.to_string(),
            "firecracker cannot be given a path that is not UTF-8"
        );
        let files = StateFiles {
            state: "/s".into(),
            memory: None,
            overrides_vsock: false,
            tap: None,
        };
        assert!(load(&files).is_err() && create(&files).is_err());
    }

    #[test]
    fn names_become_ids_that_firecracker_takes() {
        assert_eq!(instance_id("web_1.a"), "web-1-a");
        assert_eq!(instance_id(&"x".repeat(80)).len(), INSTANCE_ID_LEN_MAX);
        let args = launch_args("vm").join(&OsString::from(" "));
        assert_eq!(
            args,
            "--api-sock api.sock --id vm --log-path vmm.log --level Info"
        );
    }
}
