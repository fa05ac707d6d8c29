//! `host-tool stress`: many runs of one command at once, through the client that `exec` uses.

pub(crate) mod latency;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::message::{ByteString, Exec, ExitStatus, Exited, FailCode};
use shared::session_client::{ABSENCE_MAX, Deadlines, Fate, Request, SessionError};

use self::latency::Summary;
use crate::cli::StressCommand;
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::{Exit, Table};
use crate::guest::session::{self, ClientError, Local, Outcome, Session};
use crate::os::clock::to_us;
use crate::os::{descriptors, random};
use crate::report::output::print;

/// How long all runs may take unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// How long a command runs on without its client after a cut, ms: longer than its client may take
/// to come back.
const KEEP_MS: u64 = 10_000;

/// Most runs at once: each is a thread here and a connection there.
const PARALLEL_MAX: u32 = 1024;

/// Most files that a run has open: its connection, what it waits on, a source of random bytes.
const DESCRIPTORS_PER_RUN: u64 = 4;

/// Most runs in all, each of which leaves a figure.
const TOTAL_MAX: u32 = 1_000_000;

/// What is run unless the caller says: no program does less, and every image has it.
const COMMAND_DEFAULT: &str = "true";

/// Runs the command as often as asked for.
pub(crate) fn run(command: &StressCommand, argv: Option<Vec<OsString>>) -> Result<(), Failure> {
    check_count("--parallel", command.parallel, PARALLEL_MAX)?;
    check_count("--total", command.total, TOTAL_MAX)?;
    let argv = words(argv)?;
    let parallel = command.parallel.min(command.total);
    make_room(parallel, &format!("--parallel {parallel}"))?;
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let load = Load {
        target: &target,
        argv,
        parallel,
        total: command.total,
        deadline: Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT),
        sink: open_sink()?,
    };
    let report = load.run();
    let printed = if command.json {
        print(&report.to_value().to_string())
    } else {
        print(&report.to_text())
    };
    match report.failure() {
        Some(failure) => Err(failure),
        None => printed,
    }
}

/// The command that is run: the one behind `--`, or one that does nothing.
///
/// # Errors
///
/// When it is empty or holds a NUL byte.
pub(crate) fn words(argv: Option<Vec<OsString>>) -> Result<Vec<ByteString>, Failure> {
    let argv = argv.unwrap_or_else(|| vec![COMMAND_DEFAULT.into()]);
    let argv = argv.into_iter().map(|word| {
        let word = ByteString::new(word.into_vec());
        word.ok_or_else(|| Failure::usage("a NUL byte cannot be passed on"))
    });
    let argv = argv.collect::<Result<Vec<_>, _>>()?;
    if argv.is_empty() {
        return Err(Failure::usage("there is no command behind '--'"));
    }
    Ok(argv)
}

/// Makes room for the descriptors of `parallel` runs at once.
///
/// # Errors
///
/// Names `what` when this machine does not allow as many.
pub(crate) fn make_room(parallel: u32, what: &str) -> Result<(), Failure> {
    descriptors::make_room(u64::from(parallel) * DESCRIPTORS_PER_RUN, what)
}

/// What takes all output and keeps none.
pub(crate) fn open_sink() -> Result<File, Failure> {
    let opened = OpenOptions::new().write(true).open("/dev/null");
    opened.or_fail(Exit::Internal, || "cannot open /dev/null".to_owned())
}

/// Checks a number that the user gave for `option`: 1 to `count_max`.
pub(crate) fn check_count(option: &str, count: u32, count_max: u32) -> Result<(), Failure> {
    if (1..=count_max).contains(&count) {
        return Ok(());
    }
    let text = format!("{option} takes a number from 1 to {count_max}, not {count}");
    Err(Failure::usage(text))
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) target: &'a Target,
    pub(crate) argv: Vec<ByteString>,
    /// How many run at once.
    pub(crate) parallel: u32,
    /// How many run in all.
    pub(crate) total: u32,
    /// When all of them must have ended.
    pub(crate) deadline: Instant,
    pub(crate) sink: File,
}

