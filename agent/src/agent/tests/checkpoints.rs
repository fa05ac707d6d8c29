//! Checkpoints and new generations: which programs and hosts wait, and what ends each wait.

use super::*;
use crate::agent::rebind::LOG_HOLD_TIMEOUT;
use crate::agent::rebind::checkpoints::{HOSTS_MAX, PROGRESS_INTERVAL};
use shared::message::{
    AwaitCheckpoint, Checkpoint, CheckpointRequest, CheckpointVerdict, GenerationRequest, Ping,
    Reopen, Verdict,
};

fn checkpoint(tag: Option<&str>, timeout_ms: Option<u64>) -> Message {
    Message::CheckpointRequest(CheckpointRequest {
        tag: tag.map(str::to_owned),
        timeout_ms,
    })
}

fn wait_for(tag: Option<&str>) -> Message {
    Message::AwaitCheckpoint(AwaitCheckpoint {
        tag: tag.map(str::to_owned),
    })
}

fn generation_after(from: Option<Generation>) -> Message {
    Message::GenerationRequest(GenerationRequest { from })
}

fn verdict(verdict: Verdict, generation: Option<Generation>) -> Message {
    Message::Verdict(CheckpointVerdict {
        verdict,
        generation,
    })
}

/// A snapshot: the guest is silent, and wakes up with a new generation.
fn cut(world: &mut World, generation: Generation, cause: Cause) {
    let control = world.connect();
    let quiesced = world.ask(control, &quiesce(Policy::Keep));
    assert_eq!(quiesced, [Message::Quiesced(TOKEN)]);
    // Hours later, as far as a clone can tell.
    world.now += Duration::from_secs(3600);
    let host = world.connect();
    let answer = world.ask(host, &rebind(generation, cause));
    assert!(matches!(answer[..], [Message::Rebound(_)]), "{answer:?}");
}

fn prove(world: &mut World, generation: Generation) {
    let host = world.connect();
    let answer = world.ask(host, &probe(generation, Depth::Listener));
    assert!(matches!(answer[..], [Message::Probed(_)]), "{answer:?}");
    world.end(host, Ended::ByPeer);
}

#[test]
fn the_verdict_is_the_cause_of_the_rebind_and_comes_after_the_probe() {
    for (cause, expected) in [
        (Cause::Resume, Verdict::Source),
        (Cause::Restore, Verdict::Clone),
    ] {
        let mut world = World::with_generation(G);
        prove(&mut world, G);
        let waiting = [world.connect_local(), world.connect_local()];
        let first = world.ask(waiting[0], &checkpoint(Some("a"), Some(1000)));
        assert!(first.is_empty());
        assert!(world.ask(waiting[1], &checkpoint(None, None)).is_empty());
        cut(&mut world, H, cause);
        for id in waiting {
            assert!(world.receive(id).is_empty(), "not before the probe");
        }
        prove(&mut world, H);
        for id in waiting {
            assert_eq!(world.receive(id), [verdict(expected, Some(H))]);
            assert!(!world.is_closed(id));
        }
        assert_eq!(world.agent.poll_timeout(), None);
        // It may wait again.
        assert!(world.ask(waiting[0], &checkpoint(None, None)).is_empty());
    }
}

#[test]
fn without_a_probe_the_verdict_comes_a_little_later() {
    let mut world = World::with_generation(G);
    prove(&mut world, G);
    let waiting = world.connect_local();
    world.ask(waiting, &checkpoint(None, None));
    cut(&mut world, H, Cause::Restore);
    world.pass(LOG_HOLD_TIMEOUT);
    let expected = verdict(Verdict::Clone, Some(H));
    assert_eq!(world.receive(waiting), [expected]);
}

#[test]
fn a_wait_without_a_snapshot_is_cold() {
    let mut world = World::new();
    let waiting = world.connect_local();
    world.ask(waiting, &checkpoint(None, Some(500)));
    // Neither a boot nor a QUIESCE that is taken back is a snapshot.
    let host = world.connect();
    world.ask(host, &rebind(G, Cause::Boot));
    prove(&mut world, G);
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.pass(Duration::from_secs(1));
    assert!(world.receive(waiting).is_empty(), "its time stands still");
    world.ask(control, &Message::Reopen(Reopen { token: TOKEN }));
    world.pass(Duration::from_millis(499));
    assert!(world.receive(waiting).is_empty());
    world.pass(Duration::from_millis(1));
    let cold = verdict(Verdict::Cold, Some(G));
    assert_eq!(world.receive(waiting), [cold]);
}

#[test]
fn a_clone_that_is_rebound_twice_stays_a_clone() {
    let mut world = World::with_generation(G);
    prove(&mut world, G);
    let waiting = world.connect_local();
    world.ask(waiting, &checkpoint(None, None));
    cut(&mut world, H, Cause::Restore);
    let again = Generation::from_bytes([5; 16]);
    let host = world.connect();
    world.ask(host, &rebind(again, Cause::Resume));
    prove(&mut world, again);
    let expected = verdict(Verdict::Clone, Some(again));
    assert_eq!(world.receive(waiting), [expected]);
}

