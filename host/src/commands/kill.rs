//! `host-tool kill`: sends a signal to a session's process group.

use std::time::Duration;

use serde_json::json;
use shared::message::{FailCode, Signal};

use crate::cli::KillCommand;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::report::output::print;

/// Time limit without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Sends the signal. Signalling a session that has ended succeeds.
pub(crate) fn run(command: &KillCommand) -> Result<(), Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let guest = target.guest(target.deadline(TIMEOUT_DEFAULT));
    let signal = Signal {
        session: Some(command.session),
        number: command.signal,
    };
    guest.signal(signal).map_err(|error| {
        let refusal = error.refusal();
        let is_unknown = refusal.is_some_and(|fail| fail.code == FailCode::NoSession);
        let failure = Failure::from(error);
        if is_unknown {
            let text = format!("{failure}; host-tool ps -a lists the sessions");
            Failure::new(failure.exit(), text)
        } else {
            failure
        }
    })?;
    if command.json {
        let value = json!({
            "event": "signalled",
            "exit": 0,
            "session": command.session.to_string(),
            "signal": command.signal,
        });
        return print(&value.to_string());
    }
    Ok(())
}
