//! Takes a snapshot of a VM into an artifact. Then resumes the VM, its source, and proves it.
//!
//! ```text
//! lock ▶ (converge) ▶ version ▶ (checkpoint) ▶ hooks ▶
//!                               quiesce ▶ pause ▶ save ▶ disks ▶ resume ▶ rebind ▶ probe ▶ publish
//!                                  │         └──────┬──────┘
//!                               reopen     failed: resume, rebind, probe
//! ```
//!
//! After any failure the source is resumed if possible, and the report says whether that worked. A
//! part of the time limit is reserved for it. A completed artifact stays good when its source fails
//! afterwards. The next command repairs what a killed snapshot left: `snapshot` itself, or
//! [`finish_interrupted`] for all others.

mod checkpoint;
mod external;
mod run;
mod sessions;
mod source;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use shared::limits::PORT_DEFAULT;
use shared::message::Policy;

use self::run::SnapshotRun;
use self::source::Source;
use crate::artifact::draft::Draft;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::lifecycle::plan::check_gate;
use crate::lifecycle::{hooks, rebind};
use crate::os::signals::block_stop_signals;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::values::{CheckpointTag, VmName};
use crate::vmdir::state::Stage;
use crate::vmdir::{RunningVm, StateDir, VmDirError};
use crate::vmm::{Gate, Purpose, VmmVersion, gate};

/// A quarter of the time limit, and at most this, is reserved to resume the source after a failure.
const RESERVE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The deadline of the whole command.
    all: Instant,
    /// The deadline of the artifact, before the reserve.
    work: Instant,
}

impl Limits {
    fn new(timeout: Duration) -> Self {
        let all = Instant::now() + timeout;
        Self {
            all,
            work: all - (timeout / 4).min(RESERVE_MAX),
        }
    }
}

/// The VM to take a snapshot of.
#[derive(Debug, Clone)]
pub(crate) enum Subject<'a> {
    Managed {
        name: &'a VmName,
        /// `None` is the default directory.
        state_dir: Option<&'a Path>,
    },
    /// A Firecracker that another program started.
    External {
        api_socket: &'a Path,
        uds_path: &'a Path,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Options<'a> {
    /// The artifact directory to create.
    pub(crate) out: &'a Path,
    /// The time limit of the whole command.
    pub(crate) timeout: Duration,
    /// Whether to end the VM afterwards instead of resuming it.
    pub(crate) stop: bool,
    /// The checkpoint to wait for first.
    pub(crate) at_checkpoint: Option<&'a CheckpointTag>,
    pub(crate) hooks: hooks::Options,
    /// What happens to commands that run in the guest.
    pub(crate) policy: Policy,
    /// Whether to put the SHA-256 of every file into the manifest.
    pub(crate) sha256: bool,
    /// Whether to accept a VMM version with known faults.
    pub(crate) force: bool,
}

/// Takes the snapshot. The caller has begun [`Phase::Lock`] in `record`.
pub(crate) fn take(
    subject: &Subject<'_>,
    options: &Options<'_>,
    record: &mut Record,
) -> Result<(), Failure> {
    let limits = Limits::new(options.timeout);
    reach(Point::LockBefore)?;
    let mut source = find(subject, limits)?;
    reach(Point::LockAfter)?;
    if source.needs_converge() {
        record.begin(Phase::Converge);
        reach(Point::ConvergeBefore)?;
        source
            .converge(record)
            .map_err(|failure| source.with_logs(failure))?;
    }
    record.begin(Phase::Version);
    reach(Point::VersionBefore)?;
    let version = source.vmm.version(limits.all)?;
    let kind = source.vmm.kind();
    record.set(
        "vmm",
        json!({ "kind": kind.to_string(), "version": version.text }),
    );
    let verdict = gate(kind, &version, Purpose::Snapshot, options.force);
    let faults = match verdict {
        Gate::Warn(symptoms) => symptoms,
        verdict => check_gate(kind, &version, verdict).map(|()| Vec::new())?,
    };
    check_vsock_path(&source, &version)?;

    record.begin(Phase::Artifact);
    reach(Point::ArtifactBefore)?;
    let draft = Draft::create(options.out)?;
    if let Some(wanted) = options.at_checkpoint {
        checkpoint::wait(&source, wanted, record).map_err(|failure| source.with_logs(failure))?;
    }
    let hooked = source.run_hooks(options.hooks, record);
    hooked.map_err(|failure| source.with_logs(failure))?;
    // From here to the proof a signal would end this process and leave the guest quiesced or
    // paused. Signals are therefore blocked, at most until the time limit.
    block_stop_signals().or_fail(Exit::Internal, || "cannot hold signals back".to_owned())?;
    let mut run = SnapshotRun {
        options,
        source,
        version,
        faults,
    };
    let taken = run.take(draft, record);
    taken.map_err(|failure| run.source.with_logs(failure))
}

fn find(subject: &Subject<'_>, limits: Limits) -> Result<Source, Failure> {
    match *subject {
        Subject::Managed { name, state_dir } => {
            let state_dir = StateDir::existing(state_dir)?;
            let dir = state_dir.vm(name)?;
            // A clone that was not rebound yet would pass its siblings' identity on.
            rebind::rebind_pending(&state_dir, name, limits.all, |rebind| {
                let vm = dir.running()?;
                Ok(vm.guest(PORT_DEFAULT, limits.all).rebind(rebind)?)
            })?;
            let dir = state_dir.vm(name)?;
            let lock = dir.lock(limits.all)?;
            let vm = dir.running_under(&lock)?;
            Source::managed(vm, lock, limits)
        }
        Subject::External {
            api_socket,
            uds_path,
        } => Source::external(api_socket, uds_path, limits),
    }
}

/// A clone's vsock socket is in its own directory. If the saved state has another path, the load
/// must override it, which needs Firecracker 1.16.
fn check_vsock_path(source: &Source, version: &VmmVersion) -> Result<(), Failure> {
    match &source.vsock_path {
        Some(path) if (version.major, version.minor) < (1, 16) => {
            let text = format!(
                "the machine has its vsock socket at {}, where no clone can have its own before \
                 Firecracker 1.16; give it to Firecracker as 'vsock.sock' in its working directory",
                path.display()
            );
            Err(Failure::new(Exit::Version, text))
        }
        _ => Ok(()),
    }
}

/// Repairs a VM whose snapshot was interrupted: resumes it if it is paused, rebinds and proves it.
/// Leaves alone a VM that a running command takes a snapshot of, and any other VM.
///
/// # Errors
///
/// The snapshot was interrupted, and the VM was not proven before `deadline`.
pub(crate) fn finish_interrupted(vm: RunningVm, deadline: Instant) -> Result<RunningVm, Failure> {
    if vm.state.stage != Stage::Snapshotting {
        return Ok(vm);
    }
    let lock = match vm.dir.lock(Instant::now()) {
        // The command that takes the snapshot still runs, and resumes the VM itself.
        Err(VmDirError::Busy { .. }) => return Ok(vm),
        lock => lock?,
    };
    let dir = vm.dir.clone();
    let vm = dir.clone().running_under(&lock)?;
    if vm.state.stage != Stage::Snapshotting {
        return Ok(vm);
    }
    let limits = Limits {
        all: deadline,
        work: deadline,
    };
    let mut source = Source::managed(vm, lock, limits)?;
    let converged = source.converge(&mut Record::new());
    converged.map_err(|failure| source.with_logs(failure))?;
    drop(source);
    Ok(dir.running()?)
}
