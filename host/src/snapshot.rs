//! `host-tool snapshot`: an artifact of a VM, which then goes on as it was, and proves it.
//!
//! ```text
//! lock ▶ (converge) ▶ version ▶ quiesce ▶ pause ▶ save ▶ disks ▶ resume ▶ rebind ▶ probe ▶ publish
//!                                  │         └──────┬──────┘
//!                               reopen     failed: resume, rebind, probe
//! ```
//!
//! Whatever fails, the source is let go on where that is possible, and the report says whether it
//! does. A part of the time limit is kept back for that. An artifact that was completed stays good
//! when its source fails afterwards.

mod progress;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde_json::json;
use shared::exchange::{ExchangeError, Request};
use shared::id::Token;
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, FailCode, Hello, Identity, Message, Quiesce, Reopen};

use self::progress::Progress;
use crate::artifact::draft::Draft;
use crate::artifact::{FileEntry, Manifest};
use crate::cli::Snapshot;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::HOST_VERSION;
use crate::guest::connection::Connection;
use crate::guest::driver::{AskError, AskErrorReason, ask};
use crate::handshake::{Naming, prove};
use crate::log_tails;
use crate::random;
use crate::record::{Phase, Record};
use crate::start::{copy_disk, judge, watch};
use crate::stop::kill;
use crate::supervisor::unix_ms;
use crate::vmdir::state::Stage;
use crate::vmdir::{Lock, RunningVm, StateDir};
use crate::vmm::{
    API_SOCKET, Drive, Gate, Purpose, RunState, StateFiles, Vmm, VmmVersion, connect, gate,
};

/// How long a snapshot may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// What is kept back of the time limit, to let the source go on after a failure: a quarter, and at
/// most this.
const RESERVE_MAX: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(command: &Snapshot) -> Result<(), Failure> {
    let mut record = Record::new();
    record.set("name", command.name.as_str());
    match snapshot(command, &mut record) {
        Ok(()) => {
            let event = if command.stop { "stopped" } else { "ready" };
            record.finish(event, command.json)
        }
        Err(failure) => Err(record.fail(failure, command.json)),
    }
}

fn snapshot(command: &Snapshot, record: &mut Record) -> Result<(), Failure> {
    let now = Instant::now();
    let timeout = command.timeout.unwrap_or(TIMEOUT_DEFAULT);
    let deadline = now + timeout;
    let work_deadline = deadline - (timeout / 4).min(RESERVE_MAX);

    record.begin(Phase::Lock);
    let dir = StateDir::open(command.state_dir.as_deref())?.vm(&command.name)?;
    let lock = dir.lock(deadline)?;
    let vm = dir.running_under(&lock)?;
    let process = vm.process.try_clone();
    let process = process.or_fail(Exit::Defect, || "cannot copy a pidfd".to_owned())?;
    let socket = vm.dir.file(API_SOCKET);
    let vmm = connect(vm.state.vmm_kind, &socket, Some(process), deadline)?;
    let mut source = Source {
        vm,
        vmm,
        deadline,
        work_deadline,
        faults: Vec::new(),
        _lock: lock,
    };

    let needs_name = source.vm.state.generation.is_none();
    if needs_name || source.vm.state.stage == Stage::Snapshotting {
        record.begin(Phase::Converge);
        source
            .converge(record)
            .map_err(|failure| source.with_logs(failure))?;
    }
    record.begin(Phase::Version);
    let version = source.vmm.version(deadline)?;
    record.set(
        "vmm",
        json!({ "kind": source.vmm.kind().to_string(), "version": version.text }),
    );
    let verdict = gate(
        source.vmm.kind(),
        &version,
        Purpose::Snapshot,
        command.force,
    );
    source.faults = match verdict {
        Gate::Warn(symptoms) => symptoms,
        verdict => judge(source.vmm.kind(), &version, verdict).map(|()| Vec::new())?,
    };

    record.begin(Phase::Artifact);
    let draft = Draft::create(&command.out)?;
    // From here to the proof a signal would leave the guest standing still. It is not lost on the
    // user: all of this is bounded by the time limit.
    hold_signals()?;
    let taken = source.take(command, draft, &version, record);
    taken.map_err(|failure| source.with_logs(failure))
}

fn hold_signals() -> Result<(), Failure> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()
        .or_fail(Exit::Defect, || "cannot hold signals back".to_owned())
}

/// The VM that a snapshot is taken of.
#[derive(Debug)]
struct Source {
    vm: RunningVm,
    vmm: Box<dyn Vmm>,
    /// When everything must be done.
    deadline: Instant,
    /// When the artifact must be done.
    work_deadline: Instant,
    /// What this VMM version is known for, said when something fails: a snapshot that goes well
    /// was not touched by it.
    faults: Vec<&'static str>,
    _lock: Lock,
}

