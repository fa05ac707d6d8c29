//! What a VM is to be, before anything of it is there: the plan that `boot` and `restore` make, and
//! the checks that come first.

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
    Drive, FindError, Gate, MachineSpec, Purpose, Start, StateFiles, VmmBinary, VmmKind,
    VmmVersion, find_binary, gate, host_problem, load_gate,
};

/// What a VMM that was just started is told to do.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// To boot the plan's machine.
    Boot,
    /// To load a snapshot from these files.
    Load(StateFiles),
}

impl Entry {
    /// Which way the VMM's command line has to provide for.
    pub(crate) const fn start(&self) -> Start {
        match self {
            Self::Boot => Start::Boot,
            Self::Load(_) => Start::Load,
        }
    }
}

/// A VM that a command wants to have.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    /// Its name, if the user gave one.
    pub(crate) name: Option<&'a VmName>,
    /// Where VMs are kept, if the user said so.
    pub(crate) state_dir: Option<&'a Path>,
    /// Whether the record is printed as JSON.
    pub(crate) json: bool,
    /// Host name for the guest, if the user gave one.
    pub(crate) hostname: Option<&'a str>,
    /// What becomes of the guest's machine id.
    pub(crate) machine_id: &'a MachineId,
    /// What the guest is told about its network interface.
    pub(crate) network: Network,
    /// What its metadata service tells it, besides its generation.
    pub(crate) metadata: Option<Metadata>,
    /// Whether to go without the proof.
    pub(crate) no_wait: bool,
    /// Whether to stay until the VM ends.
    pub(crate) foreground: bool,
    /// Whether to leave a VM that failed as it is.
    pub(crate) keep_on_failure: bool,
    /// What is run in the guest to see whether it is well.
    pub(crate) health: Option<HealthCheck>,
    /// What is wanted of the image's hooks.
    pub(crate) hooks: hooks::Options,
    /// When everything must be done.
    pub(crate) deadline: Instant,
    pub(crate) binary: VmmBinary,
    /// The machine. Drives in `stored_drives` get their paths once the VM directory is there.
    pub(crate) machine: MachineSpec,
    /// By the drives' numbers: the file to copy for the VM's own use.
    pub(crate) stored_drives: Vec<Option<PathBuf>>,
    /// What the VMM does with the machine.
    pub(crate) entry: Entry,
    /// The generation of the snapshot that it comes from.
    pub(crate) parent: Option<Generation>,
    /// The artifact that it comes from.
    pub(crate) artifact: Option<PathBuf>,
}

impl Plan<'_> {
    /// A machine that boots, with the defaults of all options.
    pub(crate) fn of_machine(machine: MachineSpec, binary: VmmBinary, deadline: Instant) -> Self {
        Self {
            name: None,
            state_dir: None,
            json: false,
            hostname: None,
            // A guest that boots has the one of its image, or makes one.
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

    /// A clone of the artifact's machine, with the defaults of all options. The VMM is chosen, and
    /// checked against the one that took the snapshot.
    pub(crate) fn of_artifact(
        artifact: &Artifact,
        force: bool,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let manifest = artifact.manifest();
        let binary = choose_vmm(Some(manifest.vmm_kind), Purpose::Restore, force)?;
        check_format(manifest, binary.kind, &binary.version)?;
        let mut machine = manifest.machine.clone();
        // Firecracker has the CID in its state, and shows it to nobody.
        if manifest.vmm_kind == VmmKind::Qemu {
            machine.guest_cid = draw_cid()?;
        }
        let stored = |drive: &Drive| artifact.stored_drive(&drive.path);
        Ok(Self {
            // A clone shares the one that it has with all its siblings.
            machine_id: &MachineId::Draw,
            stored_drives: machine.drives.iter().map(stored).collect(),
            entry: Entry::Load(artifact.state_files()),
            parent: Some(manifest.generation),
            artifact: Some(artifact.dir().to_owned()),
            ..Self::of_machine(machine, binary, deadline)
        })
    }

    /// Why the guest gets a generation.
    pub(crate) const fn cause(&self) -> Cause {
        match self.entry {
            Entry::Boot => Cause::Boot,
            Entry::Load(_) => Cause::Restore,
        }
    }

    /// What came of it when it goes well.
    pub(crate) const fn event(&self) -> &'static str {
        if self.no_wait { "started" } else { "ready" }
    }
}

/// Finds the VMM and has the fault table judge it.
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

/// Fails on a refusal, and says a warning, both with the version that is meant.
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

/// A context id that is most likely free on this host: there are two thousand million of them.
/// Those below 1024 are left to people.
pub(crate) fn draw_cid() -> Result<u32, Failure> {
    let drawn = random::bytes::<4>().or_fail(Exit::Internal, || "cannot draw a CID".to_owned())?;
    let cid = u32::from_be_bytes(drawn) & 0x7fff_ffff;
    Ok(cid.max(1024))
}

/// Checks a context id that the user gave: 0 to 2 are the hypervisor's, the loopback's and the
/// host's, and the last one is a wildcard.
pub(crate) fn check_cid(cid: u32) -> Result<u32, Failure> {
    if cid < 3 || cid == u32::MAX {
        let text = format!("{cid} is no vsock context id for a guest; take 3 or more");
        return Err(Failure::usage(text));
    }
    Ok(cid)
}

/// Asks whether this VMM can load what that one saved.
pub(crate) fn check_format(
    manifest: &Manifest,
    kind: VmmKind,
    version: &VmmVersion,
) -> Result<(), Failure> {
    let saved_by = VmmVersion::parse(&manifest.vmm_version).or_fail(Exit::Artifact, || {
        "the manifest names no VMM version".to_owned()
    })?;
    let verdict = load_gate(manifest.vmm_kind, &saved_by, version);
    check_gate(kind, version, verdict)
}

/// A watch over the VMM behind `process`.
pub(crate) fn watch(deadline: Instant, process: Option<&OwnedFd>) -> Watch<'_> {
    Watch::with_process(deadline, process.map(AsFd::as_fd))
}
