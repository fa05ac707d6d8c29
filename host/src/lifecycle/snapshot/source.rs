//! The source, which is the VM that a snapshot is taken of: the host quiesces, resumes, rebinds and
//! proves it, and repairs it after an interrupted snapshot.
//!
//! A managed source has a VM directory with a lock and a state file. An external one was started by
//! another program, and the host has only its API socket and its guest.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use shared::id::{Generation, Token};
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, FailCode, Hello, HookStage, Identity, Policy, Quiesce};

use super::Limits;
use super::external::{guard, server_process, with_findable_drives};
use super::sessions;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::address::{Endpoint, GuestAddress};
use crate::guest::answer::AskError;
use crate::guest::connection::Connection;
use crate::guest::requests::{Guest, RebindPlan};
use crate::lifecycle::handshake::{Proof, prove};
use crate::lifecycle::hooks;
use crate::lifecycle::plan::watch;
use crate::os::clock::to_ms;
use crate::os::process::copy_pidfd;
use crate::os::random;
use crate::report::phase::Phase;
use crate::report::record::Record;
use crate::vmdir::state::{Stage, lineage};
use crate::vmdir::{Lock, RunningVm, log_tails};
use crate::vmm::{
    API_SOCKET, MachineSpec, RunState, Vmm, VmmError, adopt, connect, resume_if_paused,
};

#[derive(Debug)]
enum Owner {
    Managed {
        vm: Box<RunningVm>,
        _lock: Lock,
    },
    /// The bound listener is the lock.
    External {
        _guard: UnixListener,
    },
}

#[derive(Debug)]
pub(super) struct Source {
    owner: Owner,
    pub(super) vmm: Box<dyn Vmm>,
    api_socket: PathBuf,
    endpoint: Endpoint,
    /// The VMM's pidfd, if known.
    process: Option<OwnedFd>,
    /// The host can open the paths of its drives.
    pub(super) machine: MachineSpec,
    /// The path of the vsock socket in the saved state, if that is not in a VM directory.
    pub(super) vsock_path: Option<PathBuf>,
    /// The guest's generation, if the host knows it.
    pub(super) generation: Option<Generation>,
    /// The guest's earlier generations, the latest first.
    pub(super) ancestors: Vec<Generation>,
    pub(super) limits: Limits,
}

impl Source {
    pub(super) fn managed(vm: RunningVm, lock: Lock, limits: Limits) -> Result<Self, Failure> {
        let process = copy_pidfd(&vm.process)?;
        let socket = vm.dir.file(API_SOCKET);
        let vmm = connect(vm.state.vmm_kind, &socket, Some(process), limits.all)?;
        Ok(Self {
            vmm,
            api_socket: socket,
            endpoint: vm.endpoint(PORT_DEFAULT),
            process: Some(copy_pidfd(&vm.process)?),
            machine: vm.state.machine.clone(),
            vsock_path: None,
            generation: vm.state.generation,
            ancestors: vm.state.ancestors.clone(),
            limits,
            owner: Owner::Managed {
                vm: Box::new(vm),
                _lock: lock,
            },
        })
    }

    /// A Firecracker that another program started.
    pub(super) fn external(
        api_socket: &Path,
        uds_path: &Path,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let guard = guard(api_socket)?;
        let (pid, process) = server_process(api_socket, limits.all)?;
        let for_calls = process.as_ref().map(copy_pidfd).transpose()?;
        let (vmm, external) = adopt(api_socket, for_calls, limits.all).map_err(|error| {
            let is_other = matches!(error, VmmError::Answer { .. });
            let failure = Failure::from(error);
            if is_other {
                let text = format!("{} is not Firecracker's API socket", api_socket.display());
                return failure.context(text);
            }
            failure
        })?;
        if let Some(path) = external.shared_drive() {
            let text = format!(
                "the machine has its drive at {}, where every clone would find the same file; give \
                 it to Firecracker as 'drive0', 'drive1' and so on in its working directory, or \
                 read-only under an absolute path",
                path.display()
            );
            return Err(Failure::new(Exit::Artifact, text));
        }
        if external.interface_count > 0 {
            log::warn!("the machine has network interfaces; a clone needs its own");
        }
        Ok(Self {
            owner: Owner::External { _guard: guard },
            vmm,
            api_socket: api_socket.to_owned(),
            endpoint: Endpoint {
                address: GuestAddress::HybridVsock {
                    uds_path: uds_path.to_owned(),
                },
                port: PORT_DEFAULT,
            },
            process,
            vsock_path: external.vsock_path.clone(),
            machine: with_findable_drives(external, pid)?,
            generation: None,
            ancestors: Vec::new(),
            limits,
        })
    }

