//! `host-tool kill`: a signal for a session's process group.

use std::time::{Duration, Instant};

use serde_json::json;
use shared::exchange::{ExchangeError, Request};
use shared::message::{FailCode, Signal};

use crate::cli::KillCommand;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::guest::answer::{AskError, AskErrorReason};
use crate::guest::driver::ask;
use crate::report::output::print;

/// How long a guest is given unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Sends the signal. A session that has ended is as good as told.
pub(crate) fn run(command: &KillCommand) -> Result<(), Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let watch = target.watch(Instant::now() + command.timeout.unwrap_or(TIMEOUT_DEFAULT));
    let request = Request::Signal(Signal {
        session: Some(command.session),
        number: command.signal,
    });
    ask(&target.endpoint, request, &watch).map_err(|error| {
        let is_unknown = is_unknown_session(&error);
        let failure = Failure::from(error);
        if is_unknown {
            let text = format!("{failure}; host-tool ps -a lists what is known");
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

fn is_unknown_session(error: &AskError) -> bool {
    matches!(
        &error.reason,
        AskErrorReason::Exchange(ExchangeError::Refused { fail, .. })
            if fail.code == FailCode::NoSession
    )
}
