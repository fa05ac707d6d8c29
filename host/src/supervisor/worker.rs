//! A thread of the supervisor that works until the VMM has ended.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::error::Failure;
use crate::failpoint::{Point, reach};

#[derive(Debug)]
pub(crate) struct Worker {
    /// What it does, as a noun for messages.
    task: &'static str,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Worker {
    /// A worker that cannot be started or fails is logged: the VM does not depend on it.
    pub(crate) fn start(
        task: &'static str,
        point: Point,
        work: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Self {
        let (alive, ended) = mpsc::channel();
        let started = thread::Builder::new().spawn(move || {
            let reached = reach(point).map_err(Failure::from);
            if let Err(failure) = reached.and_then(|()| work()) {
                log::warn!("{task} ends: {failure}");
            }
            drop(alive);
        });
        if let Err(error) = started {
            log::warn!("cannot start a thread for {task}: {error}");
        }
        Self { task, ended }
    }

    /// Waits until the thread has written its last file. It ends soon after the VMM, unless the
    /// file system does not respond.
    pub(crate) fn join(self, timeout: Duration) {
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(timeout) {
            log::warn!("{} has not ended in time", self.task);
        }
    }
}
