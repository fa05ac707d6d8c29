//! `host-tool exec`: a command in the guest, with its output, and its exit code as our own.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use shared::message::{ByteString, Exec, Exited, OutputPolicy, Started, TtySize};
use shared::session_client::{Deadlines, Request};

use crate::cli::ExecCommand;
use crate::commands::environment::Environment;
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::{self, ClientError, Local, Outcome, Session};
use crate::os::clock::to_ms;
use crate::os::random;
use crate::os::signals::{PASSED_ON, Signals};
use crate::os::terminal::{SIZE_DEFAULT, Terminal, size_of_any};
use crate::report::output::print;

/// How long the guest may take to start the command unless the caller says.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the guest is waited for beyond the command's own time limit: what it takes from TERM to
/// KILL, and as much again for its answer.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

/// Runs the command, and gives the exit code of the one in the guest.
pub(crate) fn run(command: &ExecCommand, argv: Option<Vec<OsString>>) -> Result<u8, Failure> {
    if command.json && !command.detach {
        return Err(Failure::usage(
            "exec has no record but with -d: its output is the command's",
        ));
    }
    let mut terminal = terminal(command)?;
    let exec = request(command, argv.unwrap_or_default(), terminal.as_ref())?;
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let signals = take_signals(exec.tty.is_some(), terminal.is_some())?;
    let now = Instant::now();
    let deadlines = Deadlines {
        start: Some(now + command.timeout.unwrap_or(START_TIMEOUT)),
        absence_max: Some(command.reconnect),
        end: command
            .timeout
            .map(|timeout| now + timeout + TIMEOUT_MARGIN),
    };
    let session = Session {
        endpoint: &target.endpoint,
        request: Request::Exec {
            exec: Box::new(exec),
            may_be_known: command.id.is_some(),
        },
        deadlines,
        watch: target.watch(now),
        is_done_when_started: command.detach,
    };
    let stdin = io::stdin();
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let local = Local {
        stdin: command.interactive.then(|| stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: Some(&signals),
        terminal: terminal.as_mut(),
    };
    match session::run(session, local).map_err(|error| failure(error, &target))? {
        Outcome::Started(started) => print_started(command, &started).map(|()| 0),
        Outcome::Exited(exited) => report(&exited),
    }
}

/// Holds back the signals that are passed on, and those about the terminal where there is one.
pub(crate) fn take_signals(has_tty: bool, has_terminal: bool) -> Result<Signals, Failure> {
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
pub(crate) fn failure(error: ClientError, target: &Target) -> Failure {
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
pub(crate) fn report(exited: &Exited) -> Result<u8, Failure> {
    let usage = &exited.usage;
    let ms = |us: u64| us / 1000;
    log::info!(
        "user {} ms, system {} ms, at most {} KiB resident",
        ms(usage.user_us),
        ms(usage.system_us),
        usage.rss_max_kib
    );
    if let shared::message::ExitStatus::Signal { core: true, .. } = exited.status {
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

fn print_started(command: &ExecCommand, started: &Started) -> Result<(), Failure> {
    let id = started.id.map(|id| id.to_string());
    if !command.json {
        return print(&id.unwrap_or_else(|| started.session.to_string()));
    }
    let value = json!({
        "event": "started",
        "exit": 0,
        "id": id,
        "session": started.session,
        "pid": started.pid,
        "fresh": started.fresh,
        "tty": started.tty,
    });
    print(&value.to_string())
}

/// The terminal that the command takes over, if it is to.
fn terminal(command: &ExecCommand) -> Result<Option<Terminal>, Failure> {
    if !command.tty || !command.interactive || command.detach {
        return Ok(None);
    }
    let terminal = Terminal::of(io::stdin().as_fd());
    let terminal = terminal.or_fail(Exit::Internal, || "cannot use the terminal".to_owned())?;
    if terminal.is_none() {
        return Err(Failure::usage(
            "the input device is not a TTY: with -t and -i standard input must be a terminal; \
             leave one of them out",
        ));
    }
    Ok(terminal)
}

fn tty_size(terminal: Option<&Terminal>) -> TtySize {
    let of_terminal = terminal.and_then(Terminal::size);
    let of_outputs = || size_of_any(&[io::stdout().as_fd(), io::stderr().as_fd()]);
    of_terminal.or_else(of_outputs).unwrap_or(SIZE_DEFAULT)
}

fn request(
    command: &ExecCommand,
    argv: Vec<OsString>,
    terminal: Option<&Terminal>,
) -> Result<Exec, Failure> {
    if argv.is_empty() {
        return Err(Failure::usage(
            "give the command to run behind '--': exec --name N -- ls -l",
        ));
    }
    let argv = argv.into_iter().map(|word| string(word.into_vec()));
    let drawn = random::exec_id().or_fail(Exit::Internal, || "cannot name the request".to_owned());
    let mut environment = Environment::collect(&command.env_file, &command.env)?;
    if command.tty {
        environment.pass_on("TERM");
    }
    let policy_default = if command.detach {
        OutputPolicy::DropOldest
    } else {
        OutputPolicy::Block
    };
    let exec = Exec {
        env: environment.into_pairs(),
        cwd: text_option("-w takes a directory", command.workdir.as_deref())?,
        user: text_option("-u takes a user", command.user.as_deref())?,
        tty: command.tty.then(|| tty_size(terminal)),
        stdin: command.interactive,
        detached: command.detach,
        output: command.output.unwrap_or(policy_default),
        timeout_ms: command.timeout.map(to_ms),
        keep_ms: Some(to_ms(command.keep)),
        ..Exec::new(
            command.id.map_or(drawn, Ok)?,
            argv.collect::<Result<_, _>>()?,
        )
    };
    match exec.limit_exceeded() {
        Some(limit) => Err(Failure::new(Exit::Usage, limit)),
        None => Ok(exec),
    }
}

fn text_option(what: &str, text: Option<&str>) -> Result<Option<ByteString>, Failure> {
    match text {
        None => Ok(None),
        Some("") => Err(Failure::usage(format!("{what}, not an empty text"))),
        Some(text) => string(text.as_bytes().to_vec()).map(Some),
    }
}

fn string(bytes: Vec<u8>) -> Result<ByteString, Failure> {
    ByteString::new(bytes).ok_or_else(|| Failure::usage("a NUL byte cannot be passed on"))
}
