//! `host-tool wait`: waits for the end of a session, and leaves its output to an attached client.

use serde_json::Value;
use shared::message::{AttachMode, Exited};

use crate::cli::WaitCommand;
use crate::commands::session::{self, Wanted, report};
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::session::Outcome;
use crate::report::output::print;

/// Waits, and returns the exit code of the session's command.
pub(crate) fn run(command: &WaitCommand) -> Result<u8, Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let wanted = Wanted::attach(
        command.session,
        AttachMode::Wait,
        target.end,
        command.reconnect,
    );
    match session::run(&target, wanted)? {
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

/// The session's end, with the keys `event` and `exit` of every record.
fn record(exited: &Exited) -> Value {
    let mut value = exited.to_value();
    let exit = match (exited.timed_out, exited.fault) {
        (true, _) => Table::Exec.code(Exit::Deadline),
        (false, Some(_)) => Table::Exec.code(Exit::Guest),
        (false, None) => exited.status.shell_code(),
    };
    if let Value::Object(map) = &mut value {
        map.insert("event".to_owned(), "exited".into());
        map.insert("exit".to_owned(), exit.into());
    }
    value
}

#[cfg(test)]
mod tests {
    use shared::message::{ExitStatus, Fault, FaultPart, ResourceUsage};

    use super::*;

    #[test]
    fn the_record_has_the_exit_code_and_all_of_the_end() {
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
            fault: None,
            usage: ResourceUsage::default(),
        };
        let value = record(&exited);
        assert_eq!(value["event"], "exited");
        assert_eq!((&value["exit"], &value["signal"]), (&137.into(), &9.into()));
        exited.fault = Some(Fault {
            part: FaultPart::Stdin,
            offset: 5,
            errno: libc::EIO,
        });
        let value = record(&exited);
        assert_eq!(value["exit"], 125, "what was cut is not called whole");
        assert_eq!(value["fault"]["offset"], 5);
        exited.timed_out = true;
        assert_eq!(record(&exited)["exit"], 124);
    }
}
