//! `host-tool exec`: a command in the guest, with its output, and its exit code as our own.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use shared::message::{ByteString, Exec};

use crate::cli::ExecCommand;
use crate::deadline::Watch;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::exec as client;
use crate::output::write_stream;
use crate::random;
use crate::target::Target;

/// How long the guest may take to start the command unless the caller says.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Stands for "no limit": a wait needs an end, and no machine is up for this long.
const NO_LIMIT: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Runs the command, and gives the exit code of the one in the guest.
pub fn run(command: &ExecCommand, argv: Option<Vec<OsString>>) -> Result<u8, Failure> {
    if command.json {
        return Err(Failure::usage(
            "exec has no record: its output is the command's",
        ));
    }
    let exec = request(command, argv.unwrap_or_default())?;
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let now = Instant::now();
    let end = target.watch(now + command.timeout.unwrap_or(NO_LIMIT));
    let request = client::Request {
        endpoint: &target.endpoint,
        exec: &exec,
        may_attach: command.id.is_some(),
        start: target.watch(now + command.timeout.unwrap_or(START_TIMEOUT)),
        end,
    };
    // Only a caller who set a limit has one for whoever reads the output.
    let output_end = command.timeout.map(|_| Watch::until(end.deadline()));
    let mut output = |stream, bytes: &[u8]| write_stream(stream, bytes, output_end.as_ref());
    let result = client::run(&request, &mut output);
    let exited = result.map_err(|error| {
        let exit = error.exit();
        let failure = Failure::new(exit, error);
        match exit {
            // The guest names the program.
            Exit::NotFound | Exit::NotRunnable => failure,
            _ => failure.context(target.endpoint.to_string()),
        }
    })?;
    if exited.writers_alive {
        log::info!("a process that the command left behind still holds its output open");
    }
    if exited.timed_out {
        return Err(Failure::new(
            Exit::Deadline,
            "the guest ended the command at its time limit",
        ));
    }
    Ok(exited.status.shell_code())
}

fn request(command: &ExecCommand, argv: Vec<OsString>) -> Result<Exec, Failure> {
    if argv.is_empty() {
        return Err(Failure::usage(
            "give the command to run behind '--': exec --name N -- ls -l",
        ));
    }
    let string = |bytes: Vec<u8>| {
        ByteString::new(bytes).ok_or_else(|| Failure::usage("a NUL byte cannot be passed on"))
    };
    for pair in &command.env {
        if pair.find('=').is_none_or(|index| index == 0) {
            let text = format!("-e takes NAME=VALUE, not '{}'", pair.escape_debug());
            return Err(Failure::usage(text));
        }
    }
    if command.workdir.as_deref() == Some("") {
        return Err(Failure::usage("-w takes a directory, not an empty text"));
    }
    let argv = argv
        .into_iter()
        .map(|word| string(word.into_vec()))
        .collect::<Result<_, _>>()?;
    let drawn = random::exec_id().or_fail(Exit::Defect, || "cannot name the request".to_owned());
    let exec = Exec {
        env: command
            .env
            .iter()
            .map(|pair| string(pair.clone().into_bytes()))
            .collect::<Result<_, _>>()?,
        cwd: command
            .workdir
            .clone()
            .map(|dir| string(dir.into_bytes()))
            .transpose()?,
        ..Exec::new(command.id.map_or(drawn, Ok)?, argv)
    };
    match exec.limit_exceeded() {
        Some(limit) => Err(Failure::new(Exit::Usage, limit)),
        None => Ok(exec),
    }
}