impl Load<'_> {
    /// Runs all, and counts.
    #[must_use]
    pub(crate) fn run(&self) -> Report {
        let next = AtomicU32::new(0);
        let started_at = Instant::now();
        let tallies = thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.parallel)
                .map(|_| thread::Builder::new().spawn_scoped(scope, || self.lane(&next)))
                .collect();
            let lanes = lanes.into_iter().map(|lane| match lane {
                Ok(lane) => lane.join().unwrap_or_default(),
                Err(error) => Tally::failed(&format!("cannot start a thread: {error}")),
            });
            lanes.collect::<Vec<_>>()
        });
        Report {
            parallel: self.parallel,
            total: self.total,
            took: started_at.elapsed(),
            tally: tallies.into_iter().fold(Tally::default(), Tally::merge),
        }
    }

    /// One after the other, as long as there are runs that no lane has taken.
    fn lane(&self, next: &AtomicU32) -> Tally {
        let mut tally = Tally::default();
        while next.fetch_add(1, Ordering::Relaxed) < self.total {
            let started_at = Instant::now();
            match self.exec() {
                Ok(()) => tally.latencies.push(started_at.elapsed()),
                Err(failed) => tally.fail(failed),
            }
        }
        tally
    }

    /// Has one run, whose output goes nowhere.
    fn exec(&self) -> Result<(), Failed> {
        let id = random::exec_id().map_err(ClientError::Local)?;
        let streams = Streams {
            stdin: None,
            stdout: self.sink.as_fd(),
            stderr: self.sink.as_fd(),
        };
        let exec = Exec::new(id, self.argv.clone());
        run_once(self.target, exec, streams, self.deadline).map(drop)
    }
}

/// The ends of a run's streams on this side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams<'a> {
    /// Where its standard input comes from; `None` sends none.
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    /// Where its standard output goes.
    pub(crate) stdout: BorrowedFd<'a>,
    /// Where its standard error goes.
    pub(crate) stderr: BorrowedFd<'a>,
}

/// Has `exec` run to its end before `deadline`, which is also its time limit in the guest.
///
/// # Errors
///
/// For every end but exit code 0.
pub(crate) fn run_once(
    target: &Target,
    exec: Exec,
    streams: Streams<'_>,
    deadline: Instant,
) -> Result<Exited, Failed> {
    let left = deadline.saturating_duration_since(Instant::now());
    let exec = Exec {
        stdin: streams.stdin.is_some(),
        timeout_ms: u64::try_from(left.as_millis()).ok(),
        keep_ms: Some(KEEP_MS),
        ..exec
    };
    let session = Session {
        endpoint: &target.endpoint,
        request: Request::Exec {
            exec: Box::new(exec),
            may_be_known: false,
        },
        deadlines: Deadlines {
            start: Some(deadline),
            absence_max: Some(ABSENCE_MAX),
            end: Some(deadline),
        },
        watch: target.watch(deadline),
        is_done_when_started: false,
    };
    let local = Local {
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        signals: None,
        terminal: None,
    };
    match session::run(session, local)? {
        Outcome::Exited(exited) => Failed::of_end(&exited).map_or(Ok(exited), Err),
        Outcome::Started(_) => Err(Failed {
            kind: "this machine".to_owned(),
            exit: Exit::Internal,
            text: "the session was left before its end".to_owned(),
        }),
    }
}

/// A run that was no success.
#[derive(Debug)]
pub(crate) struct Failed {
    /// How it is counted.
    pub(crate) kind: String,
    /// What it means for the exit code.
    pub(crate) exit: Exit,
    /// In full, for people.
    pub(crate) text: String,
}

impl Failed {
    /// `None` for exit code 0.
    fn of_end(exited: &Exited) -> Option<Self> {
        let (kind, exit) = match exited.status {
            _ if exited.timed_out => ("timeout".to_owned(), Exit::Deadline),
            ExitStatus::Code(0) => return None,
            ExitStatus::Code(code) => (format!("exit code {code}"), Exit::Guest),
            ExitStatus::Signal { number, .. } => (format!("signal {number}"), Exit::Guest),
        };
        let text = format!("the command ended with {kind}");
        Some(Self { kind, exit, text })
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let (kind, exit) = (kind_of(&error), error.exit());
        // With its causes, which a failure prints.
        let text = Failure::new(exit, error).to_string();
        Self { kind, exit, text }
    }
}

fn kind_of(error: &ClientError) -> String {
    let kind = match error {
        ClientError::Session { error, .. } => return session_kind(error),
        ClientError::VmmEnded(_) => "VMM ended",
        ClientError::Connection(_, Fate::NotRun) => "no connection",
        ClientError::Connection(_, Fate::Unknown | Fate::Started) => "unknown",
        ClientError::Interrupted(_) => "interrupted",
        ClientError::Output(_) | ClientError::Local(_) => "this machine",
    };
    kind.to_owned()
}

fn session_kind(error: &SessionError) -> String {
    let kind = match error {
        SessionError::Refused { fail, .. } => match fail.code {
            FailCode::NotFound => "not found",
            FailCode::NotRunnable => "not runnable",
            code => return format!("refused ({code})"),
        },
        SessionError::Deadline(Fate::NotRun) | SessionError::Unanswered => "no answer",
        SessionError::Deadline(_) | SessionError::Undelivered(_) => "timeout",
        SessionError::Version(_) | SessionError::Protocol { .. } => "protocol",
        SessionError::Superseded
        | SessionError::Forgotten
        | SessionError::ShutDown(_)
        | SessionError::Absent(_) => "unknown",
    };
    kind.to_owned()
}

