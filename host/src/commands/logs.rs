//! `host-tool logs`: prints the workload's output.
//!
//! For a VM of this host it prints the log that the supervisor writes, or writes the log itself if
//! the supervisor was killed. It first waits until the log has all output that the guest had at the
//! start of the command. For other guests it prints what the guest still has.

mod observed;

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::time::TimeSpec;
use shared::exchange::ExchangeError;
use shared::message::{FailCode, Stream};
use shared::session_client::SessionError;

use crate::cli::{LogsCommand, TargetArguments};
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::answer::{AskError, AskErrorReason};
use crate::guest::requests::Guest;
use crate::os::deadline::{NO_LIMIT, Watch};
use crate::report::output::write_stream;
use crate::supervisor::follow::End;
use crate::supervisor::output_writer::log_output;
use crate::supervisor::workload::{Lengths, lengths};
use crate::vmdir::output_log::read_record;
use crate::vmdir::output_log::reader::View;
use crate::vmdir::{RunningVm, StateDir, VmDir, VmDirError};

/// Time limit for asking the guest how much output it has, and for that output to reach the log.
/// `--timeout` replaces it.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);

const BLOCK_LEN: usize = 64 * 1024;

const NO_WORKLOAD: &str = "the guest has no workload; set one in /etc/guest-agent/agent.json of \
                           its image, or with agent.workload= on the kernel command line";

pub(crate) fn run(command: &LogsCommand) -> Result<(), Failure> {
    if command.json {
        return Err(Failure::usage(
            "logs has no --json: it prints the workload's output",
        ));
    }
    let arguments = TargetArguments::from(command);
    match (arguments.name, arguments.uds, arguments.cid, arguments.unix) {
        (Some(name), None, None, None) => {
            let dir = StateDir::existing(command.state_dir.as_deref())?.vm(name)?;
            print_log(command, dir)
        }
        _ => observed::run(command),
    }
}

/// Prints the log of a VM of this host.
fn print_log(command: &LogsCommand, dir: VmDir) -> Result<(), Failure> {
    let now = Instant::now();
    let deadline = now + command.timeout.unwrap_or(NO_LIMIT);
    let vm = match dir.clone().running() {
        Ok(vm) => Some(vm),
        Err(VmDirError::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut printer = Printer::new(dir, command.timeout.map(|_| deadline))?;
    let mut caught_up = Ok(());
    if let Some(vm) = vm
        && printer.dir.read_workload_end()?.is_none()
    {
        printer.stand_in = Some(StandIn::start(&printer.dir)?);
        // Following from the first line prints the latest output anyway.
        if !command.follow || command.tail.is_some() {
            let deadline = now + command.timeout.unwrap_or(CATCH_UP_TIMEOUT);
            caught_up = printer.catch_up(&vm, command.port, deadline);
        }
    }
    if read_record(&printer.dir)?.is_none() {
        caught_up?;
        if !(command.follow && printer.stand_in.is_some()) {
            return Err(Failure::new(Exit::Guest, NO_OUTPUT));
        }
        caught_up = Ok(());
    }
    printer.begin(command.tail)?;
    if command.follow {
        printer.follow()
    } else {
        printer.print()?;
        caught_up
    }
}

const NO_OUTPUT: &str = "there is no workload output: the guest has no workload, or ended before \
                         its output was read";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// The log may have grown.
    Changed,
    /// The log is complete.
    Ended,
    Deadline,
}

/// Prints a log while it grows.
#[derive(Debug)]
struct Printer {
    dir: VmDir,
    /// Reports every commit to the log.
    inotify: Inotify,
    /// Writes the log while the workload runs.
    stand_in: Option<StandIn>,
    /// From `--timeout`, for the whole command.
    deadline: Option<Instant>,
    /// Offset in the log of the next byte to print.
    place: u64,
}

impl Printer {
    fn new(dir: VmDir, deadline: Option<Instant>) -> Result<Self, Failure> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.and_then(|inotify| {
            inotify.add_watch(dir.path(), AddWatchFlags::IN_MOVED_TO)?;
            Ok(inotify)
        });
        Ok(Self {
            inotify: inotify.or_fail(Exit::Internal, || {
                format!("cannot watch {}", dir.path().display())
            })?,
            dir,
            stand_in: None,
            deadline,
            place: 0,
        })
    }

    /// Waits until the log has all output that the guest has now.
    fn catch_up(&self, vm: &RunningVm, port: u32, deadline: Instant) -> Result<(), Failure> {
        let guest = Guest {
            is_awaited: false,
            ..vm.guest(port, deadline)
        };
        let wanted = match lengths(&guest) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return Err(Failure::new(Exit::Guest, NO_WORKLOAD)),
            // Its last output may still be on the way to the log.
            Err(error) if matches!(error.reason, AskErrorReason::VmmEnded) => Lengths {
                stdout: u64::MAX,
                stderr: u64::MAX,
            },
            Err(error) => return Err(refusal(error)),
        };
        loop {
            let record = read_record(&self.dir)?;
            if record.is_some_and(|record| wanted.are_in(&record)) {
                return Ok(());
            }
            match self.wait(Some(deadline))? {
                Waited::Changed => {}
                Waited::Ended => return Ok(()),
                Waited::Deadline => {
                    let text = "the guest's latest output did not reach the log in time; only \
                                earlier output was printed";
                    return Err(Failure::new(Exit::Deadline, text));
                }
            }
        }
    }

    /// Moves to the first byte to print.
    fn begin(&mut self, tail: Option<u64>) -> Result<(), Failure> {
        let view = View::open(&self.dir)?;
        let place = match tail {
            Some(count) => view.tail(count).or_fail(Exit::Internal, cannot_read)?,
            None => view.start(),
        };
        self.place = place;
        Ok(())
    }

    fn print(&mut self) -> Result<(), Failure> {
        let view = View::open(&self.dir)?;
        let mut buffer = vec![0; BLOCK_LEN];
        loop {
            let read = view.read(self.place, &mut buffer);
            let (place, len) = read.or_fail(Exit::Internal, cannot_read)?;
            if place > self.place {
                let count = place - self.place;
                log::warn!("{count} bytes were dropped from the log before they could be printed");
            }
            self.place = place;
            if len == 0 {
                return Ok(());
            }
            write_out(&buffer[..len], self.deadline)?;
            self.place += u64::try_from(len).unwrap_or(u64::MAX);
        }
    }

    /// Prints until the output ends.
    fn follow(mut self) -> Result<(), Failure> {
        let mut waited = self.wait(Some(Instant::now()))?;
        loop {
            self.print()?;
            match waited {
                Waited::Ended => break,
                Waited::Deadline if self.deadline.is_some_and(|at| Instant::now() >= at) => {
                    let text = "the workload did not end in time";
                    return Err(Failure::new(Exit::Deadline, text));
                }
                Waited::Changed | Waited::Deadline => waited = self.wait(self.deadline)?,
            }
        }
        self.stand_in.map_or(Ok(()), StandIn::join)
    }

    /// Waits until the log may have grown. Fails when the reader of standard output is gone.
    fn wait(&self, until: Option<Instant>) -> Result<Waited, Failure> {
        let Some(stand_in) = &self.stand_in else {
            return Ok(Waited::Ended);
        };
        let stdout = io::stdout();
        let mut fds = [
            PollFd::new(stand_in.ended.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            // No events: poll reports errors anyway.
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match ppoll(&mut fds, left.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new(Exit::Internal, errno)),
        }
        let [has_ended, has_changed, is_unread] = fds.map(|fd| fd.any().unwrap_or(true));
        if is_unread {
            return Err(Failure::new(
                Exit::OutputClosed,
                "standard output was closed",
            ));
        }
        if has_changed {
            self.drain()?;
        }
        Ok(match (has_ended, until) {
            (true, _) => Waited::Ended,
            (false, Some(until)) if !has_changed && Instant::now() >= until => Waited::Deadline,
            (false, _) => Waited::Changed,
        })
    }

    /// Discards the events: only the wake-up matters.
    fn drain(&self) -> Result<(), Failure> {
        loop {
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => {
                    let path = self.dir.path().display();
                    let text = format!("cannot watch {path}: {errno}");
                    return Err(Failure::new(Exit::Internal, text));
                }
            }
        }
    }
}

