//! `host-tool restore`: a guest from an artifact, ready and proven, or a named phase that failed.

use std::time::{Duration, Instant};

use shared::message::Cause;

use crate::artifact::{Artifact, Manifest};
use crate::boot::check_switches;
use crate::cli::Restore;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::record::{Phase, Record};
use crate::start::{Plan, check_cid, choose_vmm, draw_cid, judge, start};
use crate::vmm::{Purpose, Start, VmmBinary, VmmKind, VmmVersion, load_gate};

/// How long a restore may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(command: &Restore) -> Result<(), Failure> {
    let mut record = Record::new();
    match plan(command, &mut record) {
        Ok((plan, artifact)) => {
            let files = artifact.state_files();
            let mut enter = |vmm: &mut dyn crate::vmm::Vmm| vmm.load(&files, plan.deadline);
            start(&plan, Start::Load, record, &mut enter)
        }
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn plan<'a>(command: &'a Restore, record: &mut Record) -> Result<(Plan<'a>, Artifact), Failure> {
    let deadline = Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    check_switches(
        command.wait_ready,
        command.no_wait,
        command.hostname.as_deref(),
    )?;
    let given_cid = command.vsock_cid.map(check_cid).transpose()?;

    record.begin(Phase::Artifact);
    let artifact =
        Artifact::open(&command.artifact).map_err(|error| Failure::new(Exit::Artifact, error))?;
    record.set("artifact", artifact.dir().display().to_string());

    record.begin(Phase::Version);
    let manifest = artifact.manifest();
    let binary = choose_vmm(Some(manifest.vmm_kind), Purpose::Restore, command.force)?;
    judge_format(manifest, &binary)?;

    let mut machine = manifest.machine.clone();
    machine.guest_cid = match (manifest.vmm_kind, given_cid) {
        // Firecracker has the CID in its state, and shows it to nobody.
        (VmmKind::Firecracker, _) => machine.guest_cid,
        (VmmKind::Qemu, Some(cid)) => cid,
        (VmmKind::Qemu, None) => draw_cid()?,
    };
    let stored = |drive: &crate::vmm::Drive| artifact.stored_drive(&drive.path);
    let plan = Plan {
        name: command.name.as_ref(),
        common: command.common(),
        hostname: command.hostname.as_deref(),
        no_wait: command.no_wait,
        foreground: command.foreground,
        keep_on_failure: command.keep_on_failure,
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

/// Asks whether this VMM can load what that one saved.
fn judge_format(manifest: &Manifest, binary: &VmmBinary) -> Result<(), Failure> {
    let saved_by = VmmVersion::parse(&manifest.vmm_version).or_fail(Exit::Artifact, || {
        "the manifest names no VMM version".to_owned()
    })?;
    let verdict = load_gate(manifest.vmm_kind, &saved_by, &binary.version);
    judge(binary.kind, &binary.version, verdict)
}
