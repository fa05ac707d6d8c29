//! From the options of `restore` to the plan of a clone.

use std::path::Path;
use std::time::{Duration, Instant};

use shared::message::Identity;

use crate::artifact::Artifact;
use crate::cli::Restore;
use crate::error::Failure;
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{Entry, Plan, check_cid};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::report::reports::Reports;
use crate::values::MachineId;
use crate::vmdir::health::{HealthCheck, HealthOptions};
use crate::vmm::metadata::{Metadata, require_service};
use crate::vmm::{StateFiles, VmmKind, network};

/// How long a restore may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Checks the command line and opens the artifact. Gives the time by which all must be done.
pub(crate) fn open(command: &Restore, record: &mut Record) -> Result<(Instant, Artifact), Failure> {
    let deadline = Instant::now() + command.common().timeout.unwrap_or(TIMEOUT_DEFAULT);
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
    Ok((deadline, open_artifact(&command.artifact, record)?))
}

/// Opens an artifact as the phase of that name.
pub(crate) fn open_artifact(dir: &Path, record: &mut Record) -> Result<Artifact, Failure> {
    record.begin(Phase::Artifact);
    reach(Point::ArtifactBefore)?;
    let artifact = Artifact::open(dir).map_err(|error| Failure::new(Exit::Artifact, error))?;
    record.set("artifact", artifact.dir().display().to_string());
    Ok(artifact)
}

/// Opens the artifact, and plans the VM that is restored from it.
pub(crate) fn plan<'a>(command: &'a Restore, record: &mut Record) -> Result<Plan<'a>, Failure> {
    let network = network::settings(command.net_address, command.net_mac, command.net_gateway)?;
    let given_cid = command.vsock_cid.map(check_cid).transpose()?;
    let health = health_check(command)?;
    let (deadline, artifact) = open(command, record)?;

    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let mut plan = Plan::of_artifact(&artifact, command.force, deadline)?;
    let kind = plan.binary.kind;
    if let (Some(cid), VmmKind::Qemu) = (given_cid, kind) {
        plan.machine.guest_cid = cid;
    }
    let tap = network::move_nic(&mut plan.machine, command.nic.as_ref())?;
    network::check_move(tap.as_deref(), kind, &plan.binary.version)?;
    network::require_nic(&network, &plan.machine)?;
    let metadata = command.mmds.as_deref().map(Metadata::read).transpose()?;
    require_service(metadata.as_ref(), &plan.machine, kind)?;
    plan.entry = Entry::Load(StateFiles {
        tap,
        ..artifact.state_files()
    });
    let common = command.common();
    Ok(Plan {
        name: command.name.as_ref(),
        state_dir: common.state_dir,
        json: common.json,
        hostname: command.hostname.as_deref(),
        machine_id: machine_id(command),
        network,
        metadata,
        no_wait: command.no_wait,
        foreground: command.foreground,
        keep_on_failure: command.keep_on_failure,
        health,
        hooks: hooks(command),
        ..plan
    })
}

/// What is wanted of the image's hooks.
pub(crate) fn hooks(command: &Restore) -> hooks::Options {
    hooks::Options {
        limit: command.hook_timeout,
        ignore: command.ignore_hooks,
    }
}

fn health_check(command: &Restore) -> Result<Option<HealthCheck>, Failure> {
    let options = HealthOptions {
        command: command.health_cmd.as_deref(),
        interval: command.health_interval,
        timeout: command.health_timeout,
        retries: command.health_retries,
    };
    options.check()
}

/// What becomes of the guest's machine id: it shares the one it has with all its siblings.
pub(crate) fn machine_id(command: &Restore) -> &MachineId {
    command.machine_id.as_ref().unwrap_or(&MachineId::Draw)
}

/// Checks the options that `boot` and `restore` share.
pub(crate) fn check_switches(
    wait_ready: bool,
    no_wait: bool,
    hostname: Option<&str>,
) -> Result<(), Failure> {
    if wait_ready && no_wait {
        return Err(Failure::usage(
            "--wait-ready and --no-wait exclude each other",
        ));
    }
    match hostname {
        Some(name) if !Identity::is_hostname(name) => Err(Failure::usage(format!(
            "'{}' is no host name: at most 64 letters, digits, '-' or '.'",
            name.escape_debug()
        ))),
        _ => Ok(()),
    }
}
