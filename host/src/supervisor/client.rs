//! The command's side of the supervisor that it starts; see [`supervisor`](crate::supervisor).

use std::fmt;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use shared::json::JsonError;

use crate::error::Failure;
use crate::exit::Exit;
use crate::os::deadline::{WaitError, Watch};
use crate::os::notify;
use crate::os::process::ProcessId;
use crate::supervisor::COMMAND;
use crate::supervisor::link::{Order, Report};
use crate::vmdir::launch_file::LaunchFile;
use crate::vmdir::state::ExitRecord;
use crate::vmdir::{SUPERVISOR_LOG, VmDir, VmDirError};
use crate::vmm::Launch;

/// Longest report line, in bytes.
const REPORT_LEN_MAX: usize = 64 * 1024;

/// Why the command has no VMM, or no report of one.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// The launch file could not be written.
    Dir(VmDirError),
    /// The supervisor could not be started, or its pipe failed.
    Io(io::Error),
    /// The supervisor sent an invalid report.
    Report(JsonError),
    /// The supervisor or the VMM ended without a report.
    Silent,
    /// The supervisor could not start the VMM; its own error message.
    Failed {
        text: String,
    },
    Deadline,
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(error) => error.fmt(f),
            Self::Io(_) => f.write_str("cannot start the VM's supervisor or read its reports"),
            Self::Report(error) => write!(f, "the supervisor's report is invalid: {error}"),
            Self::Silent => f.write_str("the VM's supervisor ended without a report"),
            Self::Failed { text } => f.write_str(text),
            Self::Deadline => f.write_str("the VM's supervisor did not report in time"),
        }
    }
}

impl std::error::Error for LaunchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Dir(error) => error.source(),
            Self::Io(source) => Some(source),
            Self::Report(error) => error.source(),
            Self::Silent | Self::Failed { .. } | Self::Deadline => None,
        }
    }
}

impl From<io::Error> for LaunchError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

impl From<WaitError> for LaunchError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Deadline => Self::Deadline,
            WaitError::Io(source) => Self::Io(source),
            WaitError::ProcessExited => Self::Silent,
        }
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

/// A running supervisor. Dropping this closes the stream of orders and so ends a VM not kept.
#[derive(Debug)]
pub(crate) struct Supervisor {
    child: Child,
    orders: ChildStdin,
    reports: ChildStdout,
    /// The beginning of an incomplete report.
    buffer: Vec<u8>,
}

impl Supervisor {
    /// Starts the supervisor of `dir`, which starts the VMM.
    pub(crate) fn start(dir: &VmDir, launch: &Launch) -> Result<Self, LaunchError> {
        LaunchFile(launch.clone())
            .write(dir)
            .map_err(LaunchError::Dir)?;
        let log = dir.append_to(SUPERVISOR_LOG)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .arg(dir.path())
            // The service that systemd waits for is this command, not the supervisor or the VMM.
            .env_remove(notify::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(orders), Some(reports)) => Ok(Self {
                child,
                orders,
                reports,
                buffer: Vec::new(),
            }),
            _ => Err(LaunchError::Io(io::Error::other(
                "no pipes to the supervisor",
            ))),
        }
    }

    pub(crate) fn process(&self) -> io::Result<ProcessId> {
        ProcessId::of_child(self.child.id())
    }

    pub(crate) fn await_spawned(&mut self, watch: &Watch<'_>) -> Result<ProcessId, LaunchError> {
        match self.report(watch)? {
            Report::Spawned { process } => Ok(process),
            Report::Failed { text } => Err(LaunchError::Failed { text }),
            Report::Ended { exit } => Err(LaunchError::Failed {
                text: format!("the VMM ended at once ({exit})"),
            }),
            Report::Published => Err(LaunchError::Silent),
        }
    }

    /// Has the supervisor publish the VM's next state, and waits until it has. Until then the VM
    /// goes with this command.
    pub(crate) fn publish(&mut self, order: Order, watch: &Watch<'_>) -> Result<(), LaunchError> {
        self.order(order)?;
        loop {
            match self.report(watch)? {
                Report::Published => return Ok(()),
                Report::Failed { text } => return Err(LaunchError::Failed { text }),
                Report::Ended { .. } => return Err(LaunchError::Silent),
                Report::Spawned { .. } => {}
            }
        }
    }

    pub(crate) fn await_ended(&mut self, watch: &Watch<'_>) -> Result<ExitRecord, LaunchError> {
        loop {
            match self.report(watch)? {
                Report::Ended { exit } => return Ok(exit),
                Report::Failed { text } => return Err(LaunchError::Failed { text }),
                Report::Spawned { .. } | Report::Published => {}
            }
        }
    }

    pub(crate) fn order(&mut self, order: Order) -> io::Result<()> {
        self.orders.write_all(&[order.byte()])
    }

    /// Waits for the supervisor itself. It ends soon after [`Report::Ended`] or [`Report::Failed`].
    pub(crate) fn join(mut self) -> io::Result<()> {
        drop(self.orders);
        self.child.wait().map(drop)
    }

    fn report(&mut self, watch: &Watch<'_>) -> Result<Report, LaunchError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Report::parse(&line).map_err(LaunchError::Report);
            }
            if self.buffer.len() > REPORT_LEN_MAX {
                return Err(LaunchError::Io(io::Error::other("the report is too long")));
            }
            watch.readable(&self.reports)?;
            let mut bytes = [0; 4096];
            match self.reports.read(&mut bytes) {
                Ok(0) => return Err(LaunchError::Silent),
                Ok(len) => self.buffer.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
