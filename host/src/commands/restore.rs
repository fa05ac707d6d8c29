//! `host-tool restore`: a guest from an artifact, ready and proven, or a named phase that failed.

pub mod adopt;
pub mod fleet;

use std::time::{Duration, Instant};

use shared::message::Cause;

use crate::artifact::{Artifact, Manifest};
use crate::cli::Restore;
use crate::commands::boot::check_switches;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::plan::{Plan, check_cid, choose_vmm, draw_cid, judge};
use crate::lifecycle::start::start;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::report::reports::Reports;
use crate::values::MachineId;
use crate::vmm::metadata::{Metadata, require_service};
use crate::vmm::{
    MachineSpec, Purpose, Start, StateFiles, Vmm, VmmKind, VmmVersion, load_gate, network,
};

/// How long a restore may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(command: &Restore) -> Result<(), Failure> {
    if command.api_sock.is_some() || command.uds.is_some() || command.cid.is_some() {
        return adopt::run(command);
    }
    if command.count.is_some() || command.parallel.is_some() {
        return fleet::run(command);
    }
    let mut record = Record::new();
    match plan(command, &mut record) {
        Ok((plan, artifact)) => {
            let files = state_files(&artifact, &plan.machine);
            let mut enter = |vmm: &mut dyn Vmm| vmm.load(&files, plan.deadline);
            start(&plan, Start::Load, record, &mut enter)
        }
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

/// Checks the command line and opens the artifact. Gives the time by which all must be done.
pub fn open(command: &Restore, record: &mut Record) -> Result<(Instant, Artifact), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    record.report_to(Reports::new(
        "restore",
        command.trace.as_deref(),
        command.timeline.as_deref(),
    )?);
    check_switches(
        command.wait_ready,
        command.no_wait,
        command.hostname.as_deref(),
    )?;
    record.begin(Phase::Artifact);
    reach(Point::ArtifactBefore)?;
    let artifact =
        Artifact::open(&command.artifact).map_err(|error| Failure::new(Exit::Artifact, error))?;
    record.set("artifact", artifact.dir().display().to_string());
    Ok((deadline, artifact))
}

/// Opens the artifact, and plans the VM that is restored from it.
pub fn plan<'a>(
    command: &'a Restore,
    record: &mut Record,
) -> Result<(Plan<'a>, Artifact), Failure> {
    let network = network::settings(command.net_address, command.net_mac, command.net_gateway)?;
    let given_cid = command.vsock_cid.map(check_cid).transpose()?;
    let health = command.health().check()?;
    let (deadline, artifact) = open(command, record)?;

    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let manifest = artifact.manifest();
    let binary = choose_vmm(Some(manifest.vmm_kind), Purpose::Restore, command.force)?;
    judge_format(manifest, binary.kind, &binary.version)?;

    let mut machine = manifest.machine.clone();
    machine.guest_cid = match given_cid {
        // Firecracker has the CID in its state, and shows it to nobody.
        _ if manifest.vmm_kind == VmmKind::Firecracker => machine.guest_cid,
        Some(cid) => cid,
        None => draw_cid()?,
    };
    let tap = network::move_nic(&mut machine, command.nic.as_ref())?;
    network::judge_move(tap.as_deref(), binary.kind, &binary.version)?;
    network::require_nic(&network, &machine)?;
    let metadata = command.mmds.as_deref().map(Metadata::read).transpose()?;
    require_service(metadata.as_ref(), &machine, binary.kind)?;
    let stored = |drive: &crate::vmm::Drive| artifact.stored_drive(&drive.path);
    let plan = Plan {
        name: command.name.as_ref(),
        common: command.common(),
        hostname: command.hostname.as_deref(),
        machine_id: machine_id(command),
        network,
        metadata,
        no_wait: command.no_wait,
        foreground: command.foreground,
        keep_on_failure: command.keep_on_failure,
        health,
        hooks: command.hooks(),
        deadline,
        binary,
        stored_drives: machine.drives.iter().map(stored).collect(),
        machine,
        cause: Cause::Restore,
        parent: Some(manifest.generation),
        artifact: Some(artifact.dir().to_owned()),
    };
    Ok((plan, artifact))
}

/// The files of the artifact, for a machine that may be on another tap device than its snapshot.
#[must_use]
pub fn state_files(artifact: &Artifact, machine: &MachineSpec) -> StateFiles {
    let tap = |machine: &MachineSpec| machine.nic.as_ref().map(|nic| nic.tap.clone());
    let wanted = tap(machine);
    StateFiles {
        tap: wanted.filter(|_| tap(machine) != tap(&artifact.manifest().machine)),
        ..artifact.state_files()
    }
}

/// What becomes of the guest's machine id: it shares the one it has with all its siblings.
pub fn machine_id(command: &Restore) -> &MachineId {
    command.machine_id.as_ref().unwrap_or(&MachineId::Draw)
}

/// Asks whether this VMM can load what that one saved.
pub fn judge_format(
    manifest: &Manifest,
    kind: VmmKind,
    version: &VmmVersion,
) -> Result<(), Failure> {
    let saved_by = VmmVersion::parse(&manifest.vmm_version).or_fail(Exit::Artifact, || {
        "the manifest names no VMM version".to_owned()
    })?;
    let verdict = load_gate(manifest.vmm_kind, &saved_by, version);
    judge(kind, version, verdict)
}
