//! QEMU's `microvm` machine with vhost-vsock, driven over QMP.
//!
//! A snapshot is a migration into a file, and a restore is a migration out of it. Properties of
//! QEMU that determine the calls, all measured with 7.2:
//! - The `MIGRATION` event says `completed` while the source is still in `finish-migrate`, where
//!   `cont` is refused. No event marks the end of that state, which lasts well under a millisecond.
//! - A source that was stopped and migrated runs again after `cont`, its vsock connections intact.
//! - A loaded machine stays paused until `cont`, because its source was paused.
//! - A migration continues after its client has disconnected, even while the guest runs again after
//!   a `cont`, and stops the guest at its end. So it is cancelled before a `cont`.
//! - A load needs neither kernel nor initramfs: both are in the migrated memory. It needs the same
//!   machine, memory size and devices; the guest's CID may differ.
//! - A stream that cannot be loaded ends QEMU, with the reason only on its standard error.
//! - QMP serves one client at a time; the next client waits for the greeting.

mod launch;
pub mod qmp;
mod session;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::session::Session;
use super::{MachineSpec, RunState, StateFiles, Vmm, VmmError, VmmKind, VmmVersion};

pub(crate) use self::launch::is_cid_conflict;
pub(super) use self::launch::launch_args;

/// QEMU's name for a descriptor from `getfd` until a command uses it.
const FD_NAME: &str = "vmstate";

/// In bytes per second: no limit. The default is 128 MiB/s.
const BANDWIDTH_MAX: i64 = i64::MAX;

/// Time between two queries of a migration's progress.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Time between two queries of a state whose end no event marks; it grows from the first to the
/// second.
const STATE_WAIT_MIN: Duration = Duration::from_micros(100);
const STATE_WAIT_MAX: Duration = Duration::from_millis(10);

/// A connection to one QEMU process.
#[derive(Debug)]
pub(crate) struct Qemu {
    session: Session,
}

