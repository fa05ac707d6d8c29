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

pub(crate) mod checkpoint;
mod foreign;
mod sessions;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::limits::PORT_DEFAULT;
use shared::message::{Hello, Policy};

use self::source::Source;
use crate::artifact::draft::Draft;
use crate::artifact::{FileEntry, Manifest, digest_of};
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::HOST_VERSION;
use crate::guest::connection::Connection;
use crate::lifecycle::ending::kill;
use crate::lifecycle::plan::judge;
use crate::lifecycle::{hooks, rebind};
use crate::os::clock::unix_ms;
use crate::os::disk;
use crate::os::signals::block_stop_signals;
use crate::report::phase::Phase;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::values::{CheckpointTag, MIB, VmName};
use crate::vmdir::state::Stage;
use crate::vmdir::{RunningVm, StateDir, VmDirError};
use crate::vmm::{Drive, Gate, MachineSpec, Purpose, StateFiles, VmmVersion, gate};

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
    if source.is_unsettled() {
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
        verdict => judge(kind, &version, verdict).map(|()| Vec::new())?,
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
    let mut taking = Taking {
        options,
        source,
        version,
        faults,
    };
    let taken = taking.run(draft, record);
    taken.map_err(|failure| taking.source.with_logs(failure))
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

/// A snapshot under way.
#[derive(Debug)]
struct Taking<'a> {
    options: &'a Options<'a>,
    source: Source,
    version: VmmVersion,
    /// What this VMM version is known for, said when something fails: a snapshot that goes well
    /// was not touched by it.
    faults: Vec<&'static str>,
}

