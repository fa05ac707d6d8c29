//! The plan of a VM that `boot` or `restore` makes before it starts anything, and the checks that
//! come first.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use shared::id::Generation;
use shared::message::{Cause, Network};

use crate::artifact::{Artifact, Manifest};
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::lifecycle::hooks;
use crate::os::deadline::Watch;
use crate::os::random;
use crate::values::{MachineId, VmName};
use crate::vmdir::health::HealthCheck;
use crate::vmm::metadata::Metadata;
use crate::vmm::{
    Drive, FindError, Gate, MachineSpec, OpenFile, Purpose, Start, StateFiles, VmmBinary, VmmKind,
    VmmVersion, find_binary, gate, host_problem, load_gate,
};

/// What a VMM that was just started does.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// Boots the plan's machine.
    Boot,
    /// Loads a snapshot from these files.
    Load(StateFiles),
}

impl Entry {
    /// The kind of start that the VMM's command line depends on.
    pub(crate) const fn start(&self) -> Start {
        match self {
            Self::Boot => Start::Boot,
            Self::Load(_) => Start::Load,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    /// `None` draws one.
    pub(crate) name: Option<&'a VmName>,
    /// `None` is the default directory.
    pub(crate) state_dir: Option<&'a Path>,
    /// Whether the record is printed as JSON.
    pub(crate) json: bool,
    /// The guest's host name. `None` derives it from the VM's name.
    pub(crate) hostname: Option<&'a str>,
    pub(crate) machine_id: &'a MachineId,
    /// The guest's network settings, sent with REBIND.
    pub(crate) network: Network,
    /// What the VMM's metadata service serves to the guest, besides the generation.
    pub(crate) metadata: Option<Metadata>,
    /// Whether the rebind and the proof are left to a later command.
    pub(crate) no_wait: bool,
    /// Whether the command waits until the VM ends.
    pub(crate) foreground: bool,
    /// Whether a VM that failed is kept for inspection.
    pub(crate) keep_on_failure: bool,
    /// The check that the supervisor runs in the guest again and again.
    pub(crate) health: Option<HealthCheck>,
    pub(crate) hooks: hooks::Options,
    /// The end of the time limit of the whole command.
    pub(crate) deadline: Instant,
    pub(crate) binary: VmmBinary,
    /// Drives in `stored_drives` get their paths once the VM directory exists.
    pub(crate) machine: MachineSpec,
    /// By drive number: the file of the artifact that is copied into the VM directory.
    pub(crate) stored_drives: Vec<Option<OpenFile>>,
    pub(crate) entry: Entry,
    /// The generation of the guest that the snapshot was taken of.
    pub(crate) parent: Option<Generation>,
    /// The directory of the artifact that is restored.
    pub(crate) artifact: Option<PathBuf>,
}

impl Plan<'_> {
    /// A plan to boot the machine, with the defaults of all options.
    pub(crate) fn of_machine(machine: MachineSpec, binary: VmmBinary, deadline: Instant) -> Self {
        Self {
            name: None,
            state_dir: None,
            json: false,
            hostname: None,
            // A guest that boots has the machine id of its image, or makes one.
            machine_id: &MachineId::Keep,
            network: Network::default(),
            metadata: None,
            no_wait: false,
            foreground: false,
            keep_on_failure: false,
            health: None,
            hooks: hooks::Options::default(),
            deadline,
            binary,
            stored_drives: vec![None; machine.drives.len()],
            machine,
            entry: Entry::Boot,
            parent: None,
            artifact: None,
        }
    }

    /// A plan to clone the artifact's machine, with the defaults of all options. It has a VMM that
    /// can load what the artifact's VMM saved.
    pub(crate) fn of_artifact(
        artifact: &Artifact,
        force: bool,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let manifest = artifact.manifest();
        let binary = choose_vmm(Some(manifest.vmm_kind), Purpose::Restore, force)?;
        check_format(manifest, binary.kind, &binary.version)?;
        let mut machine = manifest.machine.clone();
        // Firecracker's CID is in its saved state, and the host's kernel never sees it.
        if manifest.vmm_kind == VmmKind::Qemu {
            machine.guest_cid = draw_cid()?;
        }
        let stored = |drive: &Drive| artifact.stored_drive(&drive.path);
        Ok(Self {
            // A clone wakes with the machine id of all its siblings.
            machine_id: &MachineId::Draw,
            stored_drives: machine.drives.iter().map(stored).collect(),
            entry: Entry::Load(artifact.state_files()),
            parent: Some(manifest.generation),
            artifact: Some(artifact.dir().to_owned()),
            ..Self::of_machine(machine, binary, deadline)
        })
    }

    /// The cause in the guest's REBIND.
    pub(crate) const fn cause(&self) -> Cause {
        match self.entry {
            Entry::Boot => Cause::Boot,
            Entry::Load(_) => Cause::Restore,
        }
    }

    /// The event of a record without an error.
    pub(crate) const fn event(&self) -> &'static str {
        if self.no_wait { "started" } else { "ready" }
    }
}

