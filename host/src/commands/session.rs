//! What `exec`, `attach` and `wait` do alike: a session with this process's standard streams.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::message::{Attach, AttachMode, ExitStatus, Exited, SessionRef};
use shared::session_client::{Deadlines, Request};

use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::{self, ClientError, Local, Outcome, Session};
use crate::os::signals::{PASSED_ON, Signals};
use crate::os::terminal::Terminal;

/// How long a guest may take to start a command, or to attach, unless the user says.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A session to be had, and what of this process goes with it beside its outputs.
pub(super) struct Wanted<'a> {
    pub(super) request: Request,
    pub(super) deadlines: Deadlines,
    /// Whether all that is wanted is that the session runs.
    pub(super) is_done_when_started: bool,
    /// Whether standard input is sent.
    pub(super) stdin: bool,
    /// Signals that are passed on.
    pub(super) signals: Option<&'a Signals>,
    pub(super) terminal: Option<&'a mut Terminal>,
}

impl Wanted<'_> {
    /// To attach, with no input and no signals.
    pub(super) fn attach(
        session: SessionRef,
        mode: AttachMode,
        timeout: Option<Duration>,
        reconnect: Duration,
    ) -> Self {
        let now = Instant::now();
        let end = timeout.map(|timeout| now + timeout);
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
                start: end.or(Some(now + START_TIMEOUT)),
                absence_max: Some(reconnect),
                end,
            },
            is_done_when_started: false,
            stdin: false,
            signals: None,
            terminal: None,
        }
    }
}

/// Has the session, until it has ended or nothing more can be had of it.
pub(super) fn run(target: &Target, wanted: Wanted<'_>) -> Result<Outcome, Failure> {
    let session = Session {
        endpoint: &target.endpoint,
        request: wanted.request,
        deadlines: wanted.deadlines,
        watch: target.watch(Instant::now()),
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
    session::run(session, local).map_err(|error| failure(error, target))
}

/// Holds back the signals that are passed on, and those about the terminal where there is one.
pub(super) fn take_signals(has_tty: bool, has_terminal: bool) -> Result<Signals, Failure> {
    let mut wanted = PASSED_ON.to_vec();
    if has_tty {
        wanted.push(Signal::SIGWINCH);
    }
    if has_terminal {
        wanted.extend([Signal::SIGTSTP, Signal::SIGCONT]);
    }
    let taken = Signals::take(&wanted);
    taken.or_fail(Exit::Internal, || "cannot take signals".to_owned())
}

/// What the client's error means, with who was asked where that is not the point.
fn failure(error: ClientError, target: &Target) -> Failure {
    let exit = error.exit();
    if error.is_unknown_session() {
        return Failure::new(
            exit,
            format!("{error}; host-tool ps -a lists what is known"),
        );
    }
    let failure = Failure::new(exit, error);
    match exit {
        // The guest names the program.
        Exit::NotFound | Exit::NotRunnable => failure,
        _ => failure.context(target.endpoint.to_string()),
    }
}

/// Says what there is to say of the end beside its exit code, which it gives.
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
        log::info!("a process that the command left behind still holds its output open");
    }
    if exited.timed_out {
        let text = "the guest ended the command at its time limit";
        return Err(Failure::new(Exit::Deadline, text));
    }
    Ok(exited.status.shell_code())
}
