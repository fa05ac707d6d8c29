//! A VM that a command is starting: its directory, supervisor, VMM and guest. Until it is
//! [released](StartingVm::release) it ends with its command, and leaves nothing behind when that
//! command fails or is killed.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde_json::json;
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, HookStage, Identity};

use crate::artifact;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::address::Endpoint;
use crate::guest::requests::{Guest, RebindPlan};
use crate::lifecycle::foreground::{self, Signals};
use crate::lifecycle::handshake::prove;
use crate::lifecycle::hooks;
use crate::lifecycle::plan::{Entry, Plan, watch};
use crate::os::clock::unix_ms;
use crate::os::deadline::Watch;
use crate::os::disk;
use crate::os::process::{KILL_TIMEOUT, copy_pidfd, has_ended, kill_process};
use crate::report::phase::Phase;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::supervisor::client::Supervisor;
use crate::supervisor::link::Order;
use crate::values::VmName;
use crate::vmdir::pending_rebind::{remove_pending, write_pending};
use crate::vmdir::state::{ExitRecord, Stage, State};
use crate::vmdir::stray::end_stray;
use crate::vmdir::{Lock, StateDir, VmDir, log_tails, names};
use crate::vmm::network::check_tap;
use crate::vmm::{API_SOCKET, MachineSpec, Vmm, guest_address, launch, prepare_dir};

/// A VMM that closed its connection has this long to end by itself, so that the error can say how
/// it ended.
const HANGUP_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct StartingVm {
    dir: VmDir,
    lock: Lock,
    supervisor: Option<Supervisor>,
    /// The VMM's pidfd.
    process: Option<OwnedFd>,
    state: Option<State>,
    endpoint: Endpoint,
    /// Whether the VM was released with [`Order::Keep`]. Its supervisor takes no orders then.
    is_kept: bool,
}

impl StartingVm {
    /// Reserves the VM's name by making its directory. Starts no process.
    pub(crate) fn create(plan: &Plan<'_>) -> Result<Self, Failure> {
        reach(Point::SpawnBefore)?;
        let state_dir = StateDir::open(plan.state_dir)?;
        let (dir, lock) = state_dir.create_vm(plan.name)?;
        let cid = plan.machine.guest_cid;
        let address = guest_address(plan.binary.kind, dir.path(), cid);
        Ok(Self {
            dir,
            lock,
            supervisor: None,
            process: None,
            state: None,
            endpoint: Endpoint {
                address,
                port: PORT_DEFAULT,
            },
            is_kept: false,
        })
    }

    pub(crate) const fn name(&self) -> &VmName {
        self.dir.name()
    }

    /// Starts the VMM, boots or loads the machine, rebinds the guest and proves it. A failure
    /// removes the VM, unless the plan says to keep it.
    pub(crate) fn start(mut self, plan: &Plan<'_>, record: &mut Record) -> Result<Self, Failure> {
        match self.run_phases(plan, record) {
            Ok(()) => Ok(self),
            Err(failure) => Err(self.abort(failure, plan.keep_on_failure)),
        }
    }

    /// Waits until a VM that was released with [`Order::Attach`] ends. Before that, calls
    /// `unlocked`, when the lock is free for other commands.
    pub(crate) fn wait(self, signals: &Signals, unlocked: impl FnOnce()) -> Result<(), Failure> {
        drop(self.lock);
        unlocked();
        match (self.supervisor, self.process) {
            (Some(supervisor), Some(process)) => {
                foreground::wait(signals, supervisor, &self.endpoint, &process)
            }
            _ => Err(Failure::new(
                Exit::Internal,
                "a VM was started without a process",
            )),
        }
    }

    fn run_phases(&mut self, plan: &Plan<'_>, record: &mut Record) -> Result<(), Failure> {
        let mut vmm = self.spawn(plan, record)?;
        let identity = self.identity(plan)?;
        record.set_identity(&identity);
        let rebind = RebindPlan::new(plan.cause(), plan.parent, identity)?;
        let (phase, before, after) = match plan.entry {
            Entry::Boot => (Phase::Start, Point::StartBefore, Point::StartAfter),
            Entry::Load(_) => (Phase::Load, Point::LoadBefore, Point::LoadAfter),
        };
        record.begin(phase);
        reach(before)?;
        if let Some(metadata) = &plan.metadata {
            vmm.put_metadata(&metadata.with_epoch(rebind.generation), plan.deadline)?;
        }
        match &plan.entry {
            Entry::Boot => vmm.boot(&plan.machine, plan.deadline)?,
            Entry::Load(files) => vmm.load(files, plan.deadline)?,
        }
        reach(after)?;
        drop(vmm);
        let mut stage = Stage::Unproven;
        // A later command may have to rebind this guest, with the same generation.
        if plan.no_wait || plan.keep_on_failure {
            write_pending(&self.dir, &rebind)?;
        }
        if !plan.no_wait {
            let guest = Guest {
                endpoint: self.endpoint.clone(),
                watch: watch(plan.deadline, self.process.as_ref()),
                is_awaited: true,
            };
            let proof = prove(&guest, &rebind, record)?;
            remove_pending(&self.dir)?;
            stage = Stage::Ready;
            if let Some(state) = &mut self.state {
                state.generation = Some(rebind.generation);
                state.agent_version = Some(proof.hello.version);
            }
            if proof.has_hooks && plan.cause() == Cause::Restore {
                let stage = HookStage::Restore;
                hooks::run(&guest, stage, plan.hooks, record)?;
            }
        }
        record.begin(Phase::Publish);
        reach(Point::PublishState)?;
        self.write_stage(stage)?;
        Ok(reach(Point::PublishRelease)?)
    }

