//! `host-tool probe`: whether a guest is ready, asked in the way in which the next command will
//! ask it for something.

use std::time::{Duration, Instant};

use serde_json::json;
use shared::exchange::{AttemptEnd, ExchangeError, Request};
use shared::message::{Message, Probed};

use crate::cli::ProbeCommand;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::driver::{Answer, AskError, AskErrorReason, ask};
use crate::output::print;
use crate::target::{Target, exit_of};

/// How long a guest is given unless the caller says.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn run(command: &ProbeCommand) -> Result<(), Failure> {
    let asked_at = Instant::now();
    let result = probe(command, asked_at);
    let took_us = u64::try_from(asked_at.elapsed().as_micros()).unwrap_or(u64::MAX);
    match result {
        Ok((probed, answer)) => {
            let hello = answer.hello;
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
                return print(&value.to_string());
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
                // The failure itself is the news; a closed output beside it is not.
                let _ = print(&value.to_string());
            }
            Err(failure)
        }
    }
}

fn probe(command: &ProbeCommand, asked_at: Instant) -> Result<(Probed, Answer), Failure> {
    let target = Target::find(command.into(), command.state_dir.as_deref())?;
    let watch = target.watch(asked_at + command.timeout.unwrap_or(TIMEOUT_DEFAULT));
    let request = Request::Probe {
        generation: None,
        depth: command.depth,
    };
    let answer = ask(&target.endpoint, request, &watch).map_err(|error| {
        let exit = probe_exit(&error);
        Failure::new(exit, error)
    })?;
    match answer.message {
        Message::Probed(probed) => Ok((probed, answer)),
        _ => Err(Failure::new(
            Exit::Defect,
            "the exchange ended with another frame than PROBED",
        )),
    }
}

/// A guest that says "not now" until the deadline does answer: it is refusing.
const fn probe_exit(error: &AskError) -> Exit {
    match &error.reason {
        AskErrorReason::Exchange(ExchangeError::Deadline {
            last: Some(AttemptEnd::Refused(_)),
            ..
        }) => Exit::Guest,
        _ => exit_of(error),
    }
}