/// Finds the VMM and checks it against the fault table.
pub(crate) fn choose_vmm(
    kind: Option<VmmKind>,
    purpose: Purpose,
    force: bool,
) -> Result<VmmBinary, Failure> {
    let binary = find_binary(kind).map_err(|error| {
        let exit = match error {
            FindError::Version { .. } => Exit::Version,
            _ => Exit::Start,
        };
        Failure::new(exit, error)
    })?;
    if let Some(problem) = host_problem(binary.kind) {
        return Err(Failure::new(Exit::Start, problem.to_string()));
    }
    let verdict = gate(binary.kind, &binary.version, purpose, force);
    check_gate(binary.kind, &binary.version, verdict)?;
    Ok(binary)
}

/// Fails on a refusal and logs warnings.
pub(crate) fn check_gate(kind: VmmKind, version: &VmmVersion, gate: Gate) -> Result<(), Failure> {
    match gate {
        Gate::Allow => Ok(()),
        Gate::Warn(symptoms) => {
            for symptom in symptoms {
                log::warn!("{kind} {version}: {symptom}");
            }
            Ok(())
        }
        Gate::Refuse { reason, remedy } => {
            let text = format!("{kind} {version}: {reason}; {remedy}");
            Err(Failure::new(Exit::Version, text))
        }
    }
}

/// Draws one of two thousand million context ids, so it is most likely free on this host. Users
/// choose those below 1024 by hand.
pub(crate) fn draw_cid() -> Result<u32, Failure> {
    let drawn = random::bytes::<4>().or_fail(Exit::Internal, || "cannot draw a CID".to_owned())?;
    let cid = u32::from_be_bytes(drawn) & 0x7fff_ffff;
    Ok(cid.max(1024))
}

/// Checks a context id that the user gave. 0 to 2 belong to the hypervisor, the loopback and the
/// host, and the last one is a wildcard.
pub(crate) fn check_cid(cid: u32) -> Result<u32, Failure> {
    if cid < 3 || cid == u32::MAX {
        let text = format!("{cid} is not a guest's vsock context id; choose 3 or more");
        return Err(Failure::usage(text));
    }
    Ok(cid)
}

/// Checks that this VMM can load what the manifest's VMM saved.
pub(crate) fn check_format(
    manifest: &Manifest,
    kind: VmmKind,
    version: &VmmVersion,
) -> Result<(), Failure> {
    let saved_by = VmmVersion::parse(&manifest.vmm_version).or_fail(Exit::Artifact, || {
        "the manifest has no valid VMM version".to_owned()
    })?;
    let verdict = load_gate(manifest.vmm_kind, &saved_by, version);
    check_gate(kind, version, verdict)
}

/// A watch that ends at the deadline or with the VMM, if its pidfd is known.
pub(crate) fn watch(deadline: Instant, process: Option<&OwnedFd>) -> Watch<'_> {
    Watch::with_process(deadline, process.map(AsFd::as_fd))
}
