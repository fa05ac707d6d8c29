//! What `exec`, `attach` and `wait` share: a session over this process's standard streams.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::message::{Attach, AttachMode, ExitStatus, Exited, SessionRef};
use shared::session_client::{Deadlines, Request};

use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::fault::fault_text;
use crate::guest::session::{self, ClientError, Local, Outcome, Session};
use crate::os::signals::{PASSED_ON, Signals};
use crate::os::terminal::Terminal;

/// Time limit for starting a command or attaching, without `--timeout`.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The session to run, and the parts of this process that it uses beside its outputs.
pub(super) struct Wanted<'a> {
    pub(super) request: Request,
    pub(super) deadlines: Deadlines,
    /// How much longer than `deadlines.end` a guest that answers may take to end the command.
    pub(super) end_grace: Duration,
    /// Return once the session runs, without waiting for its end.
    pub(super) is_done_when_started: bool,
    /// Send standard input.
    pub(super) stdin: bool,
    /// Signals to forward to the session.
    pub(super) signals: Option<&'a Signals>,
    pub(super) terminal: Option<&'a mut Terminal>,
}

impl Wanted<'_> {
    /// Attaches without input and without signals.
    pub(super) fn attach(
        session: SessionRef,
        mode: AttachMode,
        end: Option<Instant>,
        reconnect: Duration,
    ) -> Self {
        Self {
            request: Request::Attach {
                attach: Attach {
                    session,
                    generation: None,
                    mode,
                    stdout_from: None,
                    stderr_from: None,
                },
                stdin: false,
            },
            deadlines: Deadlines {
                start: end.or_else(|| Some(Instant::now() + START_TIMEOUT)),
                absence_max: Some(reconnect),
                end,
            },
            end_grace: Duration::ZERO,
            is_done_when_started: false,
            stdin: false,
            signals: None,
            terminal: None,
        }
    }
}

/// Runs the session until it has ended, has started if that is enough, or is lost.
pub(super) fn run(target: &Target, wanted: Wanted<'_>) -> Result<Outcome, Failure> {
    let session = Session {
        endpoint: &target.endpoint,
        request: wanted.request,
        deadlines: wanted.deadlines,
        watch: target.watch(Instant::now()),
        is_awaited: false,
        end_grace: wanted.end_grace,
        is_done_when_started: wanted.is_done_when_started,
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let local = Local {
        stdin: wanted.stdin.then(|| stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: wanted.signals,
        terminal: wanted.terminal,
    };
    let is_limited = session.deadlines.end.is_some();
    session::run(session, local).map_err(|error| failure(error, target, is_limited))
}

/// Blocks the signals that are forwarded, and those about the terminal if there is one.
pub(super) fn take_signals(has_tty: bool, has_terminal: bool) -> Result<Signals, Failure> {
    let mut wanted = PASSED_ON.to_vec();
    if has_tty {
        wanted.push(Signal::SIGWINCH);
    }
    if has_terminal {
        wanted.extend([Signal::SIGTSTP, Signal::SIGCONT]);
    }
    let taken = Signals::take(&wanted);
    taken.or_fail(Exit::Internal, || "cannot block signals".to_owned())
}

/// Turns the client's error into a failure, with the guest's address where that helps. Only the
/// user's own time limit has the exit code of one.
fn failure(error: ClientError, target: &Target, is_limited: bool) -> Failure {
    let exit = match error.exit() {
        Exit::Deadline if !is_limited => Exit::Guest,
        exit => exit,
    };
    if error.is_unknown_session() {
        return Failure::new(
            exit,
            format!("{error}; 'host-tool ps -a' lists all sessions"),
        );
    }
    let failure = Failure::new(exit, error);
    match exit {
        // The error already names the program.
        Exit::NotFound | Exit::NotRunnable => failure,
        _ => failure.context(target.endpoint.to_string()),
    }
}

/// Logs how the command ended, and returns its exit code. A command of which the guest has cut or
/// lost a part has none.
pub(super) fn report(exited: &Exited) -> Result<u8, Failure> {
    let usage = &exited.usage;
    let ms = |us: u64| us / 1000;
    log::info!(
        "user {} ms, system {} ms, at most {} KiB resident",
        ms(usage.user_us),
        ms(usage.system_us),
        usage.rss_max_kib
    );
    if let ExitStatus::Signal { core: true, .. } = exited.status {
        log::info!("a core was dumped");
    }
    if exited.writers_alive {
        log::info!("a process that the command started still holds its output open");
    }
    let fault = exited.fault.as_ref().map(fault_text);
    if exited.timed_out {
        if let Some(fault) = fault {
            log::warn!("{fault}");
        }
        let text = "the guest ended the command at its time limit";
        return Err(Failure::new(Exit::Deadline, text));
    }
    if let Some(fault) = fault {
        return Err(Failure::new(Exit::Guest, fault));
    }
    Ok(exited.status.shell_code())
}
