//! Firecracker, driven over its HTTP API on a Unix socket.
//!
//! Properties of Firecracker that determine the order of calls:
//! - A failed load ends the process, after the answer: each attempt needs a new process.
//! - The creation of a snapshot of a *running* machine fails, but only after it has reset the
//!   guest's vsock connections: [`save`](Vmm::save) checks the state first.
//! - On 1.16.0 and 1.16.1 a `Resumed` breaks host-to-guest vsock permanently if no reset event was
//!   queued for the guest since the pause: [`resume`](Vmm::resume) checks the state first, and has
//!   an event queued if there was no snapshot.
//! - A request with an unknown field is refused: this program sends only fields that every
//!   supported version has.

mod api;
mod config;
pub mod http;
mod launch;
mod requests;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use self::api::Api;
use self::requests::Call;
use super::{MachineSpec, RunState, StateFiles, Vmm, VmmError, VmmKind, VmmVersion};

pub(crate) use self::config::ExternalMachine;
pub(super) use self::launch::launch_args;

/// A connection to one Firecracker process.
#[derive(Debug)]
pub(crate) struct Firecracker {
    api: Api,
    /// Since the pause this connection has sent a create, which has queued a reset event for the
    /// guest.
    has_reset: bool,
}

impl Firecracker {
    /// Calls go over `stream`. `process` is Firecracker's pidfd, so that its end ends a wait.
    pub(crate) fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            api: Api::new(stream, process),
            has_reset: false,
        }
    }

    /// The machine, as another program has configured it.
    pub(crate) fn describe(&mut self, deadline: Instant) -> Result<ExternalMachine, VmmError> {
        let call = requests::config();
        let value = self.get(&call, deadline)?;
        ExternalMachine::parse(&value).map_err(|text| VmmError::answer(&call.name(), text))
    }

    /// Queues a reset event for a paused guest: the first thing that a create does. This create
    /// then fails, because its files cannot be created.
    fn queue_reset(&mut self, deadline: Instant) -> Result<(), VmmError> {
        match self.put(&requests::create_nothing(), deadline) {
            Ok(()) | Err(VmmError::Refused { .. }) => {
                self.has_reset = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a call whose answer has no body.
    fn put(&mut self, call: &Call, deadline: Instant) -> Result<(), VmmError> {
        self.api.call(call, deadline, &mut || {}).map(drop)
    }

    fn get(&mut self, call: &Call, deadline: Instant) -> Result<Value, VmmError> {
        let body = self.api.call(call, deadline, &mut || {})?;
        serde_json::from_slice(&body).map_err(|source| VmmError::answer(&call.name(), source))
    }

    /// Sends a call and returns one text field of its answer.
    fn get_text(
        &mut self,
        call: &Call,
        field: &str,
        deadline: Instant,
    ) -> Result<String, VmmError> {
        let value = self.get(call, deadline)?;
        match value.get(field).and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(VmmError::answer(
                &call.name(),
                format!("no text field '{field}'"),
            )),
        }
    }
}

impl Vmm for Firecracker {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    fn is_in_step(&self) -> bool {
        self.api.is_in_step()
    }

    fn version(&mut self, deadline: Instant) -> Result<VmmVersion, VmmError> {
        let call = requests::version();
        let text = self.get_text(&call, "firecracker_version", deadline)?;
        VmmVersion::parse(&text).map_err(|source| VmmError::answer(&call.name(), source))
    }

    fn run_state(&mut self, deadline: Instant) -> Result<RunState, VmmError> {
        let call = requests::instance();
        match self.get_text(&call, "state", deadline)?.as_str() {
            "Not started" => Ok(RunState::NotStarted),
            "Running" => Ok(RunState::Running),
            "Paused" => Ok(RunState::Paused),
            other => Err(VmmError::answer(
                &call.name(),
                format!("unknown state '{other}'"),
            )),
        }
    }

    fn put_metadata(&mut self, data: &Value, deadline: Instant) -> Result<(), VmmError> {
        self.put(&requests::metadata(data), deadline)
    }

    fn boot(&mut self, spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError> {
        for call in requests::boot(spec)? {
            self.put(&call, deadline)?;
        }
        Ok(())
    }

    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError> {
        self.put(&requests::load(files)?, deadline)
    }

    fn pause(&mut self, deadline: Instant) -> Result<(), VmmError> {
        self.has_reset = false;
        self.put(&requests::pause(), deadline)
    }

    fn save(
        &mut self,
        files: &StateFiles,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError> {
        let call = requests::create(files)?;
        if self.run_state(deadline)? != RunState::Paused {
            return Err(VmmError::not_paused(&call.name()));
        }
        self.has_reset = true;
        let memory = files.memory.as_deref();
        let mut report = || progress(memory.map_or(0, bytes_written));
        self.api.call(&call, deadline, &mut report)?;
        report();
        Ok(())
    }

    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError> {
        if self.run_state(deadline)? == RunState::Running {
            return Ok(());
        }
        if !self.has_reset {
            self.queue_reset(deadline)?;
        }
        self.put(&requests::resume(), deadline)
    }
}

/// Bytes of `file` that were written so far. Firecracker sets the memory file to its full length
/// before it writes: only the allocated blocks tell the progress.
fn bytes_written(file: &Path) -> u64 {
    // The unit of `st_blocks` is 512 bytes on every file system.
    fs::metadata(file).map_or(0, |metadata| metadata.len().min(metadata.blocks() * 512))
}

#[cfg(test)]
mod tests;
