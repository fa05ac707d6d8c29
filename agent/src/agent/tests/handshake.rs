//! HELLO, REBIND and PROBE.

use super::*;
use crate::agent::rebind::GENERATIONS_KEPT_MAX;
use shared::message::{Rebound, StepResult};
use shared::version::VersionRange;

#[track_caller]
fn rebound(messages: &[Message]) -> &Rebound {
    match messages {
        [Message::Rebound(rebound)] => rebound,
        other => panic!("expected one REBOUND, got {other:?}"),
    }
}

/// Positions of the steps and answers of a rebind among all actions.
fn steps(world: &World) -> Vec<&'static str> {
    let name = |action: &Action| match action {
        Action::Step { action, .. } => Some(match action {
            StepAction::CloseConnections(_) => "connections",
            StepAction::RearmListener => "listener",
            StepAction::SetClock { .. } => "clock",
            StepAction::Reseed { .. } => "entropy",
            StepAction::SetIdentity(_) => "identity",
        }),
        _ => None,
    };
    world.actions.iter().filter_map(name).collect()
}

#[test]
fn hello_is_answered_and_requests_may_be_pipelined_behind_it() {
    let mut world = World::new();
    let id = world.accept();
    let mut bytes = Message::Hello(Hello::host("test")).encode();
    Message::InfoRequest.encode_into(&mut bytes);
    for byte in bytes {
        world.send_bytes(id, &[byte]);
    }
    let [Message::Hello(hello), Message::Info(info)] = &world.receive(id)[..] else {
        panic!("expected HELLO and INFO")
    };
    assert_eq!((hello.role, hello.generation), (Role::Guest, None));
    assert_eq!(
        (info.state.as_str(), info.fds, info.connections),
        ("running", 5, 1)
    );
}

#[test]
fn mistakes_end_the_connection_with_a_reason() {
    let other_versions = Hello {
        protocol: VersionRange { min: 2, max: 3 },
        ..Hello::host("test")
    };
    let guest = Hello {
        role: Role::Guest,
        ..Hello::host("test")
    };
    let hello = Message::Hello(Hello::host("test")).encode();
    let cases: [(Vec<u8>, FailCode); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), FailCode::Protocol),
        (Message::InfoRequest.encode(), FailCode::Protocol),
        (Message::Hello(other_versions).encode(), FailCode::Version),
        (Message::Hello(guest).encode(), FailCode::Protocol),
        ([hello.clone(), hello.clone()].concat(), FailCode::Protocol),
        (
            [hello, Message::Quiesced(TOKEN).encode()].concat(),
            FailCode::Protocol,
        ),
    ];
    for (bytes, code) in cases {
        let mut world = World::new();
        let id = world.accept();
        world.send_bytes(id, &bytes);
        let received = world.receive(id);
        let last = received.last().cloned().into_iter().collect::<Vec<_>>();
        assert_eq!(fail_code(&last), code, "{bytes:?}");
        assert!(world.is_closed(id));
        assert_eq!(world.agent.poll_timeout(), None);
    }
}

#[test]
fn a_connection_without_hello_is_closed_in_time() {
    let mut world = World::new();
    let id = world.accept();
    world.pass(HELLO_TIMEOUT - Duration::from_millis(1));
    assert!(!world.is_closed(id));
    world.pass(Duration::from_millis(1));
    assert_eq!(fail_code(&world.receive(id)), FailCode::Protocol);
    assert!(world.is_closed(id));
}

#[test]
fn rebind_takes_its_steps_in_order_and_answers_last() {
    let mut world = World::new();
    let old = world.connect();
    let id = world.connect();
    let mut request = rebind(G, Cause::Restore);
    if let Message::Rebind(rebind) = &mut request {
        rebind.identity.hostname = Some("clone".to_owned());
    }
    let answer = world.ask(id, &request);
    let rebound = rebound(&answer);
    assert_eq!((rebound.generation, rebound.connections_dropped), (G, 1));
    assert_eq!(
        (rebound.clock_step_ns, rebound.entropy_credited),
        (42, true)
    );
    assert!(
        rebound
            .steps
            .iter()
            .all(|step| step.result == StepResult::Done && step.us == 7)
    );
    assert_eq!(
        steps(&world),
        ["connections", "listener", "clock", "entropy", "identity"]
    );
    assert!(world.is_closed(old));
    assert_eq!(world.agent.state(), State::Rebound(G));
    let last_step = world
        .actions
        .iter()
        .rposition(|action| matches!(action, Action::Step { .. }));
    let answered = world
        .actions
        .iter()
        .rposition(|action| *action == Action::Flush(id));
    assert!(answered > last_step, "REBOUND comes after every step");
}

