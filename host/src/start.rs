//! What `boot` and `restore` have in common: a VM directory, a VMM under a supervisor, a guest that
//! is named and proves itself, and nothing left behind when any of that fails.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use shared::id::Generation;
use shared::limits::PORT_DEFAULT;
use shared::message::{Cause, Identity};

use crate::cli::Common;
use crate::deadline::Watch;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::foreground;
use crate::guest::connection::Endpoint;
use crate::handshake::{Naming, prove};
use crate::launch::{LaunchError, Supervisor};
use crate::log_tails;
use crate::random;
use crate::record::{Phase, Record};
use crate::supervisor::link::Order;
use crate::supervisor::unix_ms;
use crate::values::VmName;
use crate::vmdir::state::{Stage, State};
use crate::vmdir::{Lock, StateDir, VmDir};
use crate::vmm::{
    API_SOCKET, Gate, MachineSpec, Purpose, Start, Vmm, VmmBinary, VmmError, VmmKind, VmmVersion,
    find_binary, gate, guest_address, host_problem, launch, prepare_dir,
};

/// How long a VMM that is killed may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A VM that a command wants to have.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Its name, if the user gave one.
    pub name: Option<&'a VmName>,
    /// The options that every command has.
    pub common: Common,
    /// Host name for the guest, if the user gave one.
    pub hostname: Option<&'a str>,
    /// Whether to go without the proof.
    pub no_wait: bool,
    /// Whether to stay until the VM ends.
    pub foreground: bool,
    /// Whether to leave a VM that failed as it is.
    pub keep_on_failure: bool,
    /// When everything must be done.
    pub deadline: Instant,
    /// The VMM.
    pub binary: VmmBinary,
    /// The machine. Drives in `stored_drives` get their paths once the VM directory is there.
    pub machine: MachineSpec,
    /// By the drives' numbers: the file to copy for the VM's own use.
    pub stored_drives: Vec<Option<PathBuf>>,
    /// Why the guest gets a name.
    pub cause: Cause,
    /// The name that it has had.
    pub parent: Option<Generation>,
    /// The artifact that it comes from.
    pub artifact: Option<PathBuf>,
}

/// Finds the VMM and has the fault table judge it.
pub fn choose_vmm(
    kind: Option<VmmKind>,
    purpose: Purpose,
    force: bool,
) -> Result<VmmBinary, Failure> {
    let binary = find_binary(kind).map_err(|error| {
        let exit = match error {
            crate::vmm::FindError::Version { .. } => Exit::Version,
            _ => Exit::Start,
        };
        Failure::new(exit, error)
    })?;
    if let Some(problem) = host_problem(binary.kind) {
        return Err(Failure::new(Exit::Start, problem.to_string()));
    }
    let verdict = gate(binary.kind, &binary.version, purpose, force);
    judge(binary.kind, &binary.version, verdict)?;
    Ok(binary)
}

/// Fails on a refusal, and says a warning, both with the version that is meant.
pub fn judge(kind: VmmKind, version: &VmmVersion, gate: Gate) -> Result<(), Failure> {
    match gate {
        Gate::Allow => Ok(()),
        Gate::Warn(symptoms) => {
            for symptom in symptoms {
                log::warn!("{kind} {version}: {symptom}");
            }
            Ok(())
        }
        Gate::Refuse { reason, remedy } => {
            let text = format!("{kind} {version}: {reason}; {remedy}");
            Err(Failure::new(Exit::Version, text))
        }
    }
}

/// A context id that is most likely free on this host: there are two thousand million of them.
/// Those below 1024 are left to people.
pub fn draw_cid() -> Result<u32, Failure> {
    let drawn = random::bytes::<4>().or_fail(Exit::Defect, || "cannot draw a CID".to_owned())?;
    let cid = u32::from_be_bytes(drawn) & 0x7fff_ffff;
    Ok(cid.max(1024))
}

/// Checks a context id that the user gave: 0 to 2 are the hypervisor's, the loopback's and the
/// host's, and the last one is a wildcard.
pub fn check_cid(cid: u32) -> Result<u32, Failure> {
    if cid < 3 || cid == u32::MAX {
        let text = format!("{cid} is no vsock context id for a guest; take 3 or more");
        return Err(Failure::usage(text));
    }
    Ok(cid)
}

