//! What is known about a VM, as `state.json` and manifests have it.

mod ended;

use std::path::PathBuf;

use serde_json::{Value, json};
use shared::id::Generation;
use shared::json::{JsonError, Object};
use shared::message::Cause;

pub(crate) use self::ended::{ExitRecord, WorkloadEnd};
use crate::os::json::{os_to_value, value_to_path};
use crate::os::process::ProcessId;
use crate::values::keyword::keywords;
use crate::vmm::network::{nic_from_object, nic_to_value};
use crate::vmm::{Drive, MachineSpec, VmmKind};

pub(crate) const DRIVES_MAX: usize = 16;

/// Most ancestors that a state lists; earlier ones are forgotten.
pub(crate) const ANCESTORS_MAX: usize = 64;

keywords! {
    /// How far commands have come with a VM.
    Stage {
        /// A command is starting it.
        Starting = "starting",
        /// Its guest was proven ready.
        Ready = "ready",
        /// It was started without a proof, or kept although its guest failed it.
        Unproven = "unproven",
        /// A command is taking a snapshot of it; it may be paused.
        Snapshotting = "snapshotting",
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) stage: Stage,
    pub(crate) vmm_kind: VmmKind,
    /// As the VMM prints it.
    pub(crate) vmm_version: String,
    /// The VMM's process.
    pub(crate) process: ProcessId,
    /// The VMM's parent.
    pub(crate) supervisor: ProcessId,
    pub(crate) machine: MachineSpec,
    /// The guest's generation, once a rebind has given it one.
    pub(crate) generation: Option<Generation>,
    /// The generation of its snapshot, or its own before its latest snapshot.
    pub(crate) parent: Option<Generation>,
    /// All earlier generations of its memory, the latest first, up to [`ANCESTORS_MAX`].
    pub(crate) ancestors: Vec<Generation>,
    /// What the guest's generation was given for.
    pub(crate) cause: Cause,
    /// The artifact it was restored from.
    pub(crate) artifact: Option<PathBuf>,
    /// Of the guest's agent, once it has reported it.
    pub(crate) agent_version: Option<String>,
    /// ms since 1970 UTC.
    pub(crate) created_ms: u64,
}

impl State {
    /// As in the file and in `inspect`.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "stage": self.stage.as_str(),
            "vmm": { "kind": self.vmm_kind.to_string(), "version": self.vmm_version },
            "process": self.process.to_value(),
            "supervisor": self.supervisor.to_value(),
            "machine": machine_to_value(&self.machine),
            "generation": self.generation.map(|generation| generation.to_string()),
            "parent": self.parent.map(|parent| parent.to_string()),
            "ancestors": generations_to_value(&self.ancestors),
            "cause": self.cause.as_str(),
            "artifact": self.artifact.as_ref().map(os_to_value),
            "agent_version": self.agent_version,
            "created_ms": self.created_ms,
        })
    }

    pub(crate) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let digits = "32 hexadecimal digits";
        let vmm = object.object("vmm")?;
        Ok(Self {
            stage: object.parsed("stage", "a known stage")?,
            vmm_kind: vmm.parsed("kind", "firecracker or qemu")?,
            vmm_version: vmm.text("version")?,
            process: ProcessId::from_object(&object.object("process")?)?,
            supervisor: ProcessId::from_object(&object.object("supervisor")?)?,
            machine: machine_from_object(&object.object("machine")?)?,
            generation: object.opt_parsed("generation", digits)?,
            parent: object.opt_parsed("parent", digits)?,
            ancestors: generations_from_object(object, "ancestors")?,
            cause: object.parsed("cause", "boot, restore or resume")?,
            artifact: object.opt("artifact", "a path", value_to_path)?,
            agent_version: object.opt_text("agent_version")?,
            created_ms: object.number("created_ms")?,
        })
    }
}

/// `latest` and the generations before it, up to [`ANCESTORS_MAX`] in all.
pub(crate) fn lineage(latest: Option<Generation>, before: &[Generation]) -> Vec<Generation> {
    let generations = latest.into_iter().chain(before.iter().copied());
    generations.take(ANCESTORS_MAX).collect()
}

pub(crate) fn generations_to_value(generations: &[Generation]) -> Value {
    let texts = generations.iter().map(Generation::to_string);
    texts.collect::<Vec<_>>().into()
}

