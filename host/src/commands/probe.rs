//! `host-tool probe`: checks whether a guest is ready, over the path that the next command will
//! take. A guest that was started without the proof gets its generation first. `--watch` reports
//! each change until the guest is ready.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::exchange::{AttemptEnd, ExchangeError};
use shared::message::Probed;

use crate::cli::ProbeCommand;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::answer::{Answer, AskError, AskErrorReason, exit_of};
use crate::guest::driver::pause;
use crate::guest::requests::Guest;
use crate::lifecycle::rebind;
use crate::os::clock::to_us;
use crate::report::output::print;
use crate::vmdir::StateDir;

/// Time limit without `--timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Time limit with `--watch` and without `--timeout`.
const WATCH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Time limit for one request of a watch, after which the guest's state is reported.
const WATCH_SLICE: Duration = Duration::from_secs(1);

/// Pause after a refusal that a retry by itself does not solve. The cause may pass, such as a full
/// process table.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// Most changes of state in the JSON object. All are printed.
const CHANGES_MAX: usize = 64;

pub(crate) fn run(command: &ProbeCommand) -> Result<(), Failure> {
    let asked_at = Instant::now();
    let mut changes = Changes::new(asked_at, command.quiet);
    let result = probe(command, asked_at, &mut changes);
    let took_us = to_us(asked_at.elapsed());
    match result {
        Ok(answer) => {
            let (hello, probed) = (answer.hello, answer.content);
            let generation = probed.generation.map(|generation| generation.to_string());
            if command.json {
                let value = json!({
                    "event": "ready",
                    "exit": 0,
                    "generation": generation,
                    "us": took_us,
                    "attempts": answer.attempts,
                    "agent": { "version": hello.version, "boot_id": hello.boot_id },
                    "listener_serial": probed.listener_serial,
                    "accepts_since_rebind": probed.accepts_since_rebind,
                    "exec_us": probed.exec_us,
                });
                return print(&changes.add_to(value, command.watch).to_string());
            }
            let generation = generation.unwrap_or_else(|| "none".to_owned());
            print(&format!(
                "ready  generation {generation}  {} ms",
                took_us / 1000
            ))
        }
        Err(failure) => {
            if command.json {
                let value = json!({
                    "event": "failed",
                    "phase": "probe",
                    "exit": Table::Probe.code(failure.exit()),
                    "error": failure.to_string(),
                });
                // The command has failed already; a closed output adds nothing.
                let _ = print(&changes.add_to(value, command.watch).to_string());
            }
            Err(failure)
        }
    }
}

fn probe(
    command: &ProbeCommand,
    asked_at: Instant,
    changes: &mut Changes,
) -> Result<Answer<Probed>, Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let default = if command.watch {
        WATCH_TIMEOUT_DEFAULT
    } else {
        TIMEOUT_DEFAULT
    };
    let deadline = asked_at + command.timeout.unwrap_or(default);
    let mut prober = Prober {
        target: &target,
        deadline,
        is_awaited: command.watch || command.timeout.is_some(),
        changes: command.watch.then_some(changes),
    };
    if let Some(name) = &command.name {
        let state_dir = StateDir::existing(command.state_dir.as_deref())?;
        rebind::rebind_pending(&state_dir, name, deadline, |rebind| {
            prober.ask(|guest| guest.rebind(rebind.clone()))
        })?;
    }
    prober.ask(|guest| guest.probe(None, command.depth))
}

/// Asks a guest, once or until it is ready.
struct Prober<'a> {
    target: &'a Target,
    deadline: Instant,
    /// Whether a guest that is not there yet is waited for.
    is_awaited: bool,
    /// With `--watch`: the guest's changes of state until it is ready.
    changes: Option<&'a mut Changes>,
}

impl Prober<'_> {
    fn ask<T>(
        &mut self,
        ask: impl Fn(&Guest<'_>) -> Result<Answer<T>, AskError>,
    ) -> Result<Answer<T>, Failure> {
        let asked = match &mut self.changes {
            Some(changes) => watch(self.target, ask, self.deadline, changes),
            None => ask(&Guest {
                is_awaited: self.is_awaited,
                ..self.target.guest(self.deadline)
            }),
        };
        asked.map_err(|error| Failure::new(probe_exit(&error), error))
    }
}

/// Asks until the guest is ready, a retry is pointless, or the deadline passes. Notes the guest's
/// state in between.
fn watch<T>(
    target: &Target,
    ask: impl Fn(&Guest<'_>) -> Result<Answer<T>, AskError>,
    deadline: Instant,
    changes: &mut Changes,
) -> Result<Answer<T>, AskError> {
    let watch = target.watch(deadline);
    let mut attempts = 0;
    loop {
        let until = (Instant::now() + WATCH_SLICE).min(deadline);
        let guest = Guest {
            is_awaited: true,
            ..target.guest(until)
        };
        let mut error = match ask(&guest) {
            Ok(mut answer) => {
                answer.attempts += attempts;
                return Ok(answer);
            }
            Err(error) => error,
        };
        attempts += error.attempts;
        error.attempts = attempts;
        let is_refusal = match Seen::of(&error) {
            Some(seen) if Instant::now() < deadline => {
                let is_refusal = matches!(seen, Seen::Refusing(_));
                changes.note(seen);
                is_refusal
            }
            Some(_) | None => return Err(error),
        };
        if is_refusal && let Err(reason) = pause(&watch, Instant::now() + WATCH_PAUSE) {
            error.reason = reason;
            return Err(error);
        }
    }
}

/// The state of a guest that is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    NoAnswer(String),
    Refusing(String),
}

