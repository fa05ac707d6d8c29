//! Logging the workload's output in the VM directory: in a thread of the supervisor or, once the
//! supervisor was killed, in a `host-tool logs` in its place.
//!
//! The holder of the output's lock writes. A writer that gets the lock later continues where the
//! previous one stopped.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use shared::limits::PORT_DEFAULT;
use shared::message::{AttachMode, Exited};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::Point;
use crate::guest::driver::outlives;
use crate::guest::fault::fault_text;
use crate::os::clock::unix_ms;
use crate::os::deadline::{NO_LIMIT, Watch};
use crate::os::process::copy_pidfd;
use crate::supervisor::follow::{End, Follower, Sink};
use crate::supervisor::worker::Worker;
use crate::supervisor::workload::find_workload;
use crate::vmdir::output_log::OutputLog;
use crate::vmdir::output_log::journal::Journal;
use crate::vmdir::state::{Stage, WorkloadEnd};
use crate::vmdir::{Lock, RunningVm, VmDir, VmDirError};

/// How long to wait between looks at a VM whose snapshot was interrupted, and between attempts to
/// write to a full disk.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// How long the guest may take to report how often it restarted its workload.
const RESTARTS_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts a thread that logs the output of the VM's workload, if it has one.
pub(crate) fn start(dir: &VmDir) -> Worker {
    let dir = dir.clone();
    let task = "logging the workload's output";
    Worker::start(task, Point::SupervisorOutput, move || {
        match log_output(&dir)? {
            Some(end) => log::info!("{task} ends: {end:?}"),
            None => log::info!("the workload's output is logged already"),
        }
        Ok(())
    })
}

/// Waits for the output's lock and logs the output until there is no more. `None` if an earlier
/// writer has logged all of it.
pub(crate) fn log_output(dir: &VmDir) -> Result<Option<End>, Failure> {
    let Some(lock) = dir.output_lock(Instant::now() + NO_LIMIT)? else {
        return Ok(None);
    };
    if dir.read_workload_end()?.is_some() {
        return Ok(None);
    }
    match dir.clone().running() {
        Ok(vm) => OutputWriter::open(vm, lock)?.run().map(Some),
        Err(VmDirError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug)]
struct OutputWriter {
    vm: RunningVm,
    log: OutputLog,
}

impl OutputWriter {
    fn open(vm: RunningVm, lock: Lock) -> Result<Self, Failure> {
        // The log of the snapshot's source has what a clone's guest printed before the snapshot,
        // apart from what was not acknowledged there.
        let from = vm.state.artifact.is_none().then_some(0);
        Ok(Self {
            log: OutputLog::open(&vm.dir, lock, from)?,
            vm,
        })
    }

    fn run(mut self) -> Result<End, Failure> {
        let process = copy_pidfd(&self.vm.process)?;
        let watch = Watch::with_process(Instant::now() + NO_LIMIT, Some(process.as_fd()));
        let endpoint = self.vm.endpoint(PORT_DEFAULT);
        loop {
            let mut follower = Follower {
                endpoint: &endpoint,
                watch,
                mode: AttachMode::Own,
                sink: &mut self,
                wanted: None,
            };
            let failure = match follower.run() {
                Ok(end) => return Ok(end),
                Err(failure) => failure,
            };
            // Most likely the disk is full. The guest keeps as much as its ring holds meanwhile.
            log::warn!("cannot log the workload's output, trying again: {failure}");
            if !await_look(&watch)? {
                return Ok(End::VmmEnded);
            }
            self.log.roll_back()?;
        }
    }
}

/// Waits until it is time to look again. `false` once the VMM has ended.
fn await_look(watch: &Watch<'_>) -> Result<bool, Failure> {
    let outlived = outlives(watch, Instant::now() + LOOK_PAUSE);
    outlived.or_fail(Exit::Internal, || "cannot wait for the VMM".to_owned())
}

impl Sink for OutputWriter {
    fn journal(&mut self) -> &mut Journal {
        self.log.journal()
    }

    fn commit(&mut self) -> Result<(), Failure> {
        Ok(self.log.commit()?)
    }

    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure> {
        let deadline = Instant::now() + RESTARTS_TIMEOUT;
        let session = find_workload(&self.vm.guest(PORT_DEFAULT, deadline));
        let session = session.ok().flatten();
        if let Some(fault) = &exited.fault {
            log::warn!("the workload: {}", fault_text(fault));
        }
        let end = WorkloadEnd {
            status: exited.status,
            fault: exited.fault,
            restarts: session.map(|session| session.restarts),
            ended_ms: unix_ms(),
        };
        Ok(self.vm.dir.write_workload_end(&end)?)
    }

    /// A connection opened during a snapshot would be part of the snapshot.
    fn await_turn(&mut self) -> Result<(), Failure> {
        let vmm = Some(self.vm.process.as_fd());
        loop {
            let watch = Watch::with_process(Instant::now() + NO_LIMIT, vmm);
            self.vm.dir.await_unlocked(&watch)?;
            // The command that took the last snapshot was killed, and the VM may be paused.
            let is_interrupted = self.vm.dir.read_state()?.stage == Stage::Snapshotting;
            if !is_interrupted || !await_look(&watch)? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