    /// Starts the VMM in its directory, records it in `state.json` and connects to it.
    fn spawn(&mut self, plan: &Plan<'_>, record: &mut Record) -> Result<Box<dyn Vmm>, Failure> {
        reach(Point::SpawnCreated)?;
        let machine = self.place_drives(plan)?;
        prepare_dir(self.dir.path(), &machine.drives).or_fail(Exit::Start, || {
            format!("cannot prepare {}", self.dir.path().display())
        })?;
        if let Some(check) = &plan.health {
            check.write(&self.dir)?;
        }
        if let Some(nic) = &machine.nic {
            check_tap(nic)?;
        }
        let launch = launch(
            &plan.binary,
            self.dir.name().as_str(),
            &machine,
            plan.entry.start(),
        );
        let supervisor = Supervisor::start(&self.dir, &launch)?;
        let supervisor = self.supervisor.insert(supervisor);
        let process = supervisor.await_spawned(&Watch::until(plan.deadline))?;
        let supervisor = supervisor
            .process()
            .or_fail(Exit::Start, || "the supervisor is gone".to_owned())?;
        let opened = process.open().or_fail(Exit::Start, || {
            format!("cannot watch process {}", process.pid)
        })?;
        let pidfd = opened.ok_or_else(|| Failure::new(Exit::VmmEnded, "the VMM ended at once"))?;
        reach(Point::SpawnSpawned)?;
        record.set(
            "vmm",
            json!({
                "kind": plan.binary.kind.to_string(),
                "version": plan.binary.version.to_string(),
                "pid": process.pid,
            }),
        );
        let state = State {
            stage: Stage::Starting,
            vmm_kind: plan.binary.kind,
            vmm_version: plan.binary.version.to_string(),
            process,
            supervisor,
            machine,
            generation: None,
            parent: plan.parent,
            ancestors: artifact::ancestors(plan.artifact.as_deref(), plan.parent),
            cause: plan.cause(),
            artifact: plan.artifact.clone(),
            agent_version: None,
            created_ms: unix_ms(),
        };
        self.dir.write_state(&state)?;
        self.state = Some(state);
        let for_calls = copy_pidfd(self.process.insert(pidfd))?;
        reach(Point::SpawnWritten)?;
        let socket = self.dir.file(API_SOCKET);
        let vmm = crate::vmm::await_and_connect(
            plan.binary.kind,
            &socket,
            Some(for_calls),
            plan.deadline,
        )?;
        reach(Point::SpawnConnected)?;
        Ok(vmm)
    }

    /// Copies the artifact's drives into the VM directory, because each clone writes to its own.
    fn place_drives(&self, plan: &Plan<'_>) -> Result<MachineSpec, Failure> {
        let mut machine = plan.machine.clone();
        let drives = machine
            .drives
            .iter_mut()
            .zip(&plan.stored_drives)
            .enumerate();
        for (index, (drive, stored)) in drives {
            if let Some(stored) = stored {
                let path = self.dir.file(&names::disk(index));
                let len = stored.file.metadata().map_or(0, |found| found.len());
                let mut progress = Progress::new("copying", len);
                let mut show = |at| progress.show(at);
                disk::copy_open(&stored.file, &stored.path, &path, &mut show, plan.deadline)
                    .map_err(|error| error.into_failure(Exit::Start))?;
                drive.path = path;
            }
        }
        Ok(machine)
    }

    fn identity(&self, plan: &Plan<'_>) -> Result<Identity, Failure> {
        // '_' is the only character of VM names that host names do not have.
        let name = self.dir.name().as_str().replace('_', "-");
        let hostname = Some(plan.hostname.map_or(name, str::to_owned));
        let machine_id = plan.machine_id.choose();
        Ok(Identity {
            hostname,
            machine_id: machine_id.or_fail(Exit::Internal, || "cannot draw an id".to_owned())?,
            network: plan.network.clone(),
        })
    }

    fn write_stage(&mut self, stage: Stage) -> Result<(), Failure> {
        if let Some(state) = &mut self.state {
            state.stage = stage;
            self.dir.write_next_state(state)?;
        }
        Ok(())
    }