#[test]
fn the_same_generation_is_answered_again_and_acts_once() {
    let mut world = World::new();
    let first = world.connect();
    let answer = world.ask(first, &rebind(G, Cause::Boot));
    let acted = steps(&world).len();
    let second = world.connect();
    assert_eq!(world.ask(second, &rebind(G, Cause::Boot)), answer);
    assert_eq!(world.ask(first, &rebind(G, Cause::Boot)), answer);
    assert_eq!(steps(&world).len(), acted);
    assert!(!world.is_closed(first) && !world.is_closed(second));
}

/// A host's bytes may already hold the next attempt, before any step was performed.
#[test]
fn a_newer_generation_supersedes_the_one_under_way() {
    let mut world = World::new();
    let id = world.connect();
    let bytes = [
        rebind(G, Cause::Boot),
        rebind(G, Cause::Boot),
        rebind(H, Cause::Boot),
    ]
    .map(|message| message.encode())
    .concat();
    world.send_bytes(id, &bytes);
    let answer = world.receive(id);
    let rebound = rebound(&answer);
    assert_eq!((rebound.generation, rebound.clock_step_ns), (H, 42));
    assert!(
        rebound.entropy_credited,
        "each outcome was counted for its own step"
    );
    assert_eq!(world.agent.generation(), Some(H));
    // One step of the superseded rebind was under way; its outcome changed nothing.
    assert_eq!(
        steps(&world)[..3],
        ["connections", "connections", "listener"]
    );
}

/// A copy of the first REBIND arrives late, after its host has died and another host's REBIND.
#[test]
fn a_generation_that_was_replaced_does_not_come_back() {
    let mut world = World::new();
    let id = world.connect();
    rebound(&world.ask(id, &rebind(G, Cause::Boot)));
    rebound(&world.ask(id, &rebind(H, Cause::Resume)));
    let acted = steps(&world).len();
    let late = world.connect();
    let answer = world.ask(late, &rebind(G, Cause::Boot));
    assert!(matches!(&answer[..], [Message::Fail(fail)] if fail.code == FailCode::Superseded));
    assert_eq!(steps(&world).len(), acted, "nothing was done for it");
    assert_eq!(world.agent.generation(), Some(H));
    assert!(!world.is_closed(id));
    // As many generations as are remembered, and the first one is forgotten.
    for number in 0..GENERATIONS_KEPT_MAX {
        let number = u8::try_from(number).expect("a small number");
        let generation = Generation::from_bytes([100 + number; 16]);
        rebound(&world.ask(id, &rebind(generation, Cause::Resume)));
    }
    rebound(&world.ask(id, &rebind(G, Cause::Resume)));
}

#[test]
fn the_loser_is_told_before_its_connection_is_closed() {
    let mut world = World::new();
    let (loser, winner) = (world.connect(), world.connect());
    // Handed in before the first step was performed, as with slow steps.
    world
        .agent
        .handle_bytes(loser, &rebind(G, Cause::Boot).encode(), world.now);
    while let Some(action) = world.agent.poll_action() {
        if matches!(action, Action::Step { .. }) {
            break;
        }
        world.perform(action);
    }
    world
        .agent
        .handle_bytes(winner, &rebind(H, Cause::Boot).encode(), world.now);
    world.drain_actions();
    let told = world.receive(loser);
    assert!(matches!(&told[..], [Message::Fail(fail), ..] if fail.code == FailCode::Superseded));
    assert!(world.is_closed(loser));
    let answer = world.receive(winner);
    assert!(matches!(answer.last(), Some(Message::Rebound(rebound)) if rebound.generation == H));
}

