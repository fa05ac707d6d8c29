//! Running a VM's health check: in a thread of the supervisor, as a client of the guest like any
//! other, and only once the guest was proven ready.
//!
//! A guest that a snapshot is taken of refuses commands, and what ran is cut off from its client.
//! That says nothing about its health: a run waits until no command changes the VM, and one that
//! failed because a snapshot began meanwhile is made again.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use shared::limits::PORT_DEFAULT;
use shared::message::{ByteString, Exec, OutputPolicy};
use shared::session_client::{Deadlines, Request};

use super::scribe::NO_LIMIT;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::driver::pause;
use crate::guest::session::{self, ClientError, Local, Outcome as Ended, Session};
use crate::os::deadline::Watch;
use crate::os::random;
use crate::vmdir::health::{Health, HealthCheck, Outcome};
use crate::vmdir::state::Stage;
use crate::vmdir::{RunningVm, VmDir};

/// How long the guest is waited for beyond a run's time limit: what it takes from TERM to KILL, and
/// as much again for its answer.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

/// How long between looks at a VM that nobody has proven ready yet.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A health check at work in a thread of its own.
#[derive(Debug)]
pub(crate) struct Nurse {
    /// Ends with the thread.
    ended: Receiver<()>,
}

impl Nurse {
    /// Starts a thread that runs the VM's health check, if it has one.
    #[must_use]
    pub(crate) fn start(dir: &VmDir) -> Option<Self> {
        let check = match HealthCheck::read(dir) {
            Ok(check) => check?,
            Err(error) => {
                log::warn!("there is no health check: {}", Failure::from(error));
                return None;
            }
        };
        let (alive, ended) = mpsc::channel();
        let dir = dir.clone();
        let started = thread::Builder::new().spawn(move || {
            let reached = reach(Point::SupervisorHealth).map_err(Failure::from);
            let opened = reached.and_then(|()| Ward::open(dir, check));
            if let Err(failure) = opened.and_then(Ward::run) {
                log::warn!("the health check ends: {failure}");
            }
            drop(alive);
        });
        match started {
            Ok(_) => Some(Self { ended }),
            Err(error) => {
                log::warn!("cannot start a thread for the health check: {error}");
                None
            }
        }
    }

    /// Waits until the end is written down, which is soon after the VMM's.
    pub(crate) fn join(self, timeout: Duration) {
        if let Err(mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(timeout) {
            log::warn!("the health check has not ended yet");
        }
    }
}

/// The VM that is looked after.
#[derive(Debug)]
struct Ward {
    vm: RunningVm,
    check: HealthCheck,
    health: Health,
    /// Where the command's output goes.
    null: File,
}

impl Ward {
    fn open(dir: VmDir, check: HealthCheck) -> Result<Self, Failure> {
        let null = OpenOptions::new().write(true).open("/dev/null");
        Ok(Self {
            vm: dir.running()?,
            check,
            health: Health::new(),
            null: null.or_fail(Exit::Internal, || "cannot open /dev/null".to_owned())?,
        })
    }

    /// Until the VMM has ended.
    fn run(mut self) -> Result<(), Failure> {
        self.health.write(&self.vm.dir)?;
        while self.await_ready()? {
            let Some(outcome) = self.run_once()? else {
                break;
            };
            self.health.handle(outcome, self.check.retries);
            self.health.write(&self.vm.dir)?;
            if !self.pause(self.check.interval) {
                break;
            }
        }
        self.health.handle_end();
        Ok(self.health.write(&self.vm.dir)?)
    }

    /// Waits until the guest has been proven ready. `false` when the VMM has ended.
    fn await_ready(&self) -> Result<bool, Failure> {
        loop {
            match self.vm.dir.read_state()?.stage {
                Stage::Starting | Stage::Unproven => {}
                Stage::Ready | Stage::Snapshotting => return Ok(true),
            }
            if !self.pause(LOOK_PAUSE) {
                return Ok(false);
            }
        }
    }

    /// One run that no snapshot disturbed; `None` when the VMM has ended.
    fn run_once(&self) -> Result<Option<Outcome>, Failure> {
        loop {
            self.vm.dir.await_unlocked(&self.watch())?;
            if !self.pause(Duration::ZERO) {
                return Ok(None);
            }
            let before = self.vm.dir.read_state()?.generation;
            let outcome = match self.ask()? {
                None => return Ok(None),
                Some(Outcome::Passed) => return Ok(Some(Outcome::Passed)),
                Some(outcome) => outcome,
            };
            let is_same = self.vm.dir.read_state()?.generation == before;
            if is_same && !self.vm.dir.is_locked()? {
                log::info!("health: {outcome:?}");
                return Ok(Some(outcome));
            }
        }
    }

    /// Runs the command; `None` when the VMM has ended.
    fn ask(&self) -> Result<Option<Outcome>, Failure> {
        let id = random::exec_id();
        let id = id.or_fail(Exit::Internal, || "cannot name a request".to_owned())?;
        let words = self
            .check
            .argv
            .iter()
            .map(|word| ByteString::new(word.as_bytes()));
        let argv: Option<Vec<ByteString>> = words.collect();
        let Some(argv) = argv else {
            return Ok(Some(Outcome::Failed(
                "a NUL byte in the command".to_owned(),
            )));
        };
        let timeout_ms = u64::try_from(self.check.timeout.as_millis()).unwrap_or(u64::MAX);
        let exec = Exec {
            output: OutputPolicy::DropOldest,
            timeout_ms: Some(timeout_ms),
            keep_ms: Some(timeout_ms),
            ..Exec::new(id, argv)
        };
        let now = Instant::now();
        let session = Session {
            endpoint: &self.vm.endpoint(PORT_DEFAULT),
            request: Request::Exec {
                exec: Box::new(exec),
                may_be_known: false,
            },
            deadlines: Deadlines {
                start: Some(now + self.check.timeout),
                absence_max: Some(self.check.timeout),
                end: Some(now + self.check.timeout + TIMEOUT_MARGIN),
            },
            watch: self.watch(),
            is_done_when_started: false,
        };
        let local = Local {
            stdin: None,
            stdout: self.null.as_fd(),
            stderr: self.null.as_fd(),
            signals: None,
            terminal: None,
        };
        Ok(outcome(session::run(session, local)))
    }

    fn watch(&self) -> Watch<'_> {
        Watch::with_process(Instant::now() + NO_LIMIT, Some(self.vm.process.as_fd()))
    }

    /// `false` when the VMM has ended.
    fn pause(&self, time: Duration) -> bool {
        pause(&self.watch(), Instant::now() + time).is_ok()
    }
}

fn outcome(result: Result<Ended, ClientError>) -> Option<Outcome> {
    Some(match result {
        Ok(Ended::Started(_)) => Outcome::Passed,
        Ok(Ended::Exited(exited)) if exited.timed_out => {
            Outcome::Failed("its time limit passed".to_owned())
        }
        Ok(Ended::Exited(exited)) => match exited.status.shell_code() {
            0 => Outcome::Passed,
            code => Outcome::Failed(format!("exit code {code}")),
        },
        Err(error) => match error.exit() {
            Exit::VmmEnded => return None,
            Exit::NotFound | Exit::NotRunnable => Outcome::Failed(error.to_string()),
            _ => Outcome::NoAnswer(error.to_string()),
        },
    })
}