    /// `None` for an external source.
    pub(super) fn vm(&self) -> Option<&RunningVm> {
        match &self.owner {
            Owner::Managed { vm, .. } => Some(vm),
            Owner::External { .. } => None,
        }
    }

    /// Whether the guest needs a rebind before anything else: a snapshot of it was interrupted, or
    /// it was never rebound. An external guest may be in either state.
    pub(super) fn needs_converge(&self) -> bool {
        match &self.owner {
            Owner::Managed { vm, .. } => {
                self.generation.is_none() || vm.state.stage == Stage::Snapshotting
            }
            Owner::External { .. } => true,
        }
    }

    /// Repairs what an interrupted snapshot left, or rebinds a guest for the first time.
    pub(super) fn converge(&mut self, record: &mut Record) -> Result<(), Failure> {
        resume_if_paused(&mut *self.vmm, self.limits.all)?;
        let cause = match (&self.owner, self.generation) {
            (Owner::Managed { vm, .. }, None) => vm.state.cause,
            (Owner::Managed { .. } | Owner::External { .. }, _) => Cause::Resume,
        };
        let rebind = self.next_generation(cause)?;
        let hello = self.prove(&rebind, record)?;
        if let (Owner::External { .. }, Some(earlier)) = (&self.owner, hello.generation) {
            self.ancestors = lineage(Some(earlier), &[]);
        }
        Ok(())
    }

