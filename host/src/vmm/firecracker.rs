//! Firecracker, driven over its HTTP API on a Unix socket.
//!
//! What the order of calls owes to Firecracker itself:
//! - A failed load ends the process, after the answer: one process per attempt.
//! - Creating a snapshot of a *running* machine fails only after the guest's vsock connections
//!   were reset: [`save`](Vmm::save) looks at the state first.
//! - On 1.16.0 and 1.16.1 a `Resumed` without a reset event queued for the guest since the pause
//!   ends host-to-guest vsock for good: [`resume`](Vmm::resume) looks at the state first, and has
//!   one queued where nobody took a snapshot.
//! - Request structures refuse fields that they do not know: only fields that every supported
//!   version has are ever sent.

mod api;
mod config;
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

pub(crate) use self::config::ForeignMachine;
pub(super) use self::requests::launch_args;

/// A connection to one Firecracker process.
#[derive(Debug)]
pub(crate) struct Firecracker {
    api: Api,
    /// Since the pause a create was asked for over this connection, so that a reset event waits for
    /// the guest.
    has_reset: bool,
}

impl Firecracker {
    /// Speaks over `stream`. `process` is a pidfd of Firecracker, so that its death ends a wait.
    #[must_use]
    pub(crate) fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            api: Api::new(stream, process),
            has_reset: false,
        }
    }

    /// What the machine is, where another program described it.
    pub(crate) fn describe(&mut self, deadline: Instant) -> Result<ForeignMachine, VmmError> {
        let call = requests::config();
        let body = self.api.call(&call, deadline, &mut || {})?;
        let value: Value = serde_json::from_slice(&body)
            .map_err(|source| VmmError::answer(&call.name(), source))?;
        ForeignMachine::parse(&value).map_err(|text| VmmError::answer(&call.name(), text))
    }

    /// Has a reset event queued for a paused guest, which is the first thing that a create does.
    /// This one gets no further, because its files cannot be made.
    fn queue_reset(&mut self, deadline: Instant) -> Result<(), VmmError> {
        match self.put(&requests::create_nothing(), deadline) {
            Ok(()) | Err(VmmError::Refused { .. }) => {
                self.has_reset = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a call whose answer has nothing in it but yes.
    fn put(&mut self, call: &Call, deadline: Instant) -> Result<(), VmmError> {
        self.api.call(call, deadline, &mut || {}).map(drop)
    }

    /// Sends a call and takes one text field out of its answer.
    fn get_text(
        &mut self,
        call: &Call,
        field: &str,
        deadline: Instant,
    ) -> Result<String, VmmError> {
        let body = self.api.call(call, deadline, &mut || {})?;
        let value: Value = serde_json::from_slice(&body)
            .map_err(|source| VmmError::answer(&call.name(), source))?;
        match value.get(field).and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(VmmError::answer(
                &call.name(),
                format!("no text field '{field}'"),
            )),
        }
    }

    fn require_paused(&mut self, call: &Call, deadline: Instant) -> Result<(), VmmError> {
        match self.run_state(deadline)? {
            RunState::Paused => Ok(()),
            RunState::NotStarted | RunState::Running | RunState::Ended => Err(VmmError::Refused {
                request: call.name(),
                code: "not sent".to_owned(),
                message: "the machine is not paused".to_owned(),
                is_artifact_fault: false,
            }),
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
        self.require_paused(&call, deadline)?;
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

/// Bytes of `file` that were written so far. Firecracker gives the memory file its full length
/// before it writes, so that only the allocated blocks tell how far it is.
fn bytes_written(file: &Path) -> u64 {
    // `st_blocks` counts units of 512 bytes on every file system.
    fs::metadata(file).map_or(0, |metadata| metadata.len().min(metadata.blocks() * 512))
}

pub mod http;
#[cfg(test)]
mod tests;