impl Source {
    /// Puts right what an interrupted snapshot left, or names a guest that nobody named yet.
    fn converge(&mut self, record: &mut Record) -> Result<(), Failure> {
        match self.vmm.run_state(self.deadline)? {
            RunState::Paused => {
                log::warn!("an interrupted snapshot left the VM paused; it goes on now");
                self.vmm.resume(self.deadline)?;
            }
            RunState::Running => {}
            RunState::NotStarted | RunState::Ended => {
                return Err(Failure::new(
                    Exit::Start,
                    "the VMM has no machine that can go on",
                ));
            }
        }
        let cause = match self.vm.state.generation {
            Some(_) => Cause::Resume,
            None => self.vm.state.cause,
        };
        let naming = self.rename(cause)?;
        self.prove(&naming, record)
    }

    /// Takes the snapshot and lets the source go on, or ends it.
    fn take(
        &mut self,
        command: &Snapshot,
        draft: Draft,
        version: &VmmVersion,
        record: &mut Record,
    ) -> Result<(), Failure> {
        self.write_stage(Stage::Snapshotting)?;
        record.begin(Phase::Quiesce);
        let (hello, control) = self.quiesce(command, record)?;
        let manifest = match self.save(&draft, &hello, version, record) {
            Ok(manifest) => manifest,
            Err(failure) => return Err(self.recover(failure, control, record)),
        };
        if command.stop {
            record.begin(Phase::Stop);
            let stopped = kill(&self.vm);
            drop(control);
            publish(draft, &manifest, record)?;
            stopped?;
            return self.write_stage(Stage::Ready);
        }
        let resumed = self.resume(control, record);
        let failed_phase = record.current();
        let published = publish(draft, &manifest, record);
        match (resumed, published) {
            (Ok(()), published) => published,
            (Err(failure), Ok(())) => {
                self.faults.iter().for_each(|fault| log::warn!("{fault}"));
                record.set("source", "failed");
                record.blame(failed_phase);
                let artifact = command.out.display();
                let text = format!("the artifact {artifact} is good, but its source is not");
                Err(failure.context(text))
            }
            (Err(failure), Err(other)) => {
                record.set("source", "failed");
                log::warn!("{other}");
                Err(failure)
            }
        }
    }

    /// Makes the guest silent. The connection stays open, and idle, until after the resume.
    fn quiesce(
        &mut self,
        command: &Snapshot,
        record: &mut Record,
    ) -> Result<(Hello, Connection), Failure> {
        let token = random::token().or_fail(Exit::Defect, || "cannot draw a token".to_owned())?;
        let limit = self.work_deadline.saturating_duration_since(Instant::now());
        let request = Request::Quiesce(Quiesce {
            token,
            policy: command.policy,
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        });
        let endpoint = self.vm.endpoint(PORT_DEFAULT);
        let asked = ask(
            &endpoint,
            request,
            &watch(self.work_deadline, Some(&self.vm.process)),
        );
        match asked {
            Ok(answer) => {
                record.attempts(Phase::Quiesce, answer.attempts);
                match answer.message {
                    Message::Quiesced(_) => Ok((answer.hello, answer.connection)),
                    other => {
                        let text = format!("the exchange ended with {}", other.kind());
                        Err(Failure::new(Exit::Defect, text))
                    }
                }
            }
            Err(error) => {
                record.attempts(Phase::Quiesce, error.attempts);
                self.reopen(token);
                Err(error.into())
            }
        }
    }

    /// Takes a QUIESCE back that was not answered as it should.
    fn reopen(&mut self, token: Token) {
        let request = Request::Reopen(Reopen { token });
        let endpoint = self.vm.endpoint(PORT_DEFAULT);
        let asked = ask(
            &endpoint,
            request,
            &watch(self.deadline, Some(&self.vm.process)),
        );
        let refused = |error: &AskError| match &error.reason {
            AskErrorReason::Exchange(ExchangeError::Refused { fail, .. }) => {
                fail.code == FailCode::Refusing
            }
            _ => false,
        };
        match asked {
            // A guest that refuses has nothing to take back: it never became quiet.
            Err(error) if !refused(&error) => {
                log::warn!("cannot tell the guest to go on: {error}");
            }
            Ok(_) | Err(_) => {
                if let Err(failure) = self.write_stage(Stage::Ready) {
                    log::warn!("{failure}");
                }
            }
        }
    }