#[test]
fn a_failed_step_is_final_for_a_restore_and_reported_otherwise() {
    for step in ["clock", "entropy"] {
        let mut world = World::new();
        world.failing_steps.insert(step);
        let id = world.connect();
        let answer = world.ask(id, &rebind(G, Cause::Restore));
        let [Message::Fail(fail)] = &answer[..] else {
            panic!("expected FAIL, got {answer:?}")
        };
        assert_eq!(
            (fail.code, fail.phase.as_deref()),
            (FailCode::Rebind, Some(step))
        );
        assert_eq!(
            (fail.errno, world.agent.state()),
            (Some(5), State::Failed(G))
        );
        // Everything except a new REBIND is refused, and the same one gets the same answer.
        assert_eq!(fail_code(&world.ask(id, &exec(1))), FailCode::Rebind);
        assert_eq!(
            fail_code(&world.ask(id, &Message::InfoRequest)),
            FailCode::Rebind
        );
        assert_eq!(world.ask(id, &rebind(G, Cause::Restore)), answer);
        world.failing_steps.clear();
        assert_eq!(
            rebound(&world.ask(id, &rebind(H, Cause::Restore))).generation,
            H
        );

        let mut world = World::new();
        world.failing_steps.insert(step);
        let id = world.connect();
        let answer = world.ask(id, &rebind(G, Cause::Resume));
        let failed = rebound(&answer)
            .steps
            .iter()
            .find(|it| it.name.as_str() == step);
        assert_eq!(failed.map(|it| it.result), Some(StepResult::Failed));
    }
}

#[test]
fn without_a_listener_a_rebind_fails() {
    let mut world = World::new();
    world.failing_steps.insert("listener");
    let id = world.connect();
    assert_eq!(
        fail_code(&world.ask(id, &rebind(G, Cause::Boot))),
        FailCode::Rebind
    );
    assert_eq!(steps(&world), ["connections", "listener"]);
}

#[test]
fn a_listener_that_a_rebind_lost_is_registered_again() {
    let mut world = World::new();
    world.failing_steps.insert("listener");
    let id = world.connect();
    world.ask(id, &rebind(G, Cause::Restore));
    world.end(id, Ended::ByPeer);
    // Without it the agent would hear of no further connection, and so of no REBIND.
    let rearms = |world: &World| {
        let is_rearm = |action: &&Action| **action == Action::RearmListener;
        world.actions.iter().filter(is_rearm).count()
    };
    let before = rearms(&world);
    world.pass(LISTENER_BACKOFF);
    assert_eq!(rearms(&world), before + 1);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn an_impossible_clock_is_not_set() {
    let bounds: [(u64, bool); 4] = [
        (1_577_836_800_000_000_000 - 1, false),
        (1_577_836_800_000_000_000, true),
        (7_258_118_400_000_000_000 - 1, true),
        (7_258_118_400_000_000_000, false),
    ];
    for (wall_clock_ns, is_set) in bounds {
        let mut world = World::new();
        let id = world.connect();
        let mut request = rebind(G, Cause::Restore);
        if let Message::Rebind(rebind) = &mut request {
            rebind.wall_clock_ns = wall_clock_ns;
        }
        let answer = world.ask(id, &request);
        assert_eq!(
            matches!(answer[..], [Message::Rebound(_)]),
            is_set,
            "{wall_clock_ns}"
        );
        assert_eq!(steps(&world).contains(&"clock"), is_set);
    }
}

#[test]
fn a_reset_rearms_the_listener_once_and_concludes_nothing_else() {
    let mut world = World::with_generation(G);
    let ids = [world.connect(), world.connect()];
    let rearms = |world: &World| {
        world
            .actions
            .iter()
            .filter(|action| **action == Action::RearmListener)
            .count()
    };
    let before = rearms(&world);
    let serial = world.agent.listener.serial();
    for id in ids {
        world.agent.handle_closed(id, Ended::ByReset, world.now);
    }
    world.drain_actions();
    assert_eq!(rearms(&world), before + 1);
    assert_eq!(world.agent.listener.serial(), serial + 1);
    assert_eq!(
        (world.agent.state(), world.agent.generation()),
        (State::Rebound(G), Some(G))
    );
    let id = world.connect();
    world.end(id, Ended::ByPeer);
    assert_eq!(rearms(&world), before + 1, "an orderly end rearms nothing");
}

#[test]
fn probe_needs_a_fresh_connection_and_the_current_generation() {
    let mut world = World::new();
    let old = world.connect();
    world.ask(old, &rebind(G, Cause::Boot));
    assert_eq!(
        fail_code(&world.ask(old, &probe(G, Depth::Listener))),
        FailCode::Stale
    );
    let fresh = world.connect();
    assert_eq!(
        fail_code(&world.ask(fresh, &probe(H, Depth::Listener))),
        FailCode::Stale
    );
    assert_eq!(world.agent.state(), State::Rebound(G));
    let answer = world.ask(fresh, &probe(G, Depth::Listener));
    let [Message::Probed(probed)] = answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(
        (probed.generation, probed.nonce, probed.exec_us),
        (Some(G), NONCE, None)
    );
    assert_eq!(
        (probed.accepts_since_rebind, probed.listener_serial),
        (1, 2)
    );
    assert_eq!(world.agent.state(), State::Running);
}

#[test]
fn probe_of_depth_exec_waits_for_its_process() {
    let mut world = World::with_generation(G);
    let id = world.connect();
    let answer = world.ask(id, &probe(G, Depth::Exec));
    assert!(matches!(answer[..], [Message::Progress(_)]));
    assert_eq!(
        fail_code(&world.ask(id, &probe(G, Depth::Exec))),
        FailCode::Limit
    );
    world.now += Duration::from_micros(1234);
    world.reap(world.pid(), ExitStatus::Code(0));
    let answer = world.receive(id);
    let [Message::Probed(probed)] = answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(probed.exec_us, Some(1234));
    assert_eq!(world.agent.state(), State::Running);

    world.ask(id, &probe(G, Depth::Exec));
    world.reap(
        world.pid(),
        ExitStatus::Signal {
            number: 9,
            core: false,
        },
    );
    assert_eq!(fail_code(&world.receive(id)), FailCode::Probe);
    let failure = SpawnFailure {
        stage: SpawnStage::Clone,
        errno: 12,
        text: "no".to_owned(),
        stillborn: None,
    };
    world.spawn_failure = Some(failure);
    let answer = world.ask(id, &probe(G, Depth::Exec));
    assert!(
        matches!(&answer[..], [Message::Progress(_), Message::Fail(fail)]
            if fail.errno == Some(12) && fail.code == FailCode::Limit),
        "a shortage may be over soon: {answer:?}"
    );
    world.spawn_failure = Some(SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 8,
        text: "no".to_owned(),
        stillborn: None,
    });
    let answer = world.ask(id, &probe(G, Depth::Exec));
    assert!(
        matches!(&answer[..], [_, Message::Fail(fail)] if fail.code == FailCode::Probe),
        "{answer:?}"
    );
}