impl Qemu {
    /// Commands go over `stream`. `process` is QEMU's pidfd, so that its end ends a wait.
    pub(crate) fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self {
            session: Session::new(stream, process),
        }
    }

    fn execute(&mut self, command: &str, deadline: Instant) -> Result<Value, VmmError> {
        self.session.execute(command, None, None, deadline)
    }

    fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: Instant,
    ) -> Result<Value, VmmError> {
        self.session
            .execute(command, Some(arguments), None, deadline)
    }

    /// The state of the machine, as QEMU calls it.
    fn status(&mut self, deadline: Instant) -> Result<String, VmmError> {
        let answer = self.execute("query-status", deadline)?;
        match answer.get("status").and_then(Value::as_str) {
            Some(status) => Ok(status.to_owned()),
            None => Err(VmmError::answer("query-status", "no text field 'status'")),
        }
    }

    /// Turns on migration events, passes `file` to QEMU, and starts `command` on it.
    fn start_migration(
        &mut self,
        command: &str,
        file: &File,
        deadline: Instant,
    ) -> Result<(), VmmError> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.execute_with("migrate-set-capabilities", events, deadline)?;
        let name = json!({ "fdname": FD_NAME });
        self.session
            .execute("getfd", Some(name), Some(file.as_fd()), deadline)?;
        self.execute_with(command, json!({ "uri": format!("fd:{FD_NAME}") }), deadline)?;
        Ok(())
    }

    /// Waits for the end of a migration and returns whether it succeeded.
    fn await_migration(
        &mut self,
        command: &str,
        progress: Option<&mut dyn FnMut(u64)>,
        deadline: Instant,
    ) -> Result<MigrationEnd, VmmError> {
        let mut progress = progress;
        loop {
            let slice = progress.is_some().then_some(REPORT_EVERY);
            let Some(event) = self.session.next_event(command, slice, deadline)? else {
                if let Some(progress) = &mut progress {
                    progress(self.transferred(deadline)?);
                }
                continue;
            };
            if event.name != "MIGRATION" {
                continue;
            }
            match event.data.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(MigrationEnd::Completed),
                Some("failed" | "cancelled") => return Ok(MigrationEnd::Failed),
                _ => {}
            }
        }
    }

    fn transferred(&mut self, deadline: Instant) -> Result<u64, VmmError> {
        let answer = self.execute("query-migrate", deadline)?;
        Ok(answer
            .pointer("/ram/transferred")
            .and_then(Value::as_u64)
            .unwrap_or(0))
    }

    /// Waits until QEMU has left the state `transient`.
    fn await_stable_state(&mut self, transient: &str, deadline: Instant) -> Result<(), VmmError> {
        let mut wait = STATE_WAIT_MIN;
        while self.status(deadline)? == transient {
            self.session
                .next_event("query-status", Some(wait), deadline)?;
            wait = (wait * 2).min(STATE_WAIT_MAX);
        }
        Ok(())
    }

    /// Cancels a migration that a killed command left: it would continue while the guest runs, and
    /// stop the guest at its end.
    fn end_migration(&mut self, deadline: Instant) -> Result<(), VmmError> {
        let mut wait = STATE_WAIT_MIN;
        let mut is_cancelled = false;
        loop {
            let answer = self.execute("query-migrate", deadline)?;
            match answer.get("status").and_then(Value::as_str) {
                Some("setup" | "active" | "pre-switchover" | "device") if !is_cancelled => {
                    self.execute("migrate_cancel", deadline)?;
                    is_cancelled = true;
                }
                Some("setup" | "active" | "pre-switchover" | "device" | "cancelling") => {
                    self.session
                        .next_event("query-migrate", Some(wait), deadline)?;
                    wait = (wait * 2).min(STATE_WAIT_MAX);
                }
                _ => return Ok(()),
            }
        }
    }

    fn migrate(
        &mut self,
        path: &Path,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError> {
        if self.run_state(deadline)? != RunState::Paused {
            return Err(VmmError::not_paused("migrate"));
        }
        let unlimited = json!({ "max-bandwidth": BANDWIDTH_MAX });
        self.execute_with("migrate-set-parameters", unlimited, deadline)?;
        let file = create(path)?;
        self.start_migration("migrate", &file, deadline)?;
        if self.await_migration("migrate", Some(progress), deadline)? == MigrationEnd::Failed {
            let answer = self.execute("query-migrate", deadline)?;
            let reason = answer.get("error-desc").and_then(Value::as_str);
            return Err(VmmError::Refused {
                request: "migrate".to_owned(),
                code: "failed".to_owned(),
                message: reason.unwrap_or("no reason given").to_owned(),
                is_artifact_fault: false,
            });
        }
        self.await_stable_state("finish-migrate", deadline)?;
        let written = file
            .metadata()
            .map_err(|source| file_error("read the size of", path, source));
        progress(written?.len());
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum MigrationEnd {
    Completed,
    Failed,
}

impl Vmm for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn is_in_step(&self) -> bool {
        self.session.is_in_step()
    }

    fn version(&mut self, deadline: Instant) -> Result<VmmVersion, VmmError> {
        let answer = self.execute("query-version", deadline)?;
        let number = |name| {
            answer
                .pointer(&format!("/qemu/{name}"))
                .and_then(Value::as_u64)
        };
        let (Some(major), Some(minor), Some(micro)) =
            (number("major"), number("minor"), number("micro"))
        else {
            return Err(VmmError::answer("query-version", "no version numbers"));
        };
        VmmVersion::parse(&format!("{major}.{minor}.{micro}"))
            .map_err(|source| VmmError::answer("query-version", source))
    }

    fn run_state(&mut self, deadline: Instant) -> Result<RunState, VmmError> {
        Ok(run_state(&self.status(deadline)?))
    }

    fn put_metadata(&mut self, _data: &Value, _deadline: Instant) -> Result<(), VmmError> {
        Err(VmmError::Unsupported {
            kind: VmmKind::Qemu,
            what: "serve metadata to its guest".to_owned(),
        })
    }

    fn boot(&mut self, _spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError> {
        // The machine came on the command line, and is stopped before its first instruction.
        self.execute("cont", deadline).map(drop)
    }

    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError> {
        const COMMAND: &str = "migrate-incoming";
        let file = match &files.open_state {
            Some(state) => state.open_anew().map_err(open_error(&files.state))?,
            None => open(&files.state)?,
        };
        self.start_migration(COMMAND, &file, deadline)?;
        match self.await_migration(COMMAND, None, deadline) {
            Ok(MigrationEnd::Completed) => {}
            Err(err) if !err.is_gone() => return Err(err),
            // QEMU sends `failed` and ends at once: either may be seen first.
            Ok(MigrationEnd::Failed) | Err(_) => {
                return Err(VmmError::Refused {
                    request: COMMAND.to_owned(),
                    code: "failed".to_owned(),
                    message: format!("QEMU cannot load {}", files.state.display()),
                    is_artifact_fault: true,
                });
            }
        }
        self.await_stable_state("inmigrate", deadline)?;
        self.execute("cont", deadline).map(drop)
    }

    fn pause(&mut self, deadline: Instant) -> Result<(), VmmError> {
        self.execute("stop", deadline).map(drop)
    }

    fn save(
        &mut self,
        files: &StateFiles,
        progress: &mut dyn FnMut(u64),
        deadline: Instant,
    ) -> Result<(), VmmError> {
        let result = self.migrate(&files.state, progress, deadline);
        if matches!(result, Err(VmmError::Deadline { .. })) {
            // Left under way, it would make QEMU refuse the next migration.
            self.session.send_without_answer("migrate_cancel");
        }
        result
    }

    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError> {
        if self.run_state(deadline)? == RunState::Running {
            return Ok(());
        }
        self.end_migration(deadline)?;
        self.await_stable_state("finish-migrate", deadline)?;
        self.execute("cont", deadline).map(drop)
    }
}

/// Translates QEMU's name of a state.
fn run_state(status: &str) -> RunState {
    match status {
        "prelaunch" | "preconfig" | "inmigrate" => RunState::NotStarted,
        "running" => RunState::Running,
        // `cont` ends an `io-error` state and retries the request.
        "paused" | "postmigrate" | "finish-migrate" | "save-vm" | "restore-vm" | "debug"
        | "io-error" => RunState::Paused,
        // shutdown, guest-panicked, internal-error, watchdog, and states of later versions.
        _ => RunState::Ended,
    }
}

fn create(path: &Path) -> Result<File, VmmError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .map_err(|source| file_error("create", path, source))
}

fn file_error(operation: &'static str, path: &Path, source: io::Error) -> VmmError {
    VmmError::File {
        operation,
        path: path.to_owned(),
        source,
        is_artifact_fault: false,
    }
}

fn open(path: &Path) -> Result<File, VmmError> {
    File::open(path).map_err(open_error(path))
}

fn open_error(path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    let path = path.to_owned();
    move |source| VmmError::File {
        operation: "open",
        path,
        is_artifact_fault: source.kind() == io::ErrorKind::NotFound,
        source,
    }
}

#[cfg(test)]
mod tests;