impl Taking<'_> {
    /// Takes the snapshot and lets the source go on, or ends it.
    fn run(&mut self, draft: Draft, record: &mut Record) -> Result<(), Failure> {
        record.begin(Phase::Quiesce);
        reach(Point::QuiesceBefore)?;
        self.source.write_stage(Stage::Snapshotting)?;
        let (hello, control) = self.source.quiesce(self.options.policy, record)?;
        let manifest = match self.save(&draft, &hello, record) {
            Ok(manifest) => manifest,
            Err(failure) => return Err(self.recover(failure, control, record)),
        };
        if self.options.stop {
            return self.publish_and_stop(draft, manifest, control, record);
        }
        let resumed = self.source.resume(control, record);
        let failed_phase = record.current();
        let published = self.publish(draft, manifest, record);
        match (resumed, published) {
            (Ok(()), published) => published,
            (Err(failure), Ok(())) => {
                self.warn_of_faults();
                record.set("source", "failed");
                record.blame(failed_phase);
                let artifact = self.options.out.display();
                let text = format!("the artifact {artifact} is good, but its source is not");
                Err(failure.context(text))
            }
            (Err(failure), Err(other)) => {
                self.warn_of_faults();
                record.set("source", "failed");
                record.blame(failed_phase);
                log::warn!("{other}");
                let text = "there is no artifact, and the VM does not go on".to_owned();
                Err(failure.context(text))
            }
        }
    }

    /// Stops the vCPUs and writes everything into the draft, except for the manifest.
    fn save(
        &mut self,
        draft: &Draft,
        hello: &Hello,
        record: &mut Record,
    ) -> Result<Manifest, Failure> {
        let Source {
            vmm,
            machine,
            limits,
            ..
        } = &mut self.source;
        record.begin(Phase::Pause);
        reach(Point::PauseBefore)?;
        vmm.pause(limits.work)?;
        reach(Point::PauseAfter)?;
        record.begin(Phase::Save);
        let files = StateFiles::in_dir(vmm.kind(), draft.dir());
        let mut progress = Progress::new("saving", u64::from(machine.memory_mib) * MIB);
        vmm.save(&files, &mut |bytes| progress.show(bytes), limits.work)?;
        drop(progress);
        reach(Point::SaveAfter)?;

        record.begin(Phase::Disks);
        let mut paths = vec![files.state];
        paths.extend(files.memory);
        let (machine, disks) = save_disks(machine, draft, limits.work, record)?;
        paths.extend(disks);
        reach(Point::DisksAfter)?;
        let files = paths.into_iter().map(entry).collect::<Result<_, _>>()?;
        let source = &self.source;
        let generation = hello.generation.or(source.generation);
        Ok(Manifest {
            vmm_kind: source.vmm.kind(),
            vmm_version: self.version.text.clone(),
            agent_version: hello.version.clone(),
            agent_protocol: hello.protocol,
            generation: generation
                .ok_or_else(|| Failure::new(Exit::Guest, "the guest has no name"))?,
            ancestors: source.ancestors.clone(),
            machine,
            vsock_path: source.vsock_path.clone(),
            files,
            created_ms: unix_ms(),
            host_version: HOST_VERSION.to_owned(),
        })
    }

    /// Ends the VM once there is an artifact. Until then it can still go on.
    fn publish_and_stop(
        &mut self,
        draft: Draft,
        manifest: Manifest,
        control: Connection,
        record: &mut Record,
    ) -> Result<(), Failure> {
        if let Err(failure) = self.publish(draft, manifest, record) {
            return Err(self.recover(failure, control, record));
        }
        record.begin(Phase::Stop);
        let reached = reach(Point::StopBefore).map_err(Failure::from);
        let stopped = reached.and_then(|()| self.source.vm().map_or(Ok(()), kill));
        drop(control);
        stopped.map_err(|failure| {
            let artifact = self.options.out.display();
            failure.context(format!(
                "the artifact {artifact} is good, but its source lives"
            ))
        })?;
        self.source.write_stage(Stage::Ready)
    }

    /// Completes the draft. Its source goes on meanwhile, so that there is time for digests.
    fn publish(
        &self,
        draft: Draft,
        mut manifest: Manifest,
        record: &mut Record,
    ) -> Result<(), Failure> {
        record.begin(Phase::Publish);
        reach(Point::PublishBefore)?;
        if self.options.sha256 {
            let mut progress = Progress::new("reading", manifest.files_len());
            let mut read_len = 0;
            for file in &mut manifest.files {
                let path = draft.dir().join(&file.name);
                let mut report = |len: u64| {
                    read_len += len;
                    progress.show(read_len);
                };
                file.sha256 = Some(digest_of(&path, &mut report, self.source.limits.all)?);
            }
        }
        let path = draft.publish(&manifest)?;
        record.set("artifact", path.display().to_string());
        Ok(())
    }

    /// Lets the source go on after a failure, and says whether it does.
    fn recover(&mut self, failure: Failure, control: Connection, record: &mut Record) -> Failure {
        let failed_phase = record.current();
        let result = self.source.go_on(control, record);
        record.blame(failed_phase);
        self.warn_of_faults();
        match result {
            Ok(()) => {
                record.set("source", "ready");
                failure.context("there is no artifact; the VM goes on and is ready".to_owned())
            }
            Err(other) => {
                record.set("source", "failed");
                log::warn!("the VM does not go on: {other}");
                failure.context("there is no artifact, and the VM does not go on".to_owned())
            }
        }
    }

    fn warn_of_faults(&self) {
        self.faults.iter().for_each(|fault| log::warn!("{fault}"));
    }
}

/// Copies the drives that the guest may write to, and gives the machine that has the copies. Those
/// that it only reads stay where they are, and the manifest says where.
fn save_disks(
    machine: &MachineSpec,
    draft: &Draft,
    deadline: Instant,
    record: &mut Record,
) -> Result<(MachineSpec, Vec<PathBuf>), Failure> {
    let mut machine = machine.clone();
    let mut copies = Vec::new();
    let mut ways: Vec<Value> = Vec::new();
    for (index, drive) in machine.drives.iter_mut().enumerate() {
        if let Drive {
            path,
            read_only: false,
        } = drive
        {
            let name = format!("disk{index}");
            let copy = draft.dir().join(&name);
            let len = fs::metadata(&*path).map_or(0, |found| found.len());
            let mut progress = Progress::new("copying", len);
            let way = disk::copy(path, &copy, &mut |at| progress.show(at), deadline)
                .map_err(|error| error.into_failure(Exit::Artifact))?;
            ways.push(json!({ "name": name, "how": way.as_str() }));
            *path = name.into();
            copies.push(copy);
        }
    }
    if !ways.is_empty() {
        record.set("disks", ways);
    }
    Ok((machine, copies))
}

/// What the manifest says of a file that was written.
fn entry(path: PathBuf) -> Result<FileEntry, Failure> {
    let metadata = fs::metadata(&path).or_fail(Exit::Artifact, || {
        format!("cannot look at {}", path.display())
    })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(FileEntry {
        name: name.into_owned(),
        len: metadata.len(),
        sha256: None,
    })
}
