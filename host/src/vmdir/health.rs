//! Whether a VM does what it is for: a command that runs in the guest at intervals, and what its
//! outcomes mean.
//!
//! ```text
//!             passed                    R failures in a row
//! starting ──────────▶ healthy ──────────────────────────▶ unhealthy, or unreachable
//!     └────────────────────│─────────────────────────────▶     │    if the last had no answer
//!                          ◀────────────────────────────────────┘
//!                                     passed
//! ```
//!
//! Once the VMM has ended the VM is `stopped`. `supervisor/health.rs` runs the command.

use std::ffi::OsString;
use std::time::Duration;

use serde_json::{Value, json};
use shared::json::{JsonError, Object};

use super::names::{HEALTH, HEALTH_CHECK};
use crate::error::Failure;
use crate::os::clock::{to_ms, unix_ms};
use crate::os::json::{os_to_value, value_to_os};
use crate::values::keyword::keywords;
use crate::vmdir::{VmDir, VmDirError};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const RETRIES_DEFAULT: u32 = 3;

/// Of a command, in its file.
const ARGS_MAX: usize = 4096;

/// What to run, and how failures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    /// The command in the guest.
    pub(crate) argv: Vec<OsString>,
    /// From the end of one run to the start of the next.
    pub(crate) interval: Duration,
    /// For one run.
    pub(crate) timeout: Duration,
    /// How many failures in a row change the status.
    pub(crate) retries: u32,
}

/// The `--health-…` options as given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HealthOptions<'a> {
    pub(crate) command: Option<&'a str>,
    pub(crate) interval: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: Option<u32>,
}

impl HealthOptions<'_> {
    /// The health check that they describe, if any.
    pub(crate) fn check(self) -> Result<Option<HealthCheck>, Failure> {
        let Some(command) = self.command else {
            let is_given =
                self.interval.is_some() || self.timeout.is_some() || self.retries.is_some();
            return if is_given {
                let text = "--health-interval, --health-timeout and --health-retries need \
                            --health-cmd";
                Err(Failure::usage(text))
            } else {
                Ok(None)
            };
        };
        let argv: Vec<OsString> = command.split_whitespace().map(Into::into).collect();
        let retries = self.retries.unwrap_or(RETRIES_DEFAULT);
        if argv.is_empty() || retries == 0 {
            let text = "--health-cmd needs a command, and --health-retries 1 or more";
            return Err(Failure::usage(text));
        }
        Ok(Some(HealthCheck {
            argv,
            interval: self.interval.unwrap_or(INTERVAL_DEFAULT),
            timeout: self.timeout.unwrap_or(TIMEOUT_DEFAULT),
            retries,
        }))
    }
}

impl HealthCheck {
    /// Only for the command that creates the VM.
    pub(crate) fn write(&self, dir: &VmDir) -> Result<(), VmDirError> {
        dir.replace(HEALTH_CHECK, &self.to_value())
    }

    /// `None` if the VM has no health check.
    pub(crate) fn read(dir: &VmDir) -> Result<Option<Self>, VmDirError> {
        dir.read(HEALTH_CHECK, Self::from_object)
    }

    /// As in the file and in `inspect`.
    pub(crate) fn to_value(&self) -> Value {
        let argv: Vec<Value> = self.argv.iter().map(os_to_value).collect();
        json!({
            "argv": argv,
            "interval_ms": to_ms(self.interval),
            "timeout_ms": to_ms(self.timeout),
            "retries": self.retries,
        })
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        let time = |field: &'static str| object.number(field).map(Duration::from_millis);
        Ok(Self {
            argv: object.list("argv", ARGS_MAX, "a list of arguments", value_to_os)?,
            interval: time("interval_ms")?,
            timeout: time("timeout_ms")?,
            retries: object.number("retries")?,
        })
    }
}

keywords! {
    HealthStatus {
        /// No run has passed, and not enough have failed.
        Starting = "starting",
        Healthy = "healthy",
        Unhealthy = "unhealthy",
        /// The guest does not answer.
        Unreachable = "unreachable",
        /// The VMM has ended.
        Stopped = "stopped",
    }
}

/// The outcome of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ended with exit code 0.
    Passed,
    /// It ended in another way, timed out or could not be run; why.
    Failed(String),
    /// The guest did not answer; why.
    NoAnswer(String),
}

/// The result of the runs so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) status: HealthStatus,
    /// When the status last changed, ms since 1970 UTC.
    pub(crate) since_ms: u64,
    /// Runs so far.
    pub(crate) runs: u64,
    /// Failures since the last run that passed.
    pub(crate) failures: u32,
    /// Why the last run failed, if it did.
    pub(crate) reason: Option<String>,
}

