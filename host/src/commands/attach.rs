//! `host-tool attach`: a session that runs, or has ended, as if it had been started here.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use shared::message::{Attach, AttachMode, SessionRef};
use shared::session_client::{Deadlines, Request};

use crate::cli::AttachCommand;
use crate::commands::exec::{START_TIMEOUT, failure, report, take_signals};
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::{self, Local, Outcome, Session};
use crate::os::terminal::Terminal;

/// Attaches, and gives the exit code of the session's command.
pub(crate) fn run(command: &AttachCommand) -> Result<u8, Failure> {
    if command.json {
        return Err(Failure::usage(
            "attach has no record: its output is the session's; wait has one",
        ));
    }
    // The workload's output is its supervisor's to acknowledge, and it has no input.
    let is_observer = command.observe || command.session == SessionRef::Workload;
    let forwards_input = !is_observer && !command.no_stdin;
    let stdin = io::stdin();
    let mut terminal = match forwards_input {
        true => Terminal::of(stdin.as_fd())
            .or_fail(Exit::Internal, || "cannot use the terminal".to_owned())?,
        false => None,
    };
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    // Signals to an observer are for it alone, and end it.
    let signals = match is_observer {
        true => None,
        false => Some(take_signals(true, terminal.is_some())?),
    };
    let now = Instant::now();
    let end = command.timeout.map(|timeout| now + timeout);
    let session = Session {
        endpoint: &target.endpoint,
        request: Request::Attach {
            attach: Attach {
                session: command.session,
                generation: None,
                mode: if is_observer {
                    AttachMode::Observe
                } else {
                    AttachMode::Own
                },
                stdout_from: command.from,
                stderr_from: None,
            },
            stdin: forwards_input,
        },
        deadlines: Deadlines {
            start: end.or(Some(now + START_TIMEOUT)),
            absence_max: Some(command.reconnect),
            end,
        },
        watch: target.watch(now),
        is_done_when_started: false,
    };
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let local = Local {
        stdin: forwards_input.then(|| stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: signals.as_ref(),
        terminal: terminal.as_mut(),
    };
    match session::run(session, local).map_err(|error| failure(error, &target))? {
        Outcome::Exited(exited) => report(&exited),
        Outcome::Started(_) => Ok(0),
    }
}