/// A thread that writes the log when no other process does, until the output ends. If this program
/// ends first, the next writer continues.
#[derive(Debug)]
struct StandIn {
    thread: JoinHandle<Result<Option<End>, Failure>>,
    /// Reads end of file when the thread ends.
    ended: PipeReader,
}

impl StandIn {
    fn start(dir: &VmDir) -> Result<Self, Failure> {
        let (ended, alive) =
            io::pipe().or_fail(Exit::Internal, || "cannot make a pipe".to_owned())?;
        let dir = dir.clone();
        let thread = thread::Builder::new().spawn(move || {
            let result = log_output(&dir);
            drop(alive);
            result
        });
        let thread = thread.or_fail(Exit::Internal, || "cannot start a thread".to_owned())?;
        Ok(Self { thread, ended })
    }

    /// Waits for the thread, and fails if the output did not end normally.
    fn join(self) -> Result<(), Failure> {
        match self.thread.join() {
            Ok(Ok(Some(end))) => check_end(end),
            Ok(Ok(None)) => Ok(()),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::new(
                Exit::Internal,
                "a thread of this program failed",
            )),
        }
    }
}

/// Fails if the output did not end normally.
fn check_end(end: End) -> Result<(), Failure> {
    match end {
        End::Exited | End::Reached | End::VmmEnded => Ok(()),
        End::NoWorkload(fail) if fail.code == FailCode::Unsupported => {
            Err(Failure::new(Exit::Guest, NO_SESSIONS))
        }
        End::NoWorkload(_) => Err(Failure::new(Exit::Guest, NO_WORKLOAD)),
        End::Failed(error) => {
            let exit = match error {
                SessionError::Deadline(_) | SessionError::Unanswered => Exit::Deadline,
                SessionError::Refused { .. }
                | SessionError::Superseded
                | SessionError::Forgotten
                | SessionError::ShutDown(_)
                | SessionError::Absent(_)
                | SessionError::Undelivered(_)
                | SessionError::Version(_)
                | SessionError::Protocol { .. } => Exit::Guest,
            };
            Err(Failure::new(exit, error))
        }
        End::Unreachable(error) => Err(Failure::new(Exit::Internal, error)),
    }
}

const NO_SESSIONS: &str = "the guest's agent is too old to have a workload; boot or restore an \
                           image with a newer agent";

/// The failure when the guest did not tell how much output it has.
fn refusal(error: AskError) -> Failure {
    match &error.reason {
        AskErrorReason::Exchange(ExchangeError::Refused { fail, .. })
            if fail.code == FailCode::Unsupported =>
        {
            Failure::new(Exit::Guest, NO_SESSIONS)
        }
        _ => error.into(),
    }
}

fn write_out(bytes: &[u8], deadline: Option<Instant>) -> Result<(), Failure> {
    let watch = deadline.map(Watch::until);
    let written = write_stream(Stream::Stdout, bytes, watch.as_ref());
    let exit = match &written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::OutputClosed,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Exit::Deadline,
        _ => Exit::Internal,
    };
    written.or_fail(exit, || "cannot write to standard output".to_owned())
}

fn cannot_read() -> String {
    "cannot read the workload's output".to_owned()
}
