//! Writing the workload's output down in the VM directory: in a thread of the supervisor, or, when
//! that was killed, in a `host-tool logs` that stands in for it.
//!
//! Whoever holds the output's lock writes. A scribe that has to wait for its turn takes over where
//! the one before was stopped.

use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use shared::limits::PORT_DEFAULT;
use shared::message::{AttachMode, Exited};

use crate::error::Failure;
use crate::failpoint::{Point, reach};
use crate::guest::address::Endpoint;
use crate::guest::driver::pause;
use crate::os::clock::unix_ms;
use crate::os::deadline::Watch;
use crate::supervisor::follow::{End, Follower, Sink, find_workload};
use crate::vmdir::output_log::OutputLog;
use crate::vmdir::output_log::journal::Journal;
use crate::vmdir::state::{Stage, WorkloadEnd};
use crate::vmdir::{Lock, RunningVm, VmDir, VmDirError};

/// Stands for "no limit": the VM's end is what ends the waits.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long to wait between looks at a VM whose snapshot was interrupted, and between attempts to
/// write where there was no room.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// How long the guest may take to say how often it started its workload again.
const RESTARTS_MAX: Duration = Duration::from_secs(1);

/// A scribe at work in a thread of its own.
#[derive(Debug)]
pub(crate) struct Scribe {
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Scribe {
    /// Starts a thread that writes the output of the VM's workload down, if it has one.
    #[must_use]
    pub(crate) fn start(dir: &VmDir) -> Self {
        let (alive, ended) = mpsc::channel();
        let dir = dir.clone();
        let started = thread::Builder::new().spawn(move || {
            let reached = reach(Point::SupervisorScribe).map_err(Failure::from);
            match reached.and_then(|()| write_down(&dir)) {
                Ok(Some(end)) => log::info!("no more is written down of the workload: {end:?}"),
                Ok(None) => log::info!("the workload's output is written down already"),
                Err(failure) => log::warn!("cannot write the workload's output down: {failure}"),
            }
            drop(alive);
        });
        if let Err(error) = started {
            log::warn!("cannot start a thread for the workload's output: {error}");
        }
        Self { ended }
    }

    /// Waits until everything has been written down. That is soon after the VMM's end, unless the
    /// file system stands still.
    pub(crate) fn join(self, timeout: Duration) {
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(timeout) {
            log::warn!("the workload's last output is not written down yet");
        }
    }
}

/// Writes the output down until there is no more. Waits for its turn first; `None` when nothing was
/// left to do then.
pub(crate) fn write_down(dir: &VmDir) -> Result<Option<End>, Failure> {
    let Some(lock) = dir.output_lock(Instant::now() + NO_LIMIT)? else {
        return Ok(None);
    };
    if dir.read_workload_end()?.is_some() {
        return Ok(None);
    }
    match dir.clone().running() {
        Ok(vm) => Writer::open(vm, lock)?.run().map(Some),
        Err(VmDirError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Into the VM's log.
#[derive(Debug)]
struct Writer {
    vm: RunningVm,
    endpoint: Endpoint,
    log: OutputLog,
}

impl Writer {
    fn open(vm: RunningVm, lock: Lock) -> Result<Self, Failure> {
        // What a clone's guest had printed before its snapshot is in the log of the VM that the
        // snapshot is of, but for what was not acknowledged there.
        let from = vm.state.artifact.is_none().then_some(0);
        Ok(Self {
            endpoint: vm.endpoint(PORT_DEFAULT),
            log: OutputLog::open(&vm.dir, lock, from)?,
            vm,
        })
    }

    fn run(mut self) -> Result<End, Failure> {
        let process = self.vm.process.try_clone();
        let process = process.map_err(|error| Failure::new(crate::exit::Exit::Internal, error))?;
        let watch = Watch::with_process(Instant::now() + NO_LIMIT, Some(process.as_fd()));
        let endpoint = self.endpoint.clone();
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
            // Typically a full disk. The guest keeps what it can until there is room.
            log::warn!("the workload's output waits: {failure}");
            if pause(&watch, Instant::now() + LOOK_PAUSE).is_err() {
                return Ok(End::VmmEnded);
            }
            self.log.roll_back()?;
        }
    }
}

impl Sink for Writer {
    fn journal(&mut self) -> &mut Journal {
        self.log.journal()
    }

    fn commit(&mut self) -> Result<(), Failure> {
        Ok(self.log.commit()?)
    }

    fn handle_end(&mut self, exited: &Exited) -> Result<(), Failure> {
        let watch =
            Watch::with_process(Instant::now() + RESTARTS_MAX, Some(self.vm.process.as_fd()));
        let session = find_workload(&self.endpoint, &watch).ok().flatten();
        let end = WorkloadEnd {
            status: exited.status,
            restarts: session.map(|session| session.restarts),
            ended_ms: unix_ms(),
        };
        Ok(self.vm.dir.write_workload_end(&end)?)
    }

    /// A connection that is made while a snapshot is taken would be in the snapshot.
    fn await_turn(&mut self) -> Result<(), Failure> {
        let vmm = Some(self.vm.process.as_fd());
        loop {
            let watch = Watch::with_process(Instant::now() + NO_LIMIT, vmm);
            self.vm.dir.await_unlocked(&watch)?;
            // Whoever took the last one was killed, and the VM may be paused.
            let is_interrupted = self.vm.dir.read_state()?.stage == Stage::Snapshotting;
            if !is_interrupted || pause(&watch, Instant::now() + LOOK_PAUSE).is_err() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