impl Seen {
    /// The guest's state by a request's error; `None` when a retry would give the same error.
    fn of(error: &AskError) -> Option<Self> {
        let exchange = match &error.reason {
            AskErrorReason::Exchange(exchange) => exchange,
            AskErrorReason::VmmEnded | AskErrorReason::Connection(_) | AskErrorReason::Local(_) => {
                return None;
            }
        };
        match exchange {
            ExchangeError::Deadline { last, .. } => Some(match last {
                Some(end @ AttemptEnd::Refused(_)) => Self::Refusing(end.to_string()),
                Some(AttemptEnd::Closed) => Self::NoAnswer(match &error.last {
                    Some(cause) => format!("connection closed: {cause}"),
                    None => "connection closed".to_owned(),
                }),
                Some(AttemptEnd::Silent | AttemptEnd::Failed | AttemptEnd::Answered) | None => {
                    Self::NoAnswer("silence".to_owned())
                }
            }),
            ExchangeError::Refused { .. } => Some(Self::Refusing(exchange.to_string())),
            ExchangeError::Version(_) | ExchangeError::Protocol { .. } => None,
        }
    }

    /// The state's fixed text, which scripts compare, and its details.
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::NoAnswer(text) => ("no answer", text),
            Self::Refusing(text) => ("refusing", text),
        }
    }
}

/// The guest's changes of state.
#[derive(Debug)]
struct Changes {
    begun_at: Instant,
    is_quiet: bool,
    last: Option<Seen>,
    kept: Vec<Value>,
}

impl Changes {
    const fn new(begun_at: Instant, is_quiet: bool) -> Self {
        Self {
            begun_at,
            is_quiet,
            last: None,
            kept: Vec::new(),
        }
    }

    /// Prints and keeps the state if it changed.
    fn note(&mut self, seen: Seen) {
        if self.last.as_ref() == Some(&seen) {
            return;
        }
        let us = to_us(self.begun_at.elapsed());
        let (state, text) = seen.parts();
        if !self.is_quiet {
            // A closed standard error cannot be reported anywhere.
            let _ = writeln!(
                io::stderr(),
                "host-tool: after {} ms: {state} ({text})",
                us / 1000
            );
        }
        if self.kept.len() < CHANGES_MAX {
            self.kept
                .push(json!({ "us": us, "state": state, "text": text }));
        }
        self.last = Some(seen);
    }

    /// Adds the changes to the command's JSON object if `is_asked`.
    fn add_to(self, mut value: Value, is_asked: bool) -> Value {
        if is_asked {
            value["changes"] = self.kept.into();
        }
        value
    }
}

/// A guest that refused until the deadline did answer: the exit code is that of a refusal.
const fn probe_exit(error: &AskError) -> Exit {
    match &error.reason {
        AskErrorReason::Exchange(ExchangeError::Deadline {
            last: Some(AttemptEnd::Refused(_)),
            ..
        }) => Exit::Guest,
        _ => exit_of(error),
    }
}

#[cfg(test)]
mod tests {
    use shared::frame::FrameKind;
    use shared::message::{Fail, FailCode};

    use super::*;

    fn error(reason: AskErrorReason) -> AskError {
        AskError {
            endpoint: "s".into(),
            attempts: 1,
            log: Box::default(),
            reason,
            last: Some(io::Error::other("reset")),
        }
    }

    fn late(last: Option<AttemptEnd>) -> AskError {
        error(AskErrorReason::Exchange(ExchangeError::Deadline {
            request: FrameKind::Probe,
            attempts: 1,
            last,
        }))
    }

    #[test]
    fn a_failed_request_tells_the_state_of_the_guest() {
        let no_answer = |text: &str| Some(Seen::NoAnswer(text.to_owned()));
        assert_eq!(Seen::of(&late(None)), no_answer("silence"));
        assert_eq!(
            Seen::of(&late(Some(AttemptEnd::Silent))),
            no_answer("silence")
        );
        let closed = late(Some(AttemptEnd::Closed));
        assert_eq!(Seen::of(&closed), no_answer("connection closed: reset"));
        let refusing = late(Some(AttemptEnd::Refused(FailCode::Refusing)));
        assert!(matches!(Seen::of(&refusing), Some(Seen::Refusing(_))));
        let refused = error(AskErrorReason::Exchange(ExchangeError::Refused {
            request: FrameKind::Probe,
            fail: Fail::new(FailCode::Probe, "cannot spawn"),
        }));
        let Some(Seen::Refusing(text)) = Seen::of(&refused) else {
            panic!("a guest that refuses")
        };
        assert!(text.contains("cannot spawn"), "{text}");
    }

    #[test]
    fn a_vmm_that_ended_is_not_asked_again() {
        assert_eq!(Seen::of(&error(AskErrorReason::VmmEnded)), None);
    }

    #[test]
    fn only_changes_are_kept() {
        let mut changes = Changes::new(Instant::now(), true);
        let silent = || Seen::NoAnswer("silence".to_owned());
        for seen in [silent(), silent(), Seen::Refusing("x".to_owned()), silent()] {
            changes.note(seen);
        }
        let value = changes.add_to(json!({}), true);
        let states: Vec<_> = value["changes"].as_array().unwrap().iter().collect();
        let states: Vec<_> = states.iter().map(|change| &change["state"]).collect();
        assert_eq!(states, ["no answer", "refusing", "no answer"]);
        assert_eq!(
            Changes::new(Instant::now(), true).add_to(json!({}), false),
            json!({})
        );
    }

    #[test]
    fn changes_have_a_limit() {
        let mut changes = Changes::new(Instant::now(), true);
        for number in 0..=CHANGES_MAX {
            changes.note(Seen::NoAnswer(number.to_string()));
        }
        assert_eq!(changes.kept.len(), CHANGES_MAX);
    }
}
