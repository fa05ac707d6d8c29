//! Running a VM's health check: in a thread of the supervisor, as an ordinary client of the guest,
//! and only once the guest was proven ready.
//!
//! During a snapshot the guest refuses commands and cuts off the clients of running ones, which
//! says nothing about its health. So a run waits until no command changes the VM, and a run that
//! failed while a snapshot began is repeated.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use shared::limits::PORT_DEFAULT;
use shared::message::{ByteString, Exec, OutputPolicy};
use shared::session_client::{Deadlines, Request};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::failpoint::Point;
use crate::guest::driver::outlives;
use crate::guest::fault::fault_text;
use crate::guest::session::{self, ClientError, END_GRACE, Local, Outcome as Ended, Session};
use crate::os::clock::to_ms;
use crate::os::deadline::{NO_LIMIT, Watch};
use crate::os::random;
use crate::supervisor::worker::Worker;
use crate::vmdir::health::{Health, HealthCheck, Outcome};
use crate::vmdir::state::Stage;
use crate::vmdir::{RunningVm, VmDir};

/// How long to wait between looks at a VM that was not proven ready yet.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Starts a thread that runs the VM's health check, if it has one.
pub(crate) fn start(dir: &VmDir) -> Option<Worker> {
    let check = match HealthCheck::read(dir) {
        Ok(check) => check?,
        Err(error) => {
            log::warn!("cannot run the health check: {}", Failure::from(error));
            return None;
        }
    };
    let dir = dir.clone();
    let work = move || HealthMonitor::open(dir, check)?.run();
    Some(Worker::start(
        "the health check",
        Point::SupervisorHealth,
        work,
    ))
}

#[derive(Debug)]
struct HealthMonitor {
    vm: RunningVm,
    check: HealthCheck,
    health: Health,
    /// For the command's output.
    null: File,
}

impl HealthMonitor {
    fn open(dir: VmDir, check: HealthCheck) -> Result<Self, Failure> {
        let null = OpenOptions::new().write(true).open("/dev/null");
        Ok(Self {
            vm: dir.running()?,
            check,
            health: Health::new(),
            null: null.or_fail(Exit::Internal, || "cannot open /dev/null".to_owned())?,
        })
    }

    /// Runs the check at intervals until the VMM has ended.
    fn run(mut self) -> Result<(), Failure> {
        self.health.write(&self.vm.dir)?;
        while self.await_ready()? {
            let Some(outcome) = self.run_once()? else {
                break;
            };
            self.health.handle(outcome, self.check.retries);
            self.health.write(&self.vm.dir)?;
            if !self.pause(self.check.interval)? {
                break;
            }
        }
        self.health.handle_end();
        Ok(self.health.write(&self.vm.dir)?)
    }

    /// Waits until the guest was proven ready. `false` once the VMM has ended.
    fn await_ready(&self) -> Result<bool, Failure> {
        loop {
            match self.vm.dir.read_state()?.stage {
                Stage::Starting | Stage::Unproven => {}
                Stage::Ready | Stage::Snapshotting => return Ok(true),
            }
            if !self.pause(LOOK_PAUSE)? {
                return Ok(false);
            }
        }
    }

    /// One run that no snapshot disturbed; `None` once the VMM has ended.
    fn run_once(&self) -> Result<Option<Outcome>, Failure> {
        loop {
            self.vm.dir.await_unlocked(&self.watch())?;
            if !self.pause(Duration::ZERO)? {
                return Ok(None);
            }
            let before = self.vm.dir.read_state()?.generation;
            let outcome = match self.ask()? {
                None => return Ok(None),
                Some(Outcome::Passed) => return Ok(Some(Outcome::Passed)),
                Some(outcome) => outcome,
            };
            // A snapshot in between gave the source a new generation, or still holds the lock.
            let is_same = self.vm.dir.read_state()?.generation == before;
            if is_same && !self.vm.dir.is_locked()? {
                log::info!("health: {outcome:?}");
                return Ok(Some(outcome));
            }
        }
    }

    /// Runs the command; `None` once the VMM has ended.
    fn ask(&self) -> Result<Option<Outcome>, Failure> {
        let id = random::exec_id();
        let id = id.or_fail(Exit::Internal, || "cannot draw an exec id".to_owned())?;
        let arguments = self.check.argv.iter();
        let argv = arguments.map(|argument| ByteString::new(argument.as_bytes()));
        let Some(argv) = argv.collect::<Option<Vec<ByteString>>>() else {
            let reason = "a NUL byte in the command".to_owned();
            return Ok(Some(Outcome::Failed(reason)));
        };
        let timeout_ms = to_ms(self.check.timeout);
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
                end: Some(now + self.check.timeout),
            },
            watch: self.watch(),
            is_awaited: true,
            end_grace: END_GRACE,
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

    /// `false` once the VMM has ended.
    fn pause(&self, time: Duration) -> Result<bool, Failure> {
        let outlived = outlives(&self.watch(), Instant::now() + time);
        outlived.or_fail(Exit::Internal, || "cannot wait for the VMM".to_owned())
    }
}

fn outcome(result: Result<Ended, ClientError>) -> Option<Outcome> {
    Some(match result {
        Ok(Ended::Started(_)) => Outcome::Passed,
        Ok(Ended::Exited(exited)) if exited.timed_out => {
            Outcome::Failed("the time limit passed".to_owned())
        }
        Ok(Ended::Exited(exited)) => match (exited.fault, exited.status.shell_code()) {
            (Some(fault), _) => Outcome::Failed(fault_text(&fault)),
            (None, 0) => Outcome::Passed,
            (None, code) => Outcome::Failed(format!("exit code {code}")),
        },
        Err(error) => match error.exit() {
            Exit::VmmEnded => return None,
            Exit::NotFound | Exit::NotRunnable => Outcome::Failed(error.to_string()),
            _ => Outcome::NoAnswer(error.to_string()),
        },
    })
}
