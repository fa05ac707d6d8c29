//! Runs one command many times in parallel, with the client that `exec` uses. `stress` and `bench`
//! measure with it.

mod failed;
pub(crate) mod latency;
mod report;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shared::message::{ByteString, Exec, Exited};
use shared::session_client::{ABSENCE_MAX, Deadlines, Request};

pub(crate) use self::failed::Failed;
use self::report::Tally;
pub(crate) use self::report::{Report, common_exit};
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::{self, ClientError, Local, Outcome, Session};
use crate::os::{descriptors, random};

/// How long the agent keeps a command whose connection was cut, ms. The client needs less to
/// reconnect.
const KEEP_MS: u64 = 10_000;

/// Most descriptors that a run has open: its connection, those it polls, a source of random bytes.
const DESCRIPTORS_PER_RUN: u64 = 4;

/// The command without `--`: no program does less, and every image has this one.
const COMMAND_DEFAULT: &str = "true";

/// The arguments after `--`, or [`COMMAND_DEFAULT`].
///
/// # Errors
///
/// If there is no argument, or one contains a NUL byte.
pub(crate) fn parse_argv(argv: Option<Vec<OsString>>) -> Result<Vec<ByteString>, Failure> {
    let argv = argv.unwrap_or_else(|| vec![COMMAND_DEFAULT.into()]);
    let argv = argv.into_iter().map(|argument| {
        let argument = ByteString::new(argument.into_vec());
        argument.ok_or_else(|| Failure::usage("a NUL byte cannot be passed on"))
    });
    let argv = argv.collect::<Result<Vec<_>, _>>()?;
    if argv.is_empty() {
        return Err(Failure::usage("give a command after '--'"));
    }
    Ok(argv)
}

/// Raises the limit on open files to what `parallel` runs need.
///
/// # Errors
///
/// Names `what` if this machine does not allow so many.
pub(crate) fn make_room(parallel: u32, what: &str) -> Result<(), Failure> {
    descriptors::make_room(u64::from(parallel) * DESCRIPTORS_PER_RUN, what)
}

/// Opens `/dev/null` for a run's output.
pub(crate) fn open_sink() -> Result<File, Failure> {
    let opened = OpenOptions::new().write(true).open("/dev/null");
    opened.or_fail(Exit::Internal, || "cannot open /dev/null".to_owned())
}

/// Checks that the user's number for `option` is from 1 to `count_max`.
pub(crate) fn check_count(option: &str, count: u32, count_max: u32) -> Result<(), Failure> {
    if (1..=count_max).contains(&count) {
        return Ok(());
    }
    let text = format!("{option} takes a number from 1 to {count_max}, not {count}");
    Err(Failure::usage(text))
}

/// A command and how often to run it.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) target: &'a Target,
    pub(crate) argv: Vec<ByteString>,
    /// How many run at once.
    pub(crate) parallel: u32,
    /// How many runs in all.
    pub(crate) total: u32,
    /// When all runs must have ended.
    pub(crate) deadline: Instant,
    pub(crate) sink: File,
}

impl Load<'_> {
    pub(crate) fn run(&self) -> Report {
        let next = AtomicU32::new(0);
        let started_at = Instant::now();
        let tallies = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.parallel)
                .map(|_| thread::Builder::new().spawn_scoped(scope, || self.work(&next)))
                .collect();
            let workers = workers.into_iter().map(|worker| match worker {
                Ok(worker) => worker.join().unwrap_or_default(),
                Err(error) => Tally::failed(&format!("cannot start a thread: {error}")),
            });
            workers.collect::<Vec<_>>()
        });
        Report {
            parallel: self.parallel,
            total: self.total,
            took: started_at.elapsed(),
            tally: tallies.into_iter().fold(Tally::default(), Tally::merge),
        }
    }

    /// Runs one after the other until all workers together, by `next`, have started `total` runs.
    fn work(&self, next: &AtomicU32) -> Tally {
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

/// The host's ends of a run's streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams<'a> {
    /// Where its standard input comes from; `None` sends none.
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    /// Where its standard output goes.
    pub(crate) stdout: BorrowedFd<'a>,
    /// Where its standard error goes.
    pub(crate) stderr: BorrowedFd<'a>,
}

/// Runs `exec` to its end. `deadline` is also the command's time limit in the guest.
///
/// # Errors
///
/// Unless the command exits with 0.
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
        is_awaited: false,
        end_grace: Duration::ZERO,
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
            text: "the client left the session before its end".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
