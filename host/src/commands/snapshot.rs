//! `host-tool snapshot`: writes an artifact of a VM, which then resumes and proves that it works.

use std::time::Duration;

use crate::cli::Snapshot;
use crate::error::Failure;
use crate::lifecycle::hooks;
use crate::lifecycle::snapshot::{Options, Subject, take};
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::report::reports::Reports;

/// Time limit without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

pub(crate) fn run(command: &Snapshot) -> Result<(), Failure> {
    let mut record = Record::new();
    if let Some(name) = &command.name {
        record.set("name", name.as_str());
    }
    let result = snapshot(command, &mut record);
    let event = if command.stop { "stopped" } else { "ready" };
    let is_taken = result.is_ok();
    let ended = record.conclude(result, event, command.json);
    ended.map_err(|failure| match is_taken {
        // The user named the artifact and the VM, so neither is taken away.
        true => failure
            .context(format!(
                "the artifact {} is good and its source is {event}, but the record is lost",
                command.out.display()
            ))
            .in_phase(Phase::Publish.as_str()),
        false => failure,
    })
}

fn snapshot(command: &Snapshot, record: &mut Record) -> Result<(), Failure> {
    record.report_to(Reports::new(
        "snapshot",
        command.trace.as_deref(),
        command.timeline.as_deref(),
    )?);
    let options = Options {
        out: &command.out,
        timeout: command.timeout.unwrap_or(TIMEOUT_DEFAULT),
        stop: command.stop,
        at_checkpoint: command.at_checkpoint.as_ref(),
        hooks: hooks::Options {
            limit: command.hook_timeout,
            ignore: command.ignore_hooks,
        },
        policy: command.policy,
        sha256: command.sha256,
        force: command.force,
    };
    record.begin(Phase::Lock);
    take(&subject(command)?, &options, record)
}

/// The VM that the command line selects.
fn subject(command: &Snapshot) -> Result<Subject<'_>, Failure> {
    match (&command.name, &command.api_sock, &command.uds) {
        (Some(name), None, None) => Ok(Subject::Managed {
            name,
            state_dir: command.state_dir.as_deref(),
        }),
        (None, Some(_), Some(_)) if command.stop => Err(Failure::usage(
            "--stop is for VMs of host-tool; the program that started this VM has to stop it",
        )),
        (None, Some(api_socket), Some(uds_path)) => Ok(Subject::External {
            api_socket,
            uds_path,
        }),
        _ => Err(Failure::usage(
            "give --name for a VM of this host, or --api-sock and --uds for another VM",
        )),
    }
}