    /// Stops the vCPUs and writes everything into the draft, except for the manifest.
    fn save(
        &mut self,
        draft: &Draft,
        hello: &Hello,
        version: &VmmVersion,
        record: &mut Record,
    ) -> Result<Manifest, Failure> {
        record.begin(Phase::Pause);
        self.vmm.pause(self.work_deadline)?;
        record.begin(Phase::Save);
        let files = StateFiles::in_dir(self.vmm.kind(), draft.dir());
        let mut progress = Progress::new(self.vm.state.machine.memory_mib);
        let saved = self.vmm.save(
            &files,
            &mut |bytes| progress.show(bytes),
            self.work_deadline,
        );
        progress.clear();
        saved?;

        record.begin(Phase::Disks);
        let mut names = vec![files.state, files.memory.unwrap_or_default()];
        names.retain(|path| path.file_name().is_some());
        let mut machine = self.vm.state.machine.clone();
        for (index, drive) in machine.drives.iter_mut().enumerate() {
            if let Drive {
                path,
                read_only: false,
            } = drive
            {
                let name = format!("disk{index}");
                let copy = draft.dir().join(&name);
                copy_disk(path, &copy, Exit::Artifact)?;
                *path = name.into();
                names.push(copy);
            }
        }
        let mut files = Vec::new();
        for path in names {
            let metadata = fs::metadata(&path).or_fail(Exit::Artifact, || {
                format!("cannot look at {}", path.display())
            })?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            files.push(FileEntry {
                name,
                len: metadata.len(),
            });
        }
        let generation = hello.generation.or(self.vm.state.generation);
        Ok(Manifest {
            vmm_kind: self.vmm.kind(),
            vmm_version: version.text.clone(),
            agent_version: hello.version.clone(),
            agent_protocol: hello.protocol,
            generation: generation
                .ok_or_else(|| Failure::new(Exit::Guest, "the guest has no name"))?,
            machine,
            files,
            created_ms: unix_ms(),
            host_version: HOST_VERSION.to_owned(),
        })
    }

    /// Lets the source go on under a new name, and has it prove itself.
    fn resume(&mut self, control: Connection, record: &mut Record) -> Result<(), Failure> {
        record.begin(Phase::Resume);
        let naming = self.rename(Cause::Resume)?;
        self.vmm.resume(self.deadline)?;
        // Firecracker keeps it open and silent in the source. The guest is rid of it already.
        drop(control);
        self.prove(&naming, record)
    }

    /// Lets the source go on after a failure, and says whether it does.
    fn recover(&mut self, failure: Failure, control: Connection, record: &mut Record) -> Failure {
        let failed_phase = record.current();
        let result = match self.vmm.run_state(self.deadline) {
            Ok(RunState::Paused) => self.resume(control, record),
            Ok(RunState::Running) => {
                drop(control);
                self.rename(Cause::Resume)
                    .and_then(|naming| self.prove(&naming, record))
            }
            Ok(RunState::NotStarted | RunState::Ended) => Err(Failure::new(
                Exit::Start,
                "the VMM has no machine that can go on",
            )),
            Err(error) => Err(error.into()),
        };
        record.blame(failed_phase);
        self.faults.iter().for_each(|fault| log::warn!("{fault}"));
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

    /// Draws the source's next name, and writes it down before the guest can hear it.
    fn rename(&mut self, cause: Cause) -> Result<Naming, Failure> {
        let parent = self.vm.state.generation;
        let naming = Naming::new(cause, parent, Identity::default())?;
        self.vm.state.generation = Some(naming.generation);
        self.vm.state.parent = parent;
        self.vm.state.cause = cause;
        self.write_stage(Stage::Snapshotting)?;
        Ok(naming)
    }

    fn prove(&mut self, naming: &Naming, record: &mut Record) -> Result<(), Failure> {
        let endpoint = self.vm.endpoint(PORT_DEFAULT);
        let watch = watch(self.deadline, Some(&self.vm.process));
        let hello = prove(&endpoint, naming, &watch, record)?;
        self.vm.state.agent_version = Some(hello.version);
        self.write_stage(Stage::Ready)
    }

    fn write_stage(&mut self, stage: Stage) -> Result<(), Failure> {
        self.vm.state.stage = stage;
        Ok(self.vm.dir.write_state(&self.vm.state)?)
    }

    /// Adds the logs' last words to the failure of a VM whose VMM has ended.
    fn with_logs(&self, failure: Failure) -> Failure {
        if failure.exit() == Exit::VmmEnded {
            failure.with_details(log_tails::tails(&self.vm.dir))
        } else {
            failure
        }
    }
}

fn publish(draft: Draft, manifest: &Manifest, record: &mut Record) -> Result<(), Failure> {
    record.begin(Phase::Publish);
    let path = draft.publish(manifest)?;
    record.set("artifact", path.display().to_string());
    Ok(())
}
