//! The manifest, which describes an artifact.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::id::Generation;
use shared::json::{JsonError, Object};
use shared::version::VersionRange;

use super::digest::Digest;
use super::{ArtifactError, FILES_MAX, FORMAT};
use crate::os::json::{JsonFileError, os_to_value, value_to_path};
use crate::vmdir::state::{
    generations_from_object, generations_to_value, machine_from_object, machine_to_value,
};
use crate::vmm::{MachineSpec, VmmKind};

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileEntry {
    /// Its name in the directory.
    pub(crate) name: String,
    pub(crate) len: u64,
    /// Recorded by `snapshot --sha256`.
    pub(crate) sha256: Option<Digest>,
}

impl FileEntry {
    fn to_value(&self) -> Value {
        let mut value = json!({ "name": self.name, "len": self.len });
        if let Some(digest) = self.sha256 {
            value["sha256"] = digest.to_string().into();
        }
        value
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            name: object.text("name")?,
            len: object.number("len")?,
            sha256: object.opt_parsed("sha256", "64 hexadecimal digits")?,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Which VMM wrote the state.
    pub(crate) vmm_kind: VmmKind,
    /// The VMM's version, as it printed it.
    pub(crate) vmm_version: String,
    /// Version of the agent in the guest.
    pub(crate) agent_version: String,
    /// Protocol versions that the agent speaks.
    pub(crate) agent_protocol: VersionRange,
    /// The guest's generation when the snapshot was taken.
    pub(crate) generation: Generation,
    /// Earlier generations of this guest memory, the latest first: of the same VM before earlier
    /// snapshots, and of the VMs that it was cloned from.
    pub(crate) ancestors: Vec<Generation>,
    /// The path of a drive that is in the artifact is its file's name.
    pub(crate) machine: MachineSpec,
    /// The path of the vsock socket in the VMM's state, if it is not in the VM directory because
    /// another program started the VM.
    pub(crate) vsock_path: Option<PathBuf>,
    pub(crate) files: Vec<FileEntry>,
    /// When it was made, ms since 1970 UTC.
    pub(crate) created_ms: u64,
    /// Version of host-tool that made it.
    pub(crate) host_version: String,
}

impl Manifest {
    /// As it stands in the file and in records.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "format": FORMAT,
            "vmm": { "kind": self.vmm_kind.to_string(), "version": self.vmm_version },
            "agent": {
                "version": self.agent_version,
                "protocol_min": self.agent_protocol.min,
                "protocol_max": self.agent_protocol.max,
            },
            "generation": self.generation.to_string(),
            "ancestors": generations_to_value(&self.ancestors),
            "machine": machine_to_value(&self.machine),
            "vsock_path": self.vsock_path.as_ref().map(os_to_value),
            "files": self.files.iter().map(FileEntry::to_value).collect::<Vec<_>>(),
            "created_ms": self.created_ms,
            "host_version": self.host_version,
        })
    }

    /// Parses the content of the file `path`. It may come from an attacker.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, ArtifactError> {
        let at_path = JsonFileError::content(path);
        let object = Object::parse(text).map_err(&at_path)?;
        let found: u32 = object.number("format").map_err(&at_path)?;
        if found != FORMAT {
            return Err(ArtifactError::Format { found });
        }
        Ok(Self::from_object(&object).map_err(&at_path)?)
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        let vmm = object.object("vmm")?;
        let agent = object.object("agent")?;
        let files = object.objects("files", FILES_MAX)?;
        Ok(Self {
            vmm_kind: vmm.parsed("kind", "firecracker or qemu")?,
            vmm_version: vmm.text("version")?,
            agent_version: agent.text("version")?,
            agent_protocol: VersionRange {
                min: agent.number("protocol_min")?,
                max: agent.number("protocol_max")?,
            },
            generation: object.parsed("generation", "32 hexadecimal digits")?,
            ancestors: generations_from_object(object, "ancestors")?,
            machine: machine_from_object(&object.object("machine")?)?,
            vsock_path: object.opt("vsock_path", "a path", value_to_path)?,
            files: files
                .iter()
                .map(FileEntry::from_object)
                .collect::<Result<_, _>>()?,
            created_ms: object.number("created_ms")?,
            host_version: object.text("host_version")?,
        })
    }

    /// Sum of the lengths of all files, in bytes.
    pub(crate) fn files_len(&self) -> u64 {
        let len = |sum: u64, file: &FileEntry| sum.saturating_add(file.len);
        self.files.iter().fold(0, len)
    }

    /// Whether every file has a digest.
    pub(crate) fn has_digests(&self) -> bool {
        self.files.iter().all(|file| file.sha256.is_some())
    }
}
