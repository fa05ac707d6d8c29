//! What a VM is to be, before anything of it is there: the plan that `boot` and `restore` make, and
//! the checks that come first.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use shared::id::Generation;
use shared::message::{Cause, Network};

use crate::cli::Common;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::lifecycle::hooks;
use crate::os::deadline::Watch;
use crate::os::random;
use crate::values::{MachineId, VmName};
use crate::vmdir::health::HealthCheck;
use crate::vmm::metadata::Metadata;
use crate::vmm::{
    Gate, MachineSpec, Purpose, Vmm, VmmBinary, VmmError, VmmKind, VmmVersion, find_binary, gate,
    host_problem,
};

/// A VM that a command wants to have.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// Its name, if the user gave one.
    pub name: Option<&'a VmName>,
    /// The options that every command has.
    pub common: Common,
    /// Host name for the guest, if the user gave one.
    pub hostname: Option<&'a str>,
    /// What becomes of the guest's machine id.
    pub machine_id: &'a MachineId,
    /// What the guest is told about its network interface.
    pub network: Network,
    /// What its metadata service tells it, besides its generation.
    pub metadata: Option<Metadata>,
    /// Whether to go without the proof.
    pub no_wait: bool,
    /// Whether to stay until the VM ends.
    pub foreground: bool,
    /// Whether to leave a VM that failed as it is.
    pub keep_on_failure: bool,
    /// What is run in the guest to see whether it is well.
    pub health: Option<HealthCheck>,
    /// What is wanted of the image's hooks.
    pub hooks: hooks::Options,
    /// When everything must be done.
    pub deadline: Instant,
    /// The VMM.
    pub binary: VmmBinary,
    /// The machine. Drives in `stored_drives` get their paths once the VM directory is there.
    pub machine: MachineSpec,
    /// By the drives' numbers: the file to copy for the VM's own use.
    pub stored_drives: Vec<Option<PathBuf>>,
    /// Why the guest gets a name.
    pub cause: Cause,
    /// The name that it has had.
    pub parent: Option<Generation>,
    /// The artifact that it comes from.
    pub artifact: Option<PathBuf>,
}

impl Plan<'_> {
    /// What came of it when it goes well.
    #[must_use]
    pub const fn event(&self) -> &'static str {
        if self.no_wait { "started" } else { "ready" }
    }
}

/// Finds the VMM and has the fault table judge it.
pub fn choose_vmm(
    kind: Option<VmmKind>,
    purpose: Purpose,
    force: bool,
) -> Result<VmmBinary, Failure> {
    let binary = find_binary(kind).map_err(|error| {
        let exit = match error {
            crate::vmm::FindError::Version { .. } => Exit::Version,
            _ => Exit::Start,
        };
        Failure::new(exit, error)
    })?;
    if let Some(problem) = host_problem(binary.kind) {
        return Err(Failure::new(Exit::Start, problem.to_string()));
    }
    let verdict = gate(binary.kind, &binary.version, purpose, force);
    judge(binary.kind, &binary.version, verdict)?;
    Ok(binary)
}

/// Fails on a refusal, and says a warning, both with the version that is meant.
pub fn judge(kind: VmmKind, version: &VmmVersion, gate: Gate) -> Result<(), Failure> {
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
pub fn draw_cid() -> Result<u32, Failure> {
    let drawn = random::bytes::<4>().or_fail(Exit::Internal, || "cannot draw a CID".to_owned())?;
    let cid = u32::from_be_bytes(drawn) & 0x7fff_ffff;
    Ok(cid.max(1024))
}

/// Checks a context id that the user gave: 0 to 2 are the hypervisor's, the loopback's and the
/// host's, and the last one is a wildcard.
pub fn check_cid(cid: u32) -> Result<u32, Failure> {
    if cid < 3 || cid == u32::MAX {
        let text = format!("{cid} is no vsock context id for a guest; take 3 or more");
        return Err(Failure::usage(text));
    }
    Ok(cid)
}

/// Boots or loads the machine of a VMM that was just started.
pub type Enter<'a> = &'a mut dyn FnMut(&mut dyn Vmm) -> Result<(), VmmError>;

/// A watch over the VMM behind `process`.
#[must_use]
pub fn watch(deadline: Instant, process: Option<&OwnedFd>) -> Watch<'_> {
    Watch::with_process(deadline, process.map(AsFd::as_fd))
}