/// Starts the VM, has `enter` boot or load it, names the guest and has it prove itself. Prints the
/// record.
pub fn start(
    plan: &Plan<'_>,
    way: Start,
    mut record: Record,
    enter: &mut dyn FnMut(&mut dyn Vmm) -> Result<(), VmmError>,
) -> Result<(), Failure> {
    let is_json = plan.common.json;
    match bring_up(plan, way, &mut record, enter) {
        Ok(mut vm) => {
            let event = if plan.no_wait { "started" } else { "ready" };
            if !plan.foreground {
                vm.release(Order::Keep)?;
                return record.finish(event, is_json);
            }
            let signals = foreground::Signals::take()?;
            vm.release(Order::Attach)?;
            let Vm {
                lock,
                supervisor,
                endpoint,
                process,
                ..
            } = vm;
            // Other commands may now do with the VM what they like.
            drop(lock);
            record.finish(event, is_json)?;
            match (supervisor, process) {
                (Some(supervisor), Some(process)) => {
                    foreground::stay(&signals, supervisor, &endpoint, &process)
                }
                _ => Err(Failure::new(Exit::Defect, "a VM came up without a process")),
            }
        }
        Err(failure) => Err(record.fail(failure, is_json)),
    }
}

fn bring_up(
    plan: &Plan<'_>,
    way: Start,
    record: &mut Record,
    enter: &mut dyn FnMut(&mut dyn Vmm) -> Result<(), VmmError>,
) -> Result<Vm, Failure> {
    record.begin(Phase::Spawn);
    let state_dir = StateDir::open(plan.common.state_dir.as_deref())?;
    let (dir, lock) = state_dir.create_vm(plan.name)?;
    record.set("name", dir.name().as_str());
    let cid = plan.machine.guest_cid;
    let address = guest_address(plan.binary.kind, dir.path(), cid);
    let mut vm = Vm {
        dir,
        lock,
        supervisor: None,
        process: None,
        state: None,
        endpoint: Endpoint {
            address,
            port: PORT_DEFAULT,
        },
    };
    match vm.go(plan, way, record, enter) {
        Ok(()) => Ok(vm),
        Err(failure) => Err(vm.give_up(failure, plan.keep_on_failure)),
    }
}

/// A VM that is coming up. It does not outlive this command until it is released.
#[derive(Debug)]
struct Vm {
    dir: VmDir,
    lock: Lock,
    supervisor: Option<Supervisor>,
    /// The VMM's pidfd.
    process: Option<OwnedFd>,
    state: Option<State>,
    endpoint: Endpoint,
}

impl Vm {
    fn go(
        &mut self,
        plan: &Plan<'_>,
        way: Start,
        record: &mut Record,
        enter: &mut dyn FnMut(&mut dyn Vmm) -> Result<(), VmmError>,
    ) -> Result<(), Failure> {
        let mut vmm = self.spawn(plan, way, record)?;
        record.begin(match way {
            Start::Boot => Phase::Start,
            Start::Load => Phase::Load,
        });
        enter(&mut *vmm)?;
        drop(vmm);
        let mut stage = Stage::Unproven;
        if !plan.no_wait {
            let naming = Naming::new(plan.cause, plan.parent, self.identity(plan)?)?;
            let watch = watch(plan.deadline, self.process.as_ref());
            let hello = prove(&self.endpoint, &naming, &watch, record)?;
            stage = Stage::Ready;
            if let Some(state) = &mut self.state {
                state.generation = Some(naming.generation);
                state.agent_version = Some(hello.version);
            }
        }
        record.begin(Phase::Publish);
        self.write_stage(stage)
    }

