//! QEMU's `microvm` machine with vhost-vsock, driven over QMP.
//!
//! A snapshot is a migration into a file, a restore a migration out of it. Facts that shape the
//! calls, all measured with 7.2:
//! - The `MIGRATION` event says `completed` while the source is still in `finish-migrate`, where
//!   `cont` is refused. No event tells the end of that state, which lasts well under a millisecond.
//! - A source that was stopped and migrated runs on after `cont`, its vsock connections intact.
//! - A machine that is loaded stays paused until `cont`, because its source was paused.
//! - A migration goes on when whoever asked for it has gone, also beside a guest that `cont` let
//!   run again, and at its end it stops that: it is cancelled first.
//! - A load needs neither kernel nor initramfs: both are in the migrated memory. It needs the same
//!   machine, memory size and devices; the guest's CID may differ.
//! - A stream that cannot be loaded ends QEMU, with the reason on its standard error only.
//! - QMP serves one client at a time; the next one waits for the greeting.

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

/// Name under which QEMU knows a descriptor between `getfd` and the command that uses it up.
const FD_NAME: &str = "vmstate";

/// "As fast as the file takes it"; the default is 128 MiB/s.
const BANDWIDTH_MAX: i64 = i64::MAX;

/// Between looks at a migration's progress.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// Between looks at a state that ends by itself and without an event.
const SETTLE_WAIT_MIN: Duration = Duration::from_micros(100);
const SETTLE_WAIT_MAX: Duration = Duration::from_millis(10);

/// A connection to one QEMU process.
#[derive(Debug)]
pub(crate) struct Qemu {
    session: Session,
}

impl Qemu {
    /// Speaks over `stream`. `process` is a pidfd of QEMU, so that its death ends a wait.
    #[must_use]
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

    /// QEMU's own word for its state.
    fn status(&mut self, deadline: Instant) -> Result<String, VmmError> {
        let answer = self.execute("query-status", deadline)?;
        match answer.get("status").and_then(Value::as_str) {
            Some(status) => Ok(status.to_owned()),
            None => Err(VmmError::answer("query-status", "no text field 'status'")),
        }
    }

    /// Asks for events, hands over `file`, and starts `command` on it.
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

    /// Waits until a migration has ended, well or not, and says which.
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

    /// Waits while QEMU is in the state `transient`.
    fn settle(&mut self, transient: &str, deadline: Instant) -> Result<(), VmmError> {
        let mut wait = SETTLE_WAIT_MIN;
        while self.status(deadline)? == transient {
            self.session
                .next_event("query-status", Some(wait), deadline)?;
            wait = (wait * 2).min(SETTLE_WAIT_MAX);
        }
        Ok(())
    }

    /// Ends a migration that nobody waits for any more: it would go on beside the running guest,
    /// and stop it again when it is done.
    fn end_migration(&mut self, deadline: Instant) -> Result<(), VmmError> {
        let mut wait = SETTLE_WAIT_MIN;
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
                    wait = (wait * 2).min(SETTLE_WAIT_MAX);
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
            return Err(VmmError::Refused {
                request: "migrate".to_owned(),
                code: "not sent".to_owned(),
                message: "the machine is not paused".to_owned(),
                is_artifact_fault: false,
            });
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
        self.settle("finish-migrate", deadline)?;
        let written = file
            .metadata()
            .map_err(|source| unfinished("read the size of", path, source));
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

    /// The machine was described on the command line and waits before its first instruction.
    fn put_metadata(&mut self, _data: &Value, _deadline: Instant) -> Result<(), VmmError> {
        Err(VmmError::Unsupported {
            kind: VmmKind::Qemu,
            what: "tell its guest metadata".to_owned(),
        })
    }

    fn boot(&mut self, _spec: &MachineSpec, deadline: Instant) -> Result<(), VmmError> {
        self.execute("cont", deadline).map(drop)
    }

    fn load(&mut self, files: &StateFiles, deadline: Instant) -> Result<(), VmmError> {
        const COMMAND: &str = "migrate-incoming";
        let file = open(&files.state)?;
        self.start_migration(COMMAND, &file, deadline)?;
        match self.await_migration(COMMAND, None, deadline) {
            Ok(MigrationEnd::Completed) => {}
            Err(err) if !err.is_gone() => return Err(err),
            // `failed` and the end of the process come together; either may be seen first.
            Ok(MigrationEnd::Failed) | Err(_) => {
                return Err(VmmError::Refused {
                    request: COMMAND.to_owned(),
                    code: "failed".to_owned(),
                    message: format!("QEMU cannot load {}", files.state.display()),
                    is_artifact_fault: true,
                });
            }
        }
        self.settle("inmigrate", deadline)?;
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
            // Nobody waits for it any more, and a migration under way would refuse the next one.
            self.session.send_and_forget("migrate_cancel");
        }
        result
    }

    fn resume(&mut self, deadline: Instant) -> Result<(), VmmError> {
        if self.run_state(deadline)? == RunState::Running {
            return Ok(());
        }
        self.end_migration(deadline)?;
        self.settle("finish-migrate", deadline)?;
        self.execute("cont", deadline).map(drop)
    }
}

/// What QEMU's word for its state means to us.
fn run_state(status: &str) -> RunState {
    match status {
        "prelaunch" | "preconfig" | "inmigrate" => RunState::NotStarted,
        "running" => RunState::Running,
        // An `io-error` state is left by `cont`, which tries the request again.
        "paused" | "postmigrate" | "finish-migrate" | "save-vm" | "restore-vm" | "debug"
        | "io-error" => RunState::Paused,
        // shutdown, guest-panicked, internal-error, watchdog, and what later versions add.
        _ => RunState::Ended,
    }
}

fn create(path: &Path) -> Result<File, VmmError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .map_err(|source| unfinished("create", path, source))
}

fn unfinished(operation: &'static str, path: &Path, source: io::Error) -> VmmError {
    VmmError::File {
        operation,
        path: path.to_owned(),
        source,
        is_artifact_fault: false,
    }
}

fn open(path: &Path) -> Result<File, VmmError> {
    File::open(path).map_err(|source| VmmError::File {
        operation: "open",
        path: path.to_owned(),
        is_artifact_fault: source.kind() == io::ErrorKind::NotFound,
        source,
    })
}

#[cfg(test)]
mod tests;