#[test]
fn during_a_rebind_the_guest_has_no_generation() {
    let mut world = World::with_generation(G);
    let (id, other) = (world.connect(), world.accept());
    world
        .agent
        .handle_bytes(id, &rebind(H, Cause::Resume).encode(), world.now);
    assert_eq!(
        (world.agent.state(), world.agent.generation()),
        (State::Rebinding(H), None)
    );
    // Nothing runs in either generation.
    let requests = [
        Message::Hello(Hello::host("test")),
        exec(1),
        probe(G, Depth::Exec),
    ];
    let bytes = requests.map(|message| message.encode()).concat();
    world.agent.handle_bytes(other, &bytes, world.now);
    world.drain_actions();
    assert!(world.processes.is_empty());
}

#[test]
fn a_reset_before_the_listener_step_asks_for_no_second_rearm() {
    let mut world = World::with_generation(G);
    let (id, other) = (world.connect(), world.connect());
    let serial = world.agent.listener.serial();
    world
        .agent
        .handle_bytes(id, &rebind(H, Cause::Restore).encode(), world.now);
    world.agent.handle_closed(other, Ended::ByReset, world.now);
    world.drain_actions();
    assert_eq!(world.agent.listener.serial(), serial + 1);
}

#[test]
fn a_rebind_whose_asker_has_gone_is_found_done_by_the_next_attempt() {
    let mut world = World::new();
    let first = world.connect();
    world
        .agent
        .handle_bytes(first, &rebind(G, Cause::Restore).encode(), world.now);
    world.end(first, Ended::ByPeer);
    assert_eq!(world.agent.state(), State::Rebound(G));
    let acted = steps(&world).len();
    let second = world.connect();
    assert!(matches!(
        world.ask(second, &rebind(G, Cause::Restore))[..],
        [Message::Rebound(_)]
    ));
    assert_eq!(steps(&world).len(), acted);
}
