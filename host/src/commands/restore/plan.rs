//! Makes the plan of a clone from the options of `restore`.

use std::path::Path;
use std::time::Duration;

use crate::artifact::Artifact;
use crate::cli::Restore;
use crate::commands::machine::Machine;
use crate::error::Failure;
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{Entry, Plan};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::values::MachineId;
use crate::vmm::{StateFiles, VmmKind, network};

/// Time limit of a restore without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Checks the options that all kinds of restore share.
pub(super) fn check<'a>(command: &'a Restore, record: &mut Record) -> Result<Machine<'a>, Failure> {
    Machine::check("restore", command.machine(), TIMEOUT_DEFAULT, record)
}

/// Opens an artifact. Begins the phase [`Phase::Artifact`].
pub(crate) fn open_artifact(dir: &Path, record: &mut Record) -> Result<Artifact, Failure> {
    record.begin(Phase::Artifact);
    reach(Point::ArtifactBefore)?;
    let artifact = Artifact::open(dir).map_err(|error| Failure::new(Exit::Artifact, error))?;
    record.set("artifact", artifact.dir().display().to_string());
    Ok(artifact)
}

/// Opens the artifact and plans the VM to restore from it.
pub(super) fn plan<'a>(command: &'a Restore, record: &mut Record) -> Result<Plan<'a>, Failure> {
    let checked = check(command, record)?;
    let artifact = open_artifact(&command.artifact, record)?;

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