#[test]
fn a_host_hears_of_the_checkpoint_that_it_waits_for() {
    let told = |tag: &str, left_ms| {
        Message::Checkpoint(Checkpoint {
            tag: Some(tag.to_owned()),
            left_ms,
        })
    };
    let mut world = World::with_generation(G);
    let [host, other, late] = [world.connect(), world.connect(), world.connect()];
    for id in [host, other] {
        let tag = (id == host).then_some("a");
        let answer = world.ask(id, &wait_for(tag));
        assert!(matches!(answer[..], [Message::Progress(_)]), "{answer:?}");
    }
    let waiting = world.connect_local();
    world.ask(waiting, &checkpoint(Some("b"), Some(10_000)));
    assert!(world.receive(host).is_empty(), "another tag");
    assert_eq!(world.receive(other), [told("b", Some(10_000))]);
    world.pass(PROGRESS_INTERVAL);
    let signs = world.receive(host);
    assert!(matches!(signs[..], [Message::Progress(_)]), "{signs:?}");
    assert!(world.receive(other).is_empty(), "it waits no more");
    let left = told("b", Some(9000));
    assert_eq!(world.ask(late, &wait_for(Some("b"))), [left]);
    let second = world.connect_local();
    world.ask(second, &checkpoint(Some("a"), None));
    assert_eq!(world.receive(host), [told("a", None)]);
    world.pass(PROGRESS_INTERVAL);
    assert!(world.receive(host).is_empty());
}

#[test]
fn a_closed_connection_waits_no_more() {
    let mut world = World::with_generation(G);
    prove(&mut world, G);
    let waiting = world.connect_local();
    world.ask(waiting, &checkpoint(None, Some(500)));
    world.end(waiting, Ended::ByPeer);
    assert_eq!(world.agent.poll_timeout(), None);
    let hosts: Vec<_> = (0..=HOSTS_MAX).map(|_| world.connect()).collect();
    for host in &hosts[..HOSTS_MAX] {
        let answer = world.ask(*host, &wait_for(None));
        assert!(matches!(answer[..], [Message::Progress(_)]), "{answer:?}");
    }
    let refused = world.ask(hosts[HOSTS_MAX], &wait_for(None));
    assert_eq!(fail_code(&refused), FailCode::Limit);
    for host in hosts {
        world.end(host, Ended::ByPeer);
    }
    world.pass(PROGRESS_INTERVAL);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn new_generations_end_waits_for_them() {
    let mut world = World::new();
    let [first, second] = [world.connect_local(), world.connect_local()];
    assert!(world.ask(first, &generation_after(None)).is_empty());
    let again = world.ask(first, &generation_after(None));
    assert_eq!(fail_code(&again), FailCode::Limit);
    let host = world.connect();
    world.ask(host, &rebind(G, Cause::Boot));
    assert!(world.receive(first).is_empty(), "not before the probe");
    prove(&mut world, G);
    assert_eq!(world.receive(first), [Message::Generation(G)]);
    let written = world.actions.iter();
    let written = written.filter(|it| matches!(it, Action::WriteGeneration(_)));
    assert_eq!(written.collect::<Vec<_>>(), [&Action::WriteGeneration(G)]);

    assert_eq!(
        world.ask(first, &generation_after(Some(H))),
        [Message::Generation(G)]
    );
    assert!(world.ask(first, &generation_after(Some(G))).is_empty());
    assert!(world.ask(second, &generation_after(None)).is_empty());
    cut(&mut world, H, Cause::Restore);
    prove(&mut world, H);
    for id in [first, second] {
        assert_eq!(world.receive(id), [Message::Generation(H)]);
    }
}

#[test]
fn programs_of_the_machine_may_wait_and_nothing_else() {
    let mut world = World::with_generation(G);
    let ping = Message::Ping(Ping { nonce: 1 });
    let local = world.connect_local();
    let pong = Message::Pong(Ping { nonce: 1 });
    assert_eq!(world.ask(local, &ping), [pong]);
    for request in [
        exec(1),
        rebind(H, Cause::Boot),
        quiesce(Policy::Keep),
        Message::InfoRequest,
        wait_for(None),
    ] {
        let local = world.connect_local();
        assert_eq!(fail_code(&world.ask(local, &request)), FailCode::Protocol);
    }
    for request in [checkpoint(None, None), generation_after(None)] {
        let host = world.connect();
        let refused = world.ask(host, &request);
        assert_eq!(fail_code(&refused), FailCode::Protocol, "{request:?}");
    }
    let host = world.accept();
    let wrong = world.ask(host, &Message::Hello(Hello::of(Role::Local, "test")));
    assert_eq!(fail_code(&wrong), FailCode::Protocol);
}

#[test]
fn programs_of_the_machine_take_no_place_from_hosts() {
    let mut world = World::with_generation(G);
    let served: Vec<_> = (0..LOCAL_CONNECTIONS_MAX)
        .map(|_| world.connect_local())
        .collect();
    let over = world.accept_local().expect("told why");
    assert_eq!(fail_code(&world.receive(over)), FailCode::Limit);
    let host = world.connect();
    let Message::Info(info) = &world.ask(host, &Message::InfoRequest)[0] else {
        panic!("no INFO");
    };
    assert_eq!(info.connections, 1);
    world.end(served[0], Ended::ByPeer);
    world.end(over, Ended::ByPeer);
    world.connect_local();
}
