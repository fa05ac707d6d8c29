//! Giving a guest its generation and having it prove that it is ready: REBIND until REBOUND, then
//! PROBE on a fresh connection.

use serde_json::{Value, json};
use shared::exchange::Request;
use shared::message::{Depth, Hello, Message, Probed, Rebound, Step, StepResult};

use crate::error::Failure;
use crate::exit::Exit;
use crate::failpoint::{Point, reach};
use crate::guest::address::Endpoint;
use crate::guest::answer::Answer;
use crate::guest::driver::ask;
use crate::guest::requests::RebindPlan;
use crate::os::deadline::Watch;
use crate::report::phase::Phase;
use crate::report::record::Record;

/// A guest that has proven itself.
#[derive(Debug)]
pub(crate) struct Proof {
    /// Its HELLO.
    pub(crate) hello: Hello,
    /// Whether its image has hooks for after a restore.
    pub(crate) has_hooks: bool,
}

/// Gives the guest its generation and has it prove that commands can run in it.
pub(crate) fn prove(
    endpoint: &Endpoint,
    plan: &RebindPlan,
    watch: &Watch<'_>,
    record: &mut Record,
) -> Result<Proof, Failure> {
    record.begin(Phase::Rebind);
    record.set_generation(plan.generation);
    reach(Point::RebindBefore)?;
    let (rebound, answer) = rebind(endpoint, plan, watch, record)?;
    reach(Point::RebindAfter)?;

    record.begin(Phase::Probe);
    reach(Point::ProbeBefore)?;
    let depth = Depth::Exec;
    let request = Request::Probe {
        generation: Some(plan.generation),
        depth,
    };
    let probed = request_probe(endpoint, request, watch, record)?;
    reach(Point::ProbeAfter)?;
    record.end();
    record.set("guest", guest_value(&answer.hello, &rebound, &probed));
    Ok(Proof {
        hello: answer.hello,
        has_hooks: probed.hooks,
    })
}

fn rebind(
    endpoint: &Endpoint,
    plan: &RebindPlan,
    watch: &Watch<'_>,
    record: &mut Record,
) -> Result<(Rebound, Answer), Failure> {
    let request = plan.request()?;
    let answer = counted(Phase::Rebind, ask(endpoint, request, watch), record)?;
    match &answer.message {
        Message::Rebound(rebound) => {
            record.note_rebind(&rebound.steps, &answer.log);
            for step in &rebound.steps {
                if step.result == StepResult::Failed {
                    log::warn!(
                        "the guest goes on although its step '{}' failed; its console says why",
                        step.name.as_str()
                    );
                }
            }
            Ok((rebound.clone(), answer))
        }
        other => Err(unexpected(other)),
    }
}

fn request_probe(
    endpoint: &Endpoint,
    request: Request,
    watch: &Watch<'_>,
    record: &mut Record,
) -> Result<Probed, Failure> {
    let answer = counted(Phase::Probe, ask(endpoint, request, watch), record)?;
    match answer.message {
        Message::Probed(probed) => {
            if let Some(us) = probed.exec_us {
                record.note_exec(us, &answer.log);
            }
            Ok(probed)
        }
        other => Err(unexpected(&other)),
    }
}

/// Notes the attempts, whichever way they ended.
fn counted(
    phase: Phase,
    result: Result<Answer, crate::guest::answer::AskError>,
    record: &mut Record,
) -> Result<Answer, Failure> {
    let (attempts, log) = match &result {
        Ok(answer) => (answer.attempts, &answer.log[..]),
        Err(error) => (error.attempts, &error.log[..]),
    };
    record.attempts(phase, attempts);
    record.note_attempts(phase, log);
    Ok(result?)
}

/// The exchange only ends well with the frame that completes its request.
fn unexpected(message: &Message) -> Failure {
    Failure::new(
        Exit::Internal,
        format!("the exchange ended with {}", message.kind()),
    )
}

fn guest_value(hello: &Hello, rebound: &Rebound, probed: &Probed) -> Value {
    let step = |step: &Step| json!({ "name": step.name.as_str(), "us": step.us, "result": step.result.as_str() });
    json!({
        "agent_version": hello.version,
        "protocol": [hello.protocol.min, hello.protocol.max],
        "boot_id": hello.boot_id,
        "steps": rebound.steps.iter().map(step).collect::<Vec<_>>(),
        "clock_step_ns": rebound.clock_step_ns,
        "entropy_credited": rebound.entropy_credited,
        "listener_serial": rebound.listener_serial,
        "connections_dropped": rebound.connections_dropped,
        "sessions_dropped": rebound.sessions_dropped,
        "accepts_since_rebind": probed.accepts_since_rebind,
        "exec_us": probed.exec_us,
    })
}
