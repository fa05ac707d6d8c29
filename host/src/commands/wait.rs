//! `host-tool wait`: the end of a session, whoever has its output.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use serde_json::Value;
use shared::message::{Attach, AttachMode, Exited};
use shared::session_client::{Deadlines, Request};

use crate::cli::WaitCommand;
use crate::commands::exec::{START_TIMEOUT, failure, report};
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::Exit;
use crate::guest::session::{self, Local, Outcome, Session};
use crate::report::output::print;

/// Waits, and gives the exit code of the session's command.
pub(crate) fn run(command: &WaitCommand) -> Result<u8, Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let now = Instant::now();
    let end = command.timeout.map(|timeout| now + timeout);
    let session = Session {
        endpoint: &target.endpoint,
        request: Request::Attach {
            attach: Attach {
                session: command.session,
                generation: None,
                mode: AttachMode::Wait,
                stdout_from: None,
                stderr_from: None,
            },
            stdin: false,
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
        stdin: None,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: None,
        terminal: None,
    };
    match session::run(session, local).map_err(|error| failure(error, &target))? {
        Outcome::Exited(exited) => {
            let code = report(&exited);
            if command.json {
                print(&record(&exited).to_string())?;
            }
            code
        }
        Outcome::Started(_) => Err(Failure::new(
            Exit::Internal,
            "the wait ended before its session",
        )),
    }
}

/// The end with `event` and `exit` as every record has them.
fn record(exited: &Exited) -> Value {
    let mut value = exited.to_value();
    let exit = if exited.timed_out {
        crate::exit::Table::Exec.code(Exit::Deadline)
    } else {
        exited.status.shell_code()
    };
    if let Value::Object(map) = &mut value {
        map.insert("event".to_owned(), "exited".into());
        map.insert("exit".to_owned(), exit.into());
    }
    value
}

#[cfg(test)]
mod tests {
    use shared::message::{ExitStatus, ResourceUsage};

    use super::*;

    #[test]
    fn the_record_has_the_exit_code_and_the_whole_end() {
        let mut exited = Exited {
            session: 3,
            status: ExitStatus::Signal {
                number: 9,
                core: false,
            },
            stdout_end: 1,
            stderr_end: 2,
            writers_alive: false,
            timed_out: false,
            usage: ResourceUsage::default(),
        };
        let value = record(&exited);
        assert_eq!(value["event"], "exited");
        assert_eq!((&value["exit"], &value["signal"]), (&137.into(), &9.into()));
        exited.timed_out = true;
        assert_eq!(record(&exited)["exit"], 124);
    }
}
