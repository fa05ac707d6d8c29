//! Makes the plan of a clone from the options of `restore`.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::artifact::{Artifact, ArtifactError, Trust};
use crate::cli::Restore;
use crate::commands::machine::Machine;
use crate::error::Failure;
use crate::failpoint::{Point, reach};
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{Entry, Plan};
use crate::report::phase::Phase;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::values::MachineId;
use crate::vmm::{StateFiles, VmmKind, network};

/// Time limit of a restore without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Checks the options that all kinds of restore share.
pub(super) fn check<'a>(command: &'a Restore, record: &mut Record) -> Result<Machine<'a>, Failure> {
    Machine::check("restore", command.machine(), TIMEOUT_DEFAULT, record)
}

/// Opens an artifact to restore. Begins the phase [`Phase::Artifact`].
pub(crate) fn open_artifact(
    dir: &Path,
    trust: &Trust<'_>,
    record: &mut Record,
) -> Result<Artifact, Failure> {
    record.begin(Phase::Artifact);
    reach(Point::ArtifactBefore)?;
    let artifact = Artifact::open(dir)?;
    artifact.check_trust(trust)?;
    record.set("artifact", artifact.dir().display().to_string());
    Ok(artifact)
}

/// Opens the artifact of the command line, and compares its digests if that is asked for.
pub(super) fn artifact(
    command: &Restore,
    deadline: Instant,
    record: &mut Record,
) -> Result<Artifact, Failure> {
    let trust = Trust {
        is_given: command.trust_artifact,
        drives: &command.allow_drive,
    };
    let artifact = open_artifact(&command.artifact, &trust, record)?;
    if command.verify {
        verify(&artifact, deadline)?;
        record.set("sha256", true);
    }
    Ok(artifact)
}

fn verify(artifact: &Artifact, deadline: Instant) -> Result<(), ArtifactError> {
    let manifest = artifact.manifest();
    if !manifest.has_digests() {
        let path = artifact.dir().to_owned();
        return Err(ArtifactError::NoDigests { path });
    }
    let mut progress = Progress::new("reading", manifest.files_len());
    artifact.verify(&mut |bytes| progress.show(bytes), deadline)
}

/// Opens the artifact and plans the VM to restore from it.
pub(super) fn plan<'a>(command: &'a Restore, record: &mut Record) -> Result<Plan<'a>, Failure> {
    let checked = check(command, record)?;
    let artifact = artifact(command, checked.deadline, record)?;

    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let mut plan = Plan::of_artifact(&artifact, command.force, checked.deadline)?;
    let kind = plan.binary.kind;
    if let (Some(cid), VmmKind::Qemu) = (checked.cid, kind) {
        plan.machine.guest_cid = cid;
    }
    let tap = network::move_nic(&mut plan.machine, command.nic.as_ref())?;
    network::check_move(tap.as_deref(), kind, &plan.binary.version)?;
    let metadata = checked.metadata()?;
    let plan = Plan {
        entry: Entry::Load(StateFiles {
            tap,
            ..artifact.state_files()
        }),
        machine_id: machine_id(command),
        hooks: hooks(command),
        ..plan
    };
    checked.plan(plan, metadata)
}

pub(crate) fn hooks(command: &Restore) -> hooks::Options {
    hooks::Options {
        limit: command.hook_timeout,
        ignore: command.ignore_hooks,
    }
}

/// The guest's new machine id. The default is a random one: with the snapshot's, all clones would
/// have the same.
pub(crate) fn machine_id(command: &Restore) -> &MachineId {
    command.machine_id.as_ref().unwrap_or(&MachineId::Draw)
}