    /// The guest, for requests before the snapshot.
    pub(super) fn guest(&self) -> Guest<'_> {
        Guest {
            is_awaited: false,
            ..self.guest_until(self.limits.work)
        }
    }

    fn guest_until(&self, deadline: Instant) -> Guest<'_> {
        Guest {
            endpoint: self.endpoint.clone(),
            watch: watch(deadline, self.process.as_ref()),
            is_awaited: true,
        }
    }

    /// Runs the guest's hooks, before anything that a failure would have to undo.
    pub(super) fn run_hooks(
        &self,
        options: hooks::Options,
        record: &mut Record,
    ) -> Result<(), Failure> {
        hooks::run(&self.guest(), HookStage::Snapshot, options, record)
    }

    /// Quiesces the guest. The connection stays open and idle until after the resume.
    pub(super) fn quiesce(
        &mut self,
        policy: Policy,
        record: &mut Record,
    ) -> Result<(Hello, Connection), Failure> {
        let token = random::token().or_fail(Exit::Internal, || "cannot draw a token".to_owned())?;
        let limit = self.limits.work.saturating_duration_since(Instant::now());
        let asked = self.guest().quiesce(Quiesce {
            token,
            policy,
            limit_ms: to_ms(limit),
        });
        record.note_asked(Phase::Quiesce, &asked);
        match asked {
            Ok(answer) => Ok((answer.hello, answer.connection)),
            Err(error) => {
                self.reopen(token);
                Err(self.with_sessions(error.into(), policy, record))
            }
        }
    }

    /// Adds the running sessions to the failure if they are its cause: the guest refused the
    /// snapshot because of them, or waited for them in vain.
    fn with_sessions(&self, failure: Failure, policy: Policy, record: &mut Record) -> Failure {
        let sessions_are_cause = match policy {
            Policy::Keep => false,
            Policy::Drain => failure.exit() == Exit::Deadline,
            Policy::Refuse => failure.exit() == Exit::Guest,
        };
        if !sessions_are_cause {
            return failure;
        }
        match self.guest_until(self.limits.all).sessions(0) {
            Ok(list) => {
                let running = sessions::running(&list.sessions);
                let values = running.iter().copied().map(sessions::to_value);
                record.set("sessions", values.collect::<Vec<_>>());
                failure.with_details(sessions::describe(&running))
            }
            Err(error) => {
                log::debug!("cannot ask which sessions run: {error}");
                failure
            }
        }
    }

    /// Takes back a QUIESCE that failed.
    fn reopen(&mut self, token: Token) {
        let asked = self.guest_until(self.limits.all).reopen(token);
        let is_refused = |error: &AskError| {
            let refusal = error.refusal();
            refusal.is_some_and(|fail| fail.code == FailCode::Refusing)
        };
        match asked {
            // A guest that refuses the reopening was never quiesced.
            Err(error) if !is_refused(&error) => {
                log::warn!("cannot reopen the guest: {error}");
            }
            Ok(_) | Err(_) => {
                if let Err(failure) = self.write_stage(Stage::Ready) {
                    log::warn!("{failure}");
                }
            }
        }
    }

    /// Resumes the source, rebinds it to a new generation and proves it.
    pub(super) fn resume(
        &mut self,
        control: Connection,
        record: &mut Record,
    ) -> Result<(), Failure> {
        record.begin(Phase::Resume);
        reach(Point::ResumeBefore)?;
        let rebind = self.next_generation(Cause::Resume)?;
        self.vmm.resume(self.limits.all)?;
        reach(Point::ResumeAfter)?;
        // Firecracker keeps this connection open, but the guest has dropped its end already.
        drop(control);
        self.prove(&rebind, record).map(drop)
    }

    /// Like [`resume`](Self::resume), after a failed step: the machine may be paused or running.
    pub(super) fn resume_and_prove(
        &mut self,
        control: Connection,
        record: &mut Record,
    ) -> Result<(), Failure> {
        self.reconnect_if_needed()?;
        match self.vmm.run_state(self.limits.all) {
            Ok(RunState::Paused) => self.resume(control, record),
            Ok(RunState::Running) => {
                drop(control);
                let rebind = self.next_generation(Cause::Resume)?;
                self.prove(&rebind, record).map(drop)
            }
            Ok(RunState::NotStarted | RunState::Ended) => Err(Failure::new(
                Exit::Start,
                "the VMM has no machine to resume",
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Reconnects to the VMM if a failed call left the connection closed, or with a late answer
    /// that could be taken for the next call's.
    fn reconnect_if_needed(&mut self) -> Result<(), Failure> {
        if !self.vmm.is_in_step() {
            let process = self.process.as_ref().map(copy_pidfd).transpose()?;
            let deadline = self.limits.all;
            self.vmm = connect(self.vmm.kind(), &self.api_socket, process, deadline)?;
        }
        Ok(())
    }

    /// Draws the source's next generation, and records it before the guest can receive it.
    fn next_generation(&mut self, cause: Cause) -> Result<RebindPlan, Failure> {
        self.ancestors = lineage(self.generation, &self.ancestors);
        // The parent of a clone that was never rebound is the artifact's generation.
        let parent = self.ancestors.first().copied();
        let rebind = RebindPlan::new(cause, parent, Identity::default())?;
        self.generation = Some(rebind.generation);
        if let Owner::Managed { vm, .. } = &mut self.owner {
            vm.state.generation = self.generation;
            vm.state.parent = parent;
            vm.state.ancestors.clone_from(&self.ancestors);
            vm.state.cause = cause;
        }
        self.write_stage(Stage::Snapshotting)?;
        Ok(rebind)
    }

    fn prove(&mut self, rebind: &RebindPlan, record: &mut Record) -> Result<Hello, Failure> {
        let guest = self.guest_until(self.limits.all);
        let Proof { hello, .. } = prove(&guest, rebind, record)?;
        if let Owner::Managed { vm, .. } = &mut self.owner {
            vm.state.agent_version = Some(hello.version.clone());
        }
        self.write_stage(Stage::Ready)?;
        Ok(hello)
    }

    /// Records the stage in `state.json`. An external source has none.
    pub(super) fn write_stage(&mut self, stage: Stage) -> Result<(), Failure> {
        match &mut self.owner {
            Owner::Managed { vm, .. } => {
                vm.state.stage = stage;
                Ok(vm.dir.write_state(&vm.state)?)
            }
            Owner::External { .. } => Ok(()),
        }
    }

    /// Adds the last lines of the logs to a failure if the VMM of a managed source has ended.
    pub(super) fn with_logs(&self, failure: Failure) -> Failure {
        match self.vm() {
            Some(vm) if failure.exit() == Exit::VmmEnded => {
                failure.with_details(log_tails::tails(&vm.dir))
            }
            _ => failure,
        }
    }
}
