//! `host-tool attach`: takes over or observes a session, which may have ended already.

use std::io;
use std::os::fd::AsFd;

use shared::message::{AttachMode, SessionRef};
use shared::session_client::Request;

use crate::cli::AttachCommand;
use crate::commands::session::{self, Wanted, report, take_signals};
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::session::Outcome;
use crate::os::terminal::Terminal;

/// Attaches. Returns the exit code of the session's command.
pub(crate) fn run(command: &AttachCommand) -> Result<u8, Failure> {
    if command.json {
        return Err(Failure::usage(
            "attach does not take --json: its output is the session's; use wait --json",
        ));
    }
    // The workload has no input, and its supervisor acknowledges its output.
    let is_observer = command.observe || command.session == SessionRef::Workload;
    let forwards_input = !is_observer && !command.no_stdin;
    let stdin = io::stdin();
    let mut terminal = match forwards_input {
        true => Terminal::of(stdin.as_fd())
            .or_fail(Exit::Internal, || "cannot use the terminal".to_owned())?,
        false => None,
    };
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    // An observer forwards no signals: they end it, not the session.
    let signals = match is_observer {
        true => None,
        false => Some(take_signals(true, terminal.is_some())?),
    };
    let mode = match is_observer {
        true => AttachMode::Observe,
        false => AttachMode::Own,
    };
    let mut wanted = Wanted::attach(command.session, mode, target.end, command.reconnect);
    if let Request::Attach { attach, stdin } = &mut wanted.request {
        attach.stdout_from = command.from;
        *stdin = forwards_input;
    }
    wanted.stdin = forwards_input;
    wanted.signals = signals.as_ref();
    wanted.terminal = terminal.as_mut();
    match session::run(&target, wanted)? {
        Outcome::Exited(exited) => report(&exited),
        Outcome::Started(_) => Ok(0),
    }
}