/// Reads what [`generations_to_value`] wrote. The list is empty where an older version of this
/// program wrote none.
pub(crate) fn generations_from_object(
    object: &Object,
    field: &'static str,
) -> Result<Vec<Generation>, JsonError> {
    if object.value(field).is_none() {
        return Ok(Vec::new());
    }
    let expected = "a list of 32 hexadecimal digits each";
    object.list(field, ANCESTORS_MAX, expected, |value| {
        value.as_str()?.parse().ok()
    })
}

pub(crate) fn machine_to_value(machine: &MachineSpec) -> Value {
    let drive =
        |drive: &Drive| json!({ "path": os_to_value(&drive.path), "read_only": drive.read_only });
    json!({
        "kernel": os_to_value(&machine.kernel),
        "initrd": os_to_value(&machine.initrd),
        "memory_mib": machine.memory_mib,
        "vcpu_count": machine.vcpu_count,
        "append": machine.append,
        "guest_cid": machine.guest_cid,
        "drives": machine.drives.iter().map(drive).collect::<Vec<_>>(),
        "nic": machine.nic.as_ref().map(nic_to_value),
    })
}

pub(crate) fn machine_from_object(object: &Object) -> Result<MachineSpec, JsonError> {
    let drive = |drive: &Object| -> Result<Drive, JsonError> {
        Ok(Drive {
            path: drive.get("path", "a path", value_to_path)?,
            read_only: drive.flag("read_only")?,
        })
    };
    let drives = object.objects("drives", DRIVES_MAX)?;
    Ok(MachineSpec {
        kernel: object.get("kernel", "a path", value_to_path)?,
        initrd: object.get("initrd", "a path", value_to_path)?,
        memory_mib: object.number("memory_mib")?,
        vcpu_count: object.number("vcpu_count")?,
        drives: drives.iter().map(drive).collect::<Result<_, _>>()?,
        nic: nic_from_object(object, "nic")?,
        append: object.text("append")?,
        guest_cid: object.number("guest_cid")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::vmm::Nic;

    pub(crate) fn state() -> State {
        State {
            stage: Stage::Ready,
            vmm_kind: VmmKind::Firecracker,
            vmm_version: "1.16.1".to_owned(),
            process: ProcessId {
                pid: 7,
                start_time: 8,
            },
            supervisor: ProcessId {
                pid: 6,
                start_time: 5,
            },
            machine: MachineSpec {
                kernel: "/k".into(),
                initrd: "/i".into(),
                memory_mib: 256,
                vcpu_count: 1,
                drives: vec![Drive {
                    path: "/d".into(),
                    read_only: true,
                }],
                nic: Some(Nic {
                    tap: "tap0".to_owned(),
                    mac: "02:00:00:00:00:01".parse().unwrap(),
                    has_mmds: false,
                }),
                append: "a=b".to_owned(),
                guest_cid: 3,
            },
            generation: Some(Generation::from_bytes([7; 16])),
            parent: None,
            ancestors: vec![Generation::from_bytes([6; 16]); 2],
            cause: Cause::Restore,
            artifact: Some("/a".into()),
            agent_version: None,
            created_ms: 17,
        }
    }

    #[test]
    fn a_state_survives_its_file() {
        let text = state().to_value().to_string();
        let object = Object::parse(text.as_bytes()).unwrap();
        assert_eq!(State::from_object(&object).unwrap(), state());
    }

    #[test]
    fn every_field_is_checked() {
        let Value::Object(map) = state().to_value() else {
            panic!("an object")
        };
        for field in map.keys() {
            let mut broken = map.clone();
            broken[field] = json!([[]]);
            let text = Value::from(broken).to_string();
            let object = Object::parse(text.as_bytes()).unwrap();
            State::from_object(&object).expect_err(field);
        }
    }

    #[test]
    fn a_lineage_is_remembered_up_to_a_limit() {
        let generation = |number: u8| Generation::from_bytes([number; 16]);
        let mut list = Vec::new();
        for number in 0..=u8::try_from(ANCESTORS_MAX).unwrap() {
            list = lineage(Some(generation(number)), &list);
        }
        assert_eq!(list.len(), ANCESTORS_MAX);
        assert_eq!(list[..2], [generation(64), generation(63)]);
        assert_eq!(lineage(None, &list), list);

        let read = |value: Value| {
            let text = json!({ "a": value }).to_string();
            let object = Object::parse(text.as_bytes()).unwrap();
            generations_from_object(&object, "a")
        };
        assert_eq!(read(generations_to_value(&list)).unwrap(), list);
        assert_eq!(read(Value::Null).unwrap(), []);
        list.push(generation(0));
        read(generations_to_value(&list)).expect_err("too many");
        read(json!(["x"])).expect_err("not a generation");
    }
}