    /// Has the supervisor publish the VM's state. From then on the VM outlives this command, or
    /// belongs to its foreground with [`Order::Attach`].
    pub(crate) fn release(&mut self, order: Order) -> Result<(), Failure> {
        match &mut self.supervisor {
            Some(supervisor) => supervisor
                .publish(order, &Watch::until(Instant::now() + KILL_TIMEOUT))
                .map(|()| self.is_kept = order == Order::Keep)
                .map_err(|error| {
                    // The supervisor is gone because its VMM has ended, or because it was killed.
                    let at_once = Watch::until(Instant::now());
                    match &self.process {
                        Some(process) if at_once.readable(process).is_ok() => {
                            Failure::new(Exit::VmmEnded, "the VMM ended")
                        }
                        _ => Failure::new(Exit::Internal, error)
                            .context("the VM's supervisor is gone".to_owned()),
                    }
                }),
            None => Err(Failure::new(
                Exit::Internal,
                "a VM was started without a supervisor",
            )),
        }
    }

    /// Ends the VM and removes its directory.
    pub(crate) fn discard(mut self) -> Result<(), Failure> {
        self.end();
        Ok(self.dir.remove()?)
    }

    /// Takes a released VM away again: the user was not told of it, and could not name it.
    pub(crate) fn take_back(mut self, failure: Failure, keep: bool) -> Failure {
        if keep {
            self.warn_of_kept();
            return failure;
        }
        self.end();
        let text = match self.dir.remove() {
            Ok(()) => "the VM was taken away again, because its record was not printed".to_owned(),
            Err(error) => {
                let name = self.dir.name();
                let error = Failure::from(error);
                format!("the VM '{name}' has ended, and its directory is left ({error})")
            }
        };
        failure.context(text)
    }

    fn warn_of_kept(&self) {
        log::warn!(
            "the VM was kept; 'host-tool rm --force {}' removes it",
            self.dir.name()
        );
    }

    /// Ends the VM. Returns how the VMM ended if the supervisor reported it.
    fn end(&mut self) -> Option<ExitRecord> {
        let mut end = None;
        if self.is_kept
            && let Some(process) = &self.process
            && let Err(error) = kill_process(process)
        {
            log::warn!("cannot end the VMM: {error}");
        }
        if let Some(mut supervisor) = self.supervisor.take() {
            let watch = Watch::until(Instant::now() + KILL_TIMEOUT);
            // A supervisor whose VMM has ended is gone, but its report can still be read.
            if let Err(error) = supervisor.order(Order::End) {
                log::debug!("{error}");
            }
            match supervisor.await_ended(&watch) {
                Ok(exit) => end = Some(exit),
                // A supervisor that could not start the VMM has reported that and is gone. One that
                // keeps its VM has closed its pipes.
                Err(error) => log::debug!("{error}"),
            }
            if let Err(error) = supervisor.join() {
                log::warn!("cannot wait for the supervisor: {error}");
            }
        }
        // A supervisor that was killed has left its VMM behind, perhaps before it reported the pid.
        let killed = match &self.process {
            Some(process) => kill_process(process),
            None => end_stray(&self.dir, &self.lock, Instant::now() + KILL_TIMEOUT),
        };
        if let Err(error) = killed {
            log::warn!("cannot end the VMM: {error}");
        }
        end
    }

    /// The VMM's pid, once it has been started.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.state.as_ref().map(|state| state.process.pid)
    }

    /// Ends the VM and removes its directory, or keeps both for inspection. In both cases adds the
    /// last lines of the logs to the failure.
    pub(crate) fn abort(mut self, failure: Failure, keep: bool) -> Failure {
        let is_spawned = self.process.is_some();
        if keep && is_spawned {
            let kept = self.write_stage(Stage::Unproven);
            if let Err(error) = kept.and_then(|()| self.release(Order::Keep)) {
                log::warn!("cannot keep the VM: {error}");
            }
            self.warn_of_kept();
            return failure.with_details(log_tails::tails(&self.dir));
        }
        // A VMM that hung up is usually about to end. Its exit status is worth the wait.
        let has_hung_up = failure.exit() == Exit::VmmEnded;
        let is_over = |process| has_ended(process, HANGUP_GRACE);
        let ends_itself = has_hung_up && self.process.as_ref().is_none_or(is_over);
        let end = self.end();
        let tails = is_spawned.then(|| log_tails::tails(&self.dir)).flatten();
        let details = match end {
            // The exit status says more than the logs, which a VMM that is killed leaves empty.
            Some(end) if has_hung_up => {
                let how = match ends_itself {
                    true => format!("ended with {end}"),
                    false => "hung up, did not end, and was killed".to_owned(),
                };
                Some(format!("--- the VMM {how}\n{}", tails.unwrap_or_default()))
            }
            _ => tails,
        };
        let conflict = crate::vmm::qemu::is_cid_conflict(&log_tails::vmm_log(&self.dir));
        if let Err(error) = self.dir.remove() {
            log::warn!("{}", Failure::from(error));
        }
        if conflict {
            let text = "another VM of this host uses the vsock context id; choose another with \
                        --vsock-cid";
            return Failure::new(Exit::Start, text);
        }
        failure.with_details(details)
    }
}
