//! What is known about a VM, and how its VMM ended, as they stand in files.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};
use shared::id::Generation;
use shared::json::{JsonError, Object};
use shared::message::{Cause, ExitStatus};

use crate::os::json::{os_to_value, value_to_path};
use crate::os::process::ProcessId;
use crate::vmm::network::{nic_from_object, nic_to_value};
use crate::vmm::{Drive, MachineSpec, VmmKind};

/// Most drives of one VM.
pub const DRIVES_MAX: usize = 16;

/// How many of its ancestors a guest's record names. Those further back are forgotten.
pub const ANCESTORS_MAX: usize = 64;

/// How far a command has come with the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A command is starting it.
    Starting,
    /// It was proven ready.
    Ready,
    /// It was started without a proof, or failed it and was kept for a look.
    Unproven,
    /// A command is taking a snapshot of it; it may be paused.
    Snapshotting,
}

impl Stage {
    const ALL: [Self; 4] = [
        Self::Starting,
        Self::Ready,
        Self::Unproven,
        Self::Snapshotting,
    ];

    /// The word in files and lists.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unproven => "unproven",
            Self::Snapshotting => "snapshotting",
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.as_str() == text)
            .ok_or(())
    }
}

/// What is known about a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// How far a command has come with it.
    pub stage: Stage,
    /// Which VMM runs it.
    pub vmm_kind: VmmKind,
    /// The VMM's version, in its own words.
    pub vmm_version: String,
    /// The VMM's process.
    pub process: ProcessId,
    /// The VMM's parent.
    pub supervisor: ProcessId,
    /// The machine.
    pub machine: MachineSpec,
    /// The guest's name, once it was given one.
    pub generation: Option<Generation>,
    /// The name that its snapshot, or it before its latest snapshot, had.
    pub parent: Option<Generation>,
    /// All names that its memory had before, as far as they are remembered, the latest first.
    pub ancestors: Vec<Generation>,
    /// Why it has the name.
    pub cause: Cause,
    /// The artifact it was restored from.
    pub artifact: Option<PathBuf>,
    /// Version of the guest's agent, once it has said so.
    pub agent_version: Option<String>,
    /// When it was started, ms since 1970 UTC.
    pub created_ms: u64,
}

impl State {
    /// For the file and for `inspect`.
    #[must_use]
    pub fn to_value(&self) -> Value {
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

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
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

/// `latest` in front of the names before it, as many as are remembered.
#[must_use]
pub fn lineage(latest: Option<Generation>, before: &[Generation]) -> Vec<Generation> {
    let names = latest.into_iter().chain(before.iter().copied());
    names.take(ANCESTORS_MAX).collect()
}

/// A list of names, for files.
#[must_use]
pub fn generations_to_value(generations: &[Generation]) -> Value {
    let texts = generations.iter().map(Generation::to_string);
    texts.collect::<Vec<_>>().into()
}

/// Reads what [`generations_to_value`] wrote; nothing where an older version wrote nothing.
pub fn generations_from_object(
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

/// The machine, for files.
#[must_use]
pub fn machine_to_value(machine: &MachineSpec) -> Value {
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

/// Reads what [`machine_to_value`] wrote.
pub fn machine_from_object(object: &Object) -> Result<MachineSpec, JsonError> {
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

/// How a VMM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When, ms since 1970 UTC.
    pub ended_ms: u64,
}

impl ExitRecord {
    /// Whether it ended by itself and without a complaint.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.code == Some(0)
    }

    /// For the file and for `inspect`.
    #[must_use]
    pub fn to_value(self) -> Value {
        json!({ "code": self.code, "signal": self.signal, "ended_ms": self.ended_ms })
    }

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            code: object.opt_number("code")?,
            signal: object.opt_number("signal")?,
            ended_ms: object.number("ended_ms")?,
        })
    }
}

impl fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// How the workload that the image names ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadEnd {
    /// How its last process ended.
    pub status: ExitStatus,
    /// How often it was started again, if the guest has said so.
    pub restarts: Option<u32>,
    /// When the host heard of it, ms since 1970 UTC.
    pub ended_ms: u64,
}

impl WorkloadEnd {
    /// For the file and for `inspect`.
    #[must_use]
    pub fn to_value(self) -> Value {
        let (code, signal, core) = match self.status {
            ExitStatus::Code(code) => (Some(code), None, false),
            ExitStatus::Signal { number, core } => (None, Some(number), core),
        };
        json!({
            "code": code,
            "signal": signal,
            "core": core,
            "restarts": self.restarts,
            "ended_ms": self.ended_ms,
        })
    }

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            status: ExitStatus::from_object(object)?,
            restarts: object.opt_number("restarts")?,
            ended_ms: object.number("ended_ms")?,
        })
    }
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
        let name = |number: u8| Generation::from_bytes([number; 16]);
        let mut names = Vec::new();
        for number in 0..=u8::try_from(ANCESTORS_MAX).unwrap() {
            names = lineage(Some(name(number)), &names);
        }
        assert_eq!(names.len(), ANCESTORS_MAX);
        assert_eq!(names[..2], [name(64), name(63)]);
        assert_eq!(lineage(None, &names), names);

        let read = |value: Value| {
            let text = json!({ "a": value }).to_string();
            let object = Object::parse(text.as_bytes()).unwrap();
            generations_from_object(&object, "a")
        };
        assert_eq!(read(generations_to_value(&names)).unwrap(), names);
        assert_eq!(read(Value::Null).unwrap(), []);
        names.push(name(0));
        read(generations_to_value(&names)).expect_err("too many");
        read(json!(["x"])).expect_err("no name");
    }

    #[test]
    fn an_end_survives_its_file() {
        for (code, signal, text) in [(Some(0), None, "exit code 0"), (None, Some(9), "signal 9")] {
            let exit = ExitRecord {
                code,
                signal,
                ended_ms: 1,
            };
            let bytes = exit.to_value().to_string();
            let object = Object::parse(bytes.as_bytes()).unwrap();
            assert_eq!(ExitRecord::from_object(&object).unwrap(), exit);
            assert_eq!(
                (exit.to_string().as_str(), exit.is_clean()),
                (text, code == Some(0))
            );
        }
    }

    #[test]
    fn the_end_of_a_workload_survives_its_file() {
        let signal = ExitStatus::Signal {
            number: 11,
            core: true,
        };
        for (status, restarts) in [(ExitStatus::Code(0), None), (signal, Some(3))] {
            let end = WorkloadEnd {
                status,
                restarts,
                ended_ms: 1,
            };
            let bytes = end.to_value().to_string();
            let object = Object::parse(bytes.as_bytes()).unwrap();
            assert_eq!(WorkloadEnd::from_object(&object).unwrap(), end);
        }
    }
}
