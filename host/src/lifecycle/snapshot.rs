//! An artifact of a VM, which then goes on as it was, and proves it.
//!
//! ```text
//! lock ▶ (converge) ▶ version ▶ (checkpoint) ▶ hooks ▶
//!                               quiesce ▶ pause ▶ save ▶ disks ▶ resume ▶ rebind ▶ probe ▶ publish
//!                                  │         └──────┬──────┘
//!                               reopen     failed: resume, rebind, probe
//! ```
//!
//! Whatever fails, the source is let go on where that is possible, and the report says whether it
//! does. A part of the time limit is kept back for that. An artifact that was completed stays good
//! when its source fails afterwards. What a command that was killed left is put right by the next
//! one, by [`finish_interrupted`] where that is no snapshot.

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

/// What is kept back of the time limit, to let the source go on after a failure: a quarter, and at
/// most this.
const RESERVE_MAX: Duration = Duration::from_secs(5);

/// Until when what must be done.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Everything.
    all: Instant,
    /// The artifact.
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

/// The VM that a snapshot is taken of.
#[derive(Debug, Clone)]
pub(crate) enum Subject<'a> {
    Managed {
        name: &'a VmName,
        /// Where VMs are kept, if the user said so.
        state_dir: Option<&'a Path>,
    },
    /// A Firecracker that another program started.
    External {
        api_socket: &'a Path,
        uds_path: &'a Path,
    },
}

/// What kind of snapshot is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Options<'a> {
    /// The artifact directory to create.
    pub(crate) out: &'a Path,
    /// How long all of it may take.
    pub(crate) timeout: Duration,
    /// Whether the VM is ended afterwards.
    pub(crate) stop: bool,
    /// The checkpoint that is waited for first.
    pub(crate) at_checkpoint: Option<&'a CheckpointTag>,
    /// What is wanted of the image's hooks.
    pub(crate) hooks: hooks::Options,
    /// What becomes of running commands.
    pub(crate) policy: Policy,
    /// Whether the manifest has the SHA-256 of every file.
    pub(crate) sha256: bool,
    /// Whether to go on despite a VMM version that may not work.
    pub(crate) force: bool,
}

/// Takes the snapshot. `record` stands in its phase [`Phase::Lock`].
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
    // From here to the proof a signal would leave the guest standing still. It is not lost on the
    // user: all of this is bounded by the time limit.
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
            let state_dir = StateDir::open(state_dir)?;
            let dir = state_dir.vm(name)?;
            // A clone that nobody has named yet would pass its siblings' identity on.
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

/// A clone has its vsock socket in its own directory. A state that names another place can only be
/// loaded by a Firecracker that takes the clone's word for it.
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

/// Puts a VM right whose snapshot was interrupted: it goes on, is named, and proves itself. One
/// that a snapshot is being taken of, and any other, is left alone.
///
/// # Errors
///
/// When it was interrupted and does not go on before `deadline`.
pub(crate) fn finish_interrupted(vm: RunningVm, deadline: Instant) -> Result<RunningVm, Failure> {
    if vm.state.stage != Stage::Snapshotting {
        return Ok(vm);
    }
    let lock = match vm.dir.lock(Instant::now()) {
        // Whoever takes the snapshot sees to it.
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