impl Health {
    /// Before the first run.
    pub(crate) fn new() -> Self {
        Self {
            status: HealthStatus::Starting,
            since_ms: unix_ms(),
            runs: 0,
            failures: 0,
            reason: None,
        }
    }

    /// Counts a run.
    pub(crate) fn handle(&mut self, outcome: Outcome, retries: u32) {
        self.runs += 1;
        let (status, reason) = match outcome {
            Outcome::Passed => {
                self.failures = 0;
                self.reason = None;
                return self.set_status(HealthStatus::Healthy);
            }
            Outcome::Failed(reason) => (HealthStatus::Unhealthy, reason),
            Outcome::NoAnswer(reason) => (HealthStatus::Unreachable, reason),
        };
        self.failures = self.failures.saturating_add(1);
        self.reason = Some(reason);
        if self.failures >= retries {
            self.set_status(status);
        }
    }

    /// The VMM has ended.
    pub(crate) fn handle_end(&mut self) {
        self.set_status(HealthStatus::Stopped);
    }

    fn set_status(&mut self, status: HealthStatus) {
        if self.status != status {
            log::info!("health: {} -> {}", self.status.as_str(), status.as_str());
            self.status = status;
            self.since_ms = unix_ms();
        }
    }

    /// Only for the supervisor.
    pub(crate) fn write(&self, dir: &VmDir) -> Result<(), VmDirError> {
        dir.replace(HEALTH, &self.to_value())
    }

    /// `None` if the VM has no health check.
    pub(crate) fn read(dir: &VmDir) -> Result<Option<Self>, VmDirError> {
        dir.read(HEALTH, Self::from_object)
    }

    /// As in the file and in `inspect`.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "status": self.status.as_str(),
            "since_ms": self.since_ms,
            "runs": self.runs,
            "failures": self.failures,
            "reason": self.reason,
        })
    }

    fn from_object(object: &Object) -> Result<Self, JsonError> {
        Ok(Self {
            status: object.parsed("status", "a state of health")?,
            since_ms: object.number("since_ms")?,
            runs: object.number("runs")?,
            failures: object.number("failures")?,
            reason: object.opt_text("reason")?,
        })
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn options(command: Option<&str>, retries: Option<u32>) -> HealthOptions<'_> {
        HealthOptions {
            command,
            interval: None,
            timeout: None,
            retries,
        }
    }

    #[test]
    fn options_describe_a_check_or_are_refused() {
        let check = options(Some(" curl  -f http://[::1]/ "), None).check();
        let check = check.unwrap().unwrap();
        assert_eq!(check.argv, ["curl", "-f", "http://[::1]/"]);
        assert_eq!(check.retries, 3);
        assert_eq!(options(None, None).check().unwrap(), None);
        for (command, retries) in [(None, Some(1)), (Some(" "), None), (Some("a"), Some(0))] {
            options(command, retries).check().unwrap_err();
        }
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_pass_makes_it_healthy() {
        let failed = || Outcome::Failed("exit code 1".to_owned());
        let silent = || Outcome::NoAnswer("silence".to_owned());
        let mut health = Health::new();
        let mut expect = |outcome, status: &str, failures| {
            health.handle(outcome, 2);
            assert_eq!(
                (health.status.as_str(), health.failures),
                (status, failures)
            );
        };
        expect(failed(), "starting", 1);
        expect(Outcome::Passed, "healthy", 0);
        expect(failed(), "healthy", 1);
        expect(failed(), "unhealthy", 2);
        expect(silent(), "unreachable", 3);
        expect(Outcome::Passed, "healthy", 0);
        expect(silent(), "healthy", 1);
        health.handle_end();
        assert_eq!(health.status, HealthStatus::Stopped);
    }

    #[test]
    fn files_survive_the_disk() {
        let temp = TempDir::new("health");
        let dir = VmDir::of_test(temp.path());
        assert_eq!(Health::read(&dir).unwrap(), None);
        assert_eq!(HealthCheck::read(&dir).unwrap(), None);
        let check = options(Some("a b"), Some(7)).check().unwrap().unwrap();
        check.write(&dir).unwrap();
        assert_eq!(HealthCheck::read(&dir).unwrap(), Some(check));
        let mut health = Health::new();
        health.handle(Outcome::Failed("\u{1b}".to_owned()), 1);
        health.write(&dir).unwrap();
        assert_eq!(Health::read(&dir).unwrap(), Some(health));
    }
}
