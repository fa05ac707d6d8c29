//! `host-tool exec`: runs a command in the guest, prints its output and exits with its exit code.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

use serde_json::json;
use shared::message::{ByteString, Exec, Origin, OutputPolicy, Started, TtySize};
use shared::session_client::{Deadlines, Request};

use crate::cli::ExecCommand;
use crate::commands::environment::Environment;
use crate::commands::session::{self, START_TIMEOUT, Wanted, report, take_signals};
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::{END_GRACE, Outcome};
use crate::os::clock::to_ms;
use crate::os::random;
use crate::os::terminal::{SIZE_DEFAULT, Terminal, size_of_any};
use crate::report::output::print;

/// Runs the command. Returns its exit code, or 0 when it was detached.
pub(crate) fn run(command: &ExecCommand, argv: Option<Vec<OsString>>) -> Result<u8, Failure> {
    if command.json && !command.detach {
        return Err(Failure::usage(
            "exec takes --json only with -d: otherwise its output is the command's",
        ));
    }
    let mut terminal = terminal(command)?;
    let exec = request(command, argv.unwrap_or_default(), terminal.as_ref())?;
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let signals = take_signals(exec.tty.is_some(), terminal.is_some())?;
    let deadlines = Deadlines {
        start: Some(target.end.unwrap_or_else(|| Instant::now() + START_TIMEOUT)),
        absence_max: Some(command.reconnect),
        end: target.end,
    };
    let wanted = Wanted {
        request: Request::Exec {
            exec: Box::new(exec),
            may_be_known: command.id.is_some(),
        },
        deadlines,
        end_grace: END_GRACE,
        is_done_when_started: command.detach,
        stdin: command.interactive,
        signals: Some(&signals),
        terminal: terminal.as_mut(),
    };
    match session::run(&target, wanted)? {
        Outcome::Started(started) => print_started(command, &started).map(|()| 0),
        Outcome::Exited(exited) => report(&exited),
    }
}

fn print_started(command: &ExecCommand, started: &Started) -> Result<(), Failure> {
    let id = started.id.map(|id| id.to_string());
    let name = id.clone().unwrap_or_else(|| started.session.to_string());
    let text = format!("the command was started; it runs as session {name}");
    if !command.json {
        return print(&name).map_err(|failure| failure.context(text));
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
    print(&value.to_string()).map_err(|failure| failure.context(text))
}

/// This process's terminal, if the command is to use it: with `-t` and `-i`, and not detached.
fn terminal(command: &ExecCommand) -> Result<Option<Terminal>, Failure> {
    if !command.tty || !command.interactive || command.detach {
        return Ok(None);
    }
    let terminal = Terminal::of(io::stdin().as_fd());
    let terminal = terminal.or_fail(Exit::Internal, || "cannot use the terminal".to_owned())?;
    if terminal.is_none() {
        return Err(Failure::usage(
            "the input device is not a TTY: with -t and -i standard input must be a terminal; \
             leave out one of the two",
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
            "give the command to run after '--': exec --name N -- ls -l",
        ));
    }
    if command.instance.is_some() && command.id.is_none() {
        return Err(Failure::usage(
            "--instance says where the command of --id went before; give both",
        ));
    }
    let argv = argv.into_iter().map(|argument| string(argument.into_vec()));
    let drawn = random::exec_id().or_fail(Exit::Internal, || "cannot draw a request id".to_owned());
    let mut environment = Environment::collect(&command.env_file, &command.env)?;
    if command.tty {
        environment.pass_on("TERM");
    }
    // A detached command may have no reader, so its output must not block it.
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
        pids_max: command.pids_max,
        memory_max: command.memory_max,
        origin: command.instance.map(|instance| {
            Box::new(Origin {
                instance,
                generation: None,
                sessions_begun: 0,
            })
        }),
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