/// What came of some runs.
#[derive(Debug, Default)]
struct Tally {
    /// Of the runs that succeeded.
    latencies: Vec<Duration>,
    /// The others, by kind.
    failures: BTreeMap<String, Kind>,
}

#[derive(Debug)]
struct Kind {
    count: u32,
    exit: Exit,
    /// The first of them in full.
    text: String,
}

impl Tally {
    fn failed(text: &str) -> Self {
        let mut tally = Self::default();
        tally.fail(Failed {
            kind: "this machine".to_owned(),
            exit: Exit::Internal,
            text: text.to_owned(),
        });
        tally
    }

    fn fail(&mut self, failed: Failed) {
        let Failed { kind, exit, text } = failed;
        let first = Kind {
            count: 0,
            exit,
            text,
        };
        self.failures.entry(kind).or_insert(first).count += 1;
    }

    fn merge(mut self, other: Self) -> Self {
        self.latencies.extend(other.latencies);
        for (name, kind) in other.failures {
            match self.failures.get_mut(&name) {
                Some(known) => known.count += kind.count,
                None => drop(self.failures.insert(name, kind)),
            }
        }
        self
    }
}

/// What failures mean together: what each of them means, or else that the guest failed.
pub(crate) fn common_exit(mut exits: impl Iterator<Item = Exit>) -> Exit {
    match exits.next() {
        None => Exit::Success,
        Some(first) if exits.all(|exit| exit == first) => first,
        Some(_) => Exit::Guest,
    }
}

/// What came of all runs.
#[derive(Debug)]
pub(crate) struct Report {
    parallel: u32,
    total: u32,
    took: Duration,
    tally: Tally,
}

impl Report {
    /// How many runs exited with 0.
    #[must_use]
    pub(crate) fn succeeded(&self) -> usize {
        self.tally.latencies.len()
    }

    /// Runs that succeeded in a second.
    #[must_use]
    pub(crate) fn per_second(&self) -> f64 {
        let succeeded = u32::try_from(self.succeeded()).unwrap_or(u32::MAX);
        let seconds = self.took.as_secs_f64().max(f64::MIN_POSITIVE);
        // One decimal is all that repeated runs agree in.
        (f64::from(succeeded) / seconds * 10.0).round() / 10.0
    }

