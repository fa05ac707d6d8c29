//! Goal: the host learns of a step of a rebind that fails, and the next rebind performs it; the
//! host asks again for an answer that is lost. Method: a real agent with faults
//! (`GUEST_AGENT_FAILPOINTS`), and a client or `host-tool`.

use shared::message::{
    Depth, FailCode, Identity, Message, Policy, Rebind, Rebound, StepName, StepResult,
};
use tests::agent::Agent;
use tests::client::{probe, quiesce, rebind, rebind_fields};

fn agent_with(faults: &str) -> Agent {
    Agent::start_in(&[], &[("GUEST_AGENT_FAILPOINTS", faults)])
}

/// A REBIND that gives every step something to do.
fn full_rebind(byte: u8) -> Message {
    Message::Rebind(Rebind {
        entropy: Some([byte; 32]),
        identity: Identity {
            hostname: Some("clone".to_owned()),
            machine_id: None,
            network: shared::message::Network::default(),
        },
        ..rebind_fields(byte)
    })
}

fn result_of(rebound: &Rebound, name: StepName) -> StepResult {
    let step = rebound.steps.iter().find(|step| step.name == name);
    step.expect("every step is listed").result
}

#[test]
fn a_step_that_fails_is_told_and_the_next_rebind_does_it() {
    for &name in StepName::ALL {
        let agent = agent_with(name.as_str());
        let mut client = agent.greet();
        match client.ask(&full_rebind(1)) {
            Message::Rebound(rebound) => {
                assert_eq!(result_of(&rebound, name), StepResult::Failed, "{name:?}");
            }
            Message::Fail(fail) => {
                assert_eq!(fail.code, FailCode::Rebind, "{fail:?}");
                assert!(fail.text.contains("injected"), "{fail:?}");
                // While the failing turn runs, a connection would be accepted in any case.
                agent.await_idle();
                let mut refused = agent.greet();
                let answer = refused.ask(&probe(1, Depth::Listener));
                assert!(matches!(answer, Message::Fail(_)), "{name:?}: {answer:?}");
            }
            other => panic!("{name:?}: {other:?}"),
        }
        let rebound = agent.greet().rebound(&full_rebind(2));
        assert_ne!(result_of(&rebound, name), StepResult::Failed, "{name:?}");
        let probed = agent.greet().ask(&probe(2, Depth::Exec));
        assert!(matches!(probed, Message::Probed(_)), "{name:?}: {probed:?}");
    }
}

/// A generation counts as replaced even when its own rebind failed: its host is gone.
#[test]
fn a_generation_whose_rebind_failed_does_not_come_back() {
    let agent = agent_with("connections");
    agent.refuses(&rebind(1), FailCode::Rebind);
    agent.greet().rebound(&rebind(2));
    agent.refuses(&rebind(1), FailCode::Superseded);
    agent.greet().probed(&probe(2, Depth::Exec));
}

/// Each of these agents loses the answer to the probe with which it is started.
#[test]
fn an_answer_that_is_lost_is_asked_for_again() {
    for fault in ["cut:probed", "mute:probed"] {
        let agent = agent_with(fault);
        assert_eq!(agent.exec(["true"]).code(), 0, "{fault}");
    }
}

#[test]
fn what_was_done_before_its_answer_was_lost_is_not_done_twice() {
    let agent = agent_with("cut:rebound,cut:quiesced");
    let mut client = agent.greet();
    client.say(&rebind(1));
    assert_eq!(client.hear_or_end(), None);
    let [first, second] = [(); 2].map(|()| agent.greet().rebound(&rebind(1)));
    assert_eq!(second.listener_serial, first.listener_serial);
    let mut client = agent.greet();
    client.say(&quiesce(7, Policy::Keep));
    assert_eq!(client.hear_or_end(), None);
    agent.greet().quiesced(&quiesce(7, Policy::Keep));
    agent.greet().rebound(&rebind(2));
    assert_eq!(agent.exec(["true"]).code(), 0);
}
