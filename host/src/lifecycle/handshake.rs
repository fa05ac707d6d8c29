//! The handshake with a guest: REBIND until REBOUND gives it its generation, then PROBE on a fresh
//! connection proves that it is ready.

use serde_json::{Value, json};
use shared::message::{Depth, Hello, Probed, Rebound, Step, StepResult};

use crate::error::Failure;
use crate::failpoint::{Point, reach};
use crate::guest::requests::{Guest, RebindPlan};
use crate::report::phase::Phase;
use crate::report::record::Record;

/// A guest that has proven itself.
#[derive(Debug)]
pub(crate) struct Proof {
    pub(crate) hello: Hello,
    /// Whether its image has hooks that run after a restore.
    pub(crate) has_hooks: bool,
}

/// Gives the guest its generation and proves that it can run commands.
pub(crate) fn prove(
    guest: &Guest<'_>,
    plan: &RebindPlan,
    record: &mut Record,
) -> Result<Proof, Failure> {
    record.begin(Phase::Rebind);
    record.set_generation(plan.generation);
    reach(Point::RebindBefore)?;
    let asked = guest.rebind(plan.request()?);
    record.note_asked(Phase::Rebind, &asked);
    let rebound = asked?;
    record.note_rebind(&rebound.content.steps, &rebound.log);
    for step in &rebound.content.steps {
        if step.result == StepResult::Failed {
            log::warn!(
                "step '{}' failed in the guest, which continues; its console says why",
                step.name.as_str()
            );
        }
    }
    reach(Point::RebindAfter)?;

    record.begin(Phase::Probe);
    reach(Point::ProbeBefore)?;
    let asked = guest.probe(Some(plan.generation), Depth::Exec);
    record.note_asked(Phase::Probe, &asked);
    let probed = asked?;
    if let Some(us) = probed.content.exec_us {
        record.note_exec(us, &probed.log);
    }
    reach(Point::ProbeAfter)?;
    record.end();
    let value = guest_value(&rebound.hello, &rebound.content, &probed.content);
    record.set("guest", value);
    Ok(Proof {
        hello: rebound.hello,
        has_hooks: probed.content.hooks,
    })
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