    /// How long those took that succeeded; `None` if none did.
    #[must_use]
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of(self.tally.latencies.clone())
    }

    fn exit(&self) -> Exit {
        common_exit(self.tally.failures.values().map(|kind| kind.exit))
    }

    /// The failure that all failures are together; `None` if there were none.
    #[must_use]
    pub(crate) fn failure(&self) -> Option<Failure> {
        let (_, first) = self
            .tally
            .failures
            .iter()
            .max_by_key(|(_, kind)| kind.count)?;
        let failed = usize::try_from(self.total).unwrap_or(usize::MAX) - self.succeeded();
        let text = format!("{failed} of {} runs failed: {}", self.total, first.text);
        Some(Failure::new(self.exit(), text))
    }

    #[must_use]
    pub(crate) fn to_value(&self) -> Value {
        let failures = &self.tally.failures;
        let counts: BTreeMap<_, _> = failures
            .iter()
            .map(|(name, kind)| (name, kind.count))
            .collect();
        json!({
            "event": if failures.is_empty() { "done" } else { "failed" },
            "exit": Table::General.code(self.exit()),
            "parallel": self.parallel,
            "total": self.total,
            "succeeded": self.succeeded(),
            "us": to_us(self.took),
            "per_second": self.per_second(),
            "latency_us": self.summary().map(|summary| summary.to_value()),
            "failures": counts,
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!(
            "{} of {} succeeded  {} parallel  {:.1} ms  {:.1} per second",
            self.succeeded(),
            self.total,
            self.parallel,
            self.took.as_secs_f64() * 1000.0,
            self.per_second()
        );
        if let Some(summary) = self.summary() {
            text.push('\n');
            text.push_str(&summary.to_table());
        }
        for (name, kind) in &self.tally.failures {
            text.push_str(&format!("\n{:>11} {name}", kind.count));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use shared::message::{Fail, Hello, Message, ResourceUsage, Role};
    use shared::version::SUPPORTED;

    use super::*;
    use crate::guest::address::{Endpoint, GuestAddress};
    use crate::testing::TempDir;

    fn report(millis: &[u64], failures: &[(&str, Exit)]) -> Report {
        let mut tally = Tally {
            latencies: millis.iter().copied().map(Duration::from_millis).collect(),
            ..Tally::default()
        };
        for (kind, exit) in failures {
            let mut part = Tally::default();
            part.fail(Failed {
                kind: (*kind).to_owned(),
                exit: *exit,
                text: format!("it was {kind}"),
            });
            tally = tally.merge(part);
        }
        Report {
            parallel: 2,
            total: u32::try_from(millis.len() + failures.len()).unwrap(),
            took: Duration::from_millis(500),
            tally,
        }
    }

    #[test]
    fn all_that_succeeded_is_a_success() {
        let report = report(&[1, 3], &[]);
        assert!(report.failure().is_none());
        let value = report.to_value();
        assert_eq!(
            (&value["event"], &value["exit"]),
            (&json!("done"), &json!(0))
        );
        assert_eq!(value["per_second"], json!(4.0));
        assert_eq!(value["latency_us"]["p50"], 1000);
        assert_eq!(value["failures"], json!({}));
        let text = report.to_text();
        assert!(
            text.starts_with("2 of 2 succeeded  2 parallel  500.0 ms  4.0 per second\n"),
            "{text}"
        );
    }

    #[test]
    fn failures_are_counted_by_kind() {
        let guest = ("exit code 3", Exit::Guest);
        let report = report(&[1], &[guest, ("timeout", Exit::Deadline), guest]);
        let failure = report.failure().unwrap();
        assert_eq!(
            failure.to_string(),
            "3 of 4 runs failed: it was exit code 3"
        );
        assert_eq!(failure.exit(), Exit::Guest);
        assert_eq!(
            report.to_value()["failures"],
            json!({ "exit code 3": 2, "timeout": 1 })
        );
        assert!(
            report
                .to_text()
                .ends_with("\n          2 exit code 3\n          1 timeout")
        );
    }

    #[test]
    fn failures_of_one_meaning_keep_it() {
        let report = report(&[], &[("timeout", Exit::Deadline)]);
        assert_eq!(report.failure().unwrap().exit(), Exit::Deadline);
        assert_eq!(report.to_value()["latency_us"], Value::Null);
        assert_eq!(report.to_value()["exit"], 124);
    }

    #[test]
    fn counts_have_limits() {
        for (count, is_taken) in [(0, false), (1, true), (1024, true), (1025, false)] {
            assert_eq!(
                check_count("--parallel", count, PARALLEL_MAX).is_ok(),
                is_taken
            );
        }
    }

    #[test]
    fn an_end_is_judged() {
        let kind = |status, timed_out| {
            let exited = Exited {
                session: 1,
                status,
                stdout_end: 0,
                stderr_end: 0,
                writers_alive: false,
                timed_out,
                usage: ResourceUsage::default(),
            };
            Failed::of_end(&exited).map(|failed| failed.kind)
        };
        let signal = ExitStatus::Signal {
            number: 9,
            core: false,
        };
        assert_eq!(kind(ExitStatus::Code(0), false), None);
        assert_eq!(kind(ExitStatus::Code(7), false).unwrap(), "exit code 7");
        assert_eq!(kind(signal, false).unwrap(), "signal 9");
        assert_eq!(kind(signal, true).unwrap(), "timeout");
    }

    /// Every run asks, and what each is told is counted.
    #[test]
    fn each_run_is_a_request_of_its_own() {
        let temp = TempDir::new("stress");
        let path = temp.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let address = GuestAddress::Unix { path };
        let target = Target::new(Endpoint { address, port: 0 }, None);
        let load = Load {
            target: &target,
            argv: vec![ByteString::new("true").unwrap()],
            parallel: 3,
            total: 7,
            deadline: Instant::now() + Duration::from_secs(30),
            sink: open_sink().unwrap(),
        };
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..7 {
                    let (mut peer, _) = listener.accept().unwrap();
                    assert!(peer.read(&mut [0; 4096]).unwrap() > 0);
                    let hello = Message::Hello(Hello {
                        protocol: SUPPORTED,
                        role: Role::Guest,
                        version: "0".to_owned(),
                        boot_id: None,
                        generation: None,
                    });
                    let mut bytes = hello.encode();
                    Message::Fail(Fail::new(FailCode::Internal, "no")).encode_into(&mut bytes);
                    peer.write_all(&bytes).unwrap();
                }
            });
            load.run()
        });
        assert_eq!(
            report.to_value()["failures"],
            json!({ "refused (internal)": 7 })
        );
        assert_eq!(report.exit(), Exit::Guest);
    }
}