    /// Starts the VMM in its directory, and connects to it.
    fn spawn(
        &mut self,
        plan: &Plan<'_>,
        way: Start,
        record: &mut Record,
    ) -> Result<Box<dyn Vmm>, Failure> {
        let machine = self.place_drives(plan)?;
        prepare_dir(self.dir.path(), &machine.drives).or_fail(Exit::Start, || {
            format!("cannot prepare {}", self.dir.path().display())
        })?;
        let launch = launch(&plan.binary, self.dir.name().as_str(), &machine, way);
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
            cause: plan.cause,
            artifact: plan.artifact.clone(),
            agent_version: None,
            created_ms: unix_ms(),
        };
        self.dir.write_state(&state)?;
        self.state = Some(state);
        let for_calls = pidfd.try_clone();
        self.process = Some(pidfd);
        let for_calls = for_calls.or_fail(Exit::Defect, || "cannot copy a pidfd".to_owned())?;
        let socket = self.dir.file(API_SOCKET);
        Ok(crate::vmm::await_and_connect(
            plan.binary.kind,
            &socket,
            Some(for_calls),
            plan.deadline,
        )?)
    }

    /// Copies the drives that come with an artifact: each clone writes to its own.
    fn place_drives(&self, plan: &Plan<'_>) -> Result<MachineSpec, Failure> {
        let mut machine = plan.machine.clone();
        let drives = machine
            .drives
            .iter_mut()
            .zip(&plan.stored_drives)
            .enumerate();
        for (index, (drive, stored)) in drives {
            if let Some(stored) = stored {
                let path = self.dir.file(&format!("disk{index}"));
                copy_disk(stored, &path, Exit::Start)?;
                drive.path = path;
            }
        }
        Ok(machine)
    }

    fn identity(&self, plan: &Plan<'_>) -> Result<Identity, Failure> {
        let machine_id = match plan.cause {
            Cause::Restore => {
                let drawn = random::bytes::<16>();
                let drawn = drawn.or_fail(Exit::Defect, || "cannot draw an id".to_owned())?;
                Some(format!("{:032x}", u128::from_be_bytes(drawn)))
            }
            Cause::Boot | Cause::Resume => None,
        };
        // A VM's name is a host name but for this one character.
        let name = self.dir.name().as_str().replace('_', "-");
        let hostname = Some(plan.hostname.map_or(name, str::to_owned));
        Ok(Identity {
            hostname,
            machine_id,
        })
    }

    fn write_stage(&mut self, stage: Stage) -> Result<(), Failure> {
        if let Some(state) = &mut self.state {
            state.stage = stage;
            self.dir.write_state(state)?;
        }
        Ok(())
    }

    /// Lets the VM outlive this command, or makes it its foreground.
    fn release(&mut self, order: Order) -> Result<(), Failure> {
        match &mut self.supervisor {
            Some(supervisor) => supervisor
                .order(order)
                .or_fail(Exit::Defect, || "the VM's supervisor is gone".to_owned()),
            None => Err(Failure::new(
                Exit::Defect,
                "a VM came up without a supervisor",
            )),
        }
    }

    /// Ends the VM and removes what it left, or keeps both for a look. Either way the failure gets
    /// the last words of the logs.
    fn give_up(mut self, failure: Failure, keep: bool) -> Failure {
        let is_spawned = self.process.is_some();
        if keep && is_spawned {
            let kept = self.write_stage(Stage::Unproven);
            if let Err(error) = kept.and_then(|()| self.release(Order::Keep)) {
                log::warn!("cannot keep the VM: {error}");
            }
            log::warn!(
                "the VM was kept; 'host-tool rm --force {}' removes it",
                self.dir.name()
            );
            return failure.with_details(log_tails::tails(&self.dir));
        }
        let mut end = None;
        if let Some(mut supervisor) = self.supervisor.take() {
            let watch = Watch::until(Instant::now() + KILL_TIMEOUT);
            let ended = supervisor
                .order(Order::End)
                .map_err(LaunchError::from)
                .and_then(|()| supervisor.await_ended(&watch));
            match ended {
                Ok(exit) => end = Some(exit),
                // One that could not start the VMM has said so and is gone.
                Err(error) => log::debug!("{error}"),
            }
            if let Err(error) = supervisor.join() {
                log::warn!("cannot wait for the supervisor: {error}");
            }
        }
        let tails = is_spawned.then(|| log_tails::tails(&self.dir)).flatten();
        let details = match end {
            // How it went says more than its logs, which a VMM that is killed leaves empty.
            Some(end) if failure.exit() == Exit::VmmEnded => {
                let tails = tails.unwrap_or_default();
                Some(format!("--- the VMM ended with {end}\n{tails}"))
            }
            _ => tails,
        };
        let conflict = crate::vmm::qemu::is_cid_conflict(&log_tails::vmm_log(&self.dir));
        if let Err(error) = self.dir.remove() {
            log::warn!("{}", Failure::from(error));
        }
        if conflict {
            let text = "another VM of this host has the vsock context id; choose another with \
                        --vsock-cid";
            return Failure::new(Exit::Start, text);
        }
        failure.with_details(details)
    }
}

/// A watch over the VMM behind `process`.
#[must_use]
pub fn watch(deadline: Instant, process: Option<&OwnedFd>) -> Watch<'_> {
    Watch::with_process(deadline, process.map(AsFd::as_fd))
}

/// Copies a disk image. The kernel shares the blocks where the file system can.
pub fn copy_disk(from: &Path, to: &Path, exit: Exit) -> Result<(), Failure> {
    let copied = fs::copy(from, to).map(drop);
    copied.or_fail(exit, || {
        format!("cannot copy {} to {}", from.display(), to.display())
    })
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        let exit = if error.is_artifact_fault() {
            Exit::Artifact
        } else if error.is_gone() {
            Exit::VmmEnded
        } else if error.is_deadline() {
            Exit::Deadline
        } else {
            Exit::Start
        };
        Self::new(exit, error)
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        let exit = match error {
            LaunchError::Deadline => Exit::Deadline,
            LaunchError::Dir(_)
            | LaunchError::Io(_)
            | LaunchError::Report(_)
            | LaunchError::Silent
            | LaunchError::Failed { .. } => Exit::Start,
        };
        Self::new(exit, error)
    }
}
