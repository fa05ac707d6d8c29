//! QUIESCE and REOPEN.

use super::*;
use crate::agent::rebind::LOG_HOLD_TIMEOUT;
use crate::agent::rebind::quiesce::{
    BUSY_INTERVAL, CONSOLE_TIMEOUT, SILENCE_INTERVAL, SILENCE_INTERVALS,
};
use shared::message::{Reopen, Sever, SeverReason};

const SILENCE: Duration =
    Duration::from_secs(SILENCE_INTERVAL.as_secs() * SILENCE_INTERVALS as u64);

const REOPEN: Message = Message::Reopen(Reopen { token: TOKEN });

#[test]
fn keep_severs_all_others_and_the_guest_is_silent() {
    let mut world = World::with_generation(G);
    let worker = world.connect();
    world.ask(worker, &exec(1));
    let control = world.connect();
    assert_eq!(
        world.ask(control, &quiesce(Policy::Keep)),
        [Message::Quiesced(TOKEN)]
    );
    let severed = Message::Sever(Sever {
        reason: SeverReason::Quiesce,
    });
    assert_eq!(world.receive(worker), [severed]);
    assert!(world.is_closed(worker) && !world.is_closed(control));
    assert!(world.agent.is_silent());
    assert_eq!(world.agent.state(), State::Quiesced);
    // New work is refused, and the session is still there for the next generation.
    let late = world.connect();
    assert_eq!(fail_code(&world.ask(late, &exec(2))), FailCode::Refusing);
    assert_eq!(
        fail_code(&world.ask(late, &probe(G, Depth::Exec))),
        FailCode::Refusing
    );
    assert!(matches!(
        world.ask(late, &rebind(H, Cause::Restore))[..],
        [Message::Rebound(_)]
    ));
    assert!(world.agent.is_silent(), "the probe has not come yet");
    world.pass(LOG_HOLD_TIMEOUT);
    assert!(!world.agent.is_silent());
    assert!(matches!(
        world.ask(late, &exec(1))[..],
        [Message::Started(_)]
    ));
}

#[test]
fn a_slow_reader_is_waited_for_and_then_cut() {
    let mut world = World::new();
    let slow = world.connect();
    world.peers.get_mut(&slow).unwrap().room = Some(0);
    let control = world.connect();
    assert!(world.ask(control, &quiesce(Policy::Keep)).is_empty());
    world.pass(LINGER_TIMEOUT);
    assert_eq!(world.receive(control), [Message::Quiesced(TOKEN)]);
    assert!(world.is_closed(slow));
}

#[test]
fn the_console_is_waited_for_with_a_limit() {
    let mut world = World::new();
    world.is_console_drained = false;
    let control = world.connect();
    assert!(world.ask(control, &quiesce(Policy::Keep)).is_empty());
    assert!(
        world.agent.is_silent(),
        "nothing may be added while it drains"
    );
    world.pass(Duration::from_millis(50));
    world.is_console_drained = true;
    world.pass(Duration::from_millis(1));
    assert_eq!(world.receive(control), [Message::Quiesced(TOKEN)]);

    let mut world = World::new();
    world.is_console_drained = false;
    let control = world.connect();
    world.send(control, &quiesce(Policy::Keep));
    world.pass(CONSOLE_TIMEOUT);
    assert_eq!(fail_code(&world.receive(control)), FailCode::Refusing);
    assert_eq!(world.agent.state(), State::Running);
}

#[test]
fn refuse_and_drain_look_at_sessions() {
    let mut world = World::new();
    let worker = world.connect();
    world.ask(worker, &exec(1));
    let pid = world.pid();
    let control = world.connect();
    assert_eq!(
        fail_code(&world.ask(control, &quiesce(Policy::Refuse))),
        FailCode::Refusing
    );
    assert_eq!(world.agent.state(), State::Running);

    let answer = world.ask(control, &quiesce(Policy::Drain));
    assert!(matches!(&answer[..], [Message::Busy(busy)] if busy.sessions == [1]));
    assert_eq!(fail_code(&world.ask(control, &exec(2))), FailCode::Refusing);
    world.pass(BUSY_INTERVAL * 2);
    assert_eq!(world.receive(control).len(), 2, "one BUSY a second");
    world.finish(pid, 0);
    assert_eq!(world.receive(control), [Message::Quiesced(TOKEN)]);
    assert!(matches!(
        world.receive(worker)[..],
        [Message::Exited(_), Message::Sever(_)]
    ));
}

#[test]
fn draining_ends_at_its_limit() {
    let mut world = World::new();
    let worker = world.connect();
    world.ask(worker, &exec(1));
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Drain));
    world.pass(Duration::from_secs(10));
    let received = world.receive(control);
    let [.., Message::Fail(fail)] = &received[..] else {
        panic!("{received:?}")
    };
    assert_eq!(
        (fail.code, fail.phase.as_deref()),
        (FailCode::Refusing, Some("drain"))
    );
    assert_eq!(world.agent.state(), State::Running);
    assert!(!world.is_closed(worker), "the session was left alone");
    assert_eq!(world.agent.poll_timeout_but_checks(), None);
}

#[test]
fn the_same_token_joins_and_another_is_refused() {
    let mut world = World::new();
    let first = world.connect();
    world.send(first, &quiesce(Policy::Keep));
    let second = world.connect();
    assert_eq!(
        world.ask(second, &quiesce(Policy::Keep)),
        [Message::Quiesced(TOKEN)]
    );
    let mut other = quiesce(Policy::Keep);
    if let Message::Quiesce(quiesce) = &mut other {
        quiesce.token = Token::from_bytes([8; 16]);
    }
    assert_eq!(fail_code(&world.ask(second, &other)), FailCode::Refusing);
}

#[test]
fn reopen_is_answered_again_and_only_for_its_token() {
    let mut world = World::with_generation(G);
    let control = world.connect();
    assert_eq!(fail_code(&world.ask(control, &REOPEN)), FailCode::Refusing);
    world.ask(control, &quiesce(Policy::Keep));
    assert_eq!(world.ask(control, &REOPEN), [Message::Ok]);
    assert_eq!(world.ask(control, &REOPEN), [Message::Ok]);
    assert_eq!(
        (world.agent.state(), world.agent.generation()),
        (State::Running, Some(G))
    );
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_forgotten_guest_reopens_under_its_old_generation() {
    let mut world = World::with_generation(G);
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.pass(SILENCE - Duration::from_millis(1));
    world.ask(control, &Message::InfoRequest);
    world.pass(SILENCE - Duration::from_millis(1));
    assert_eq!(
        world.agent.state(),
        State::Quiesced,
        "a word from the host starts the wait anew"
    );
    world.pass(Duration::from_millis(1));
    assert_eq!(
        (world.agent.state(), world.agent.generation()),
        (State::Running, Some(G))
    );
    assert_eq!(world.agent.poll_timeout(), None);
}

/// A clone can find that hours have passed before its host had time for one frame.
#[test]
fn a_clock_that_jumps_neither_reopens_nor_abandons() {
    let mut world = World::with_generation(G);
    let worker = world.connect();
    world.ask(worker, &exec(1));
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.now += Duration::from_secs(24 * 3600);
    world.agent.handle_timeout(world.now);
    world.drain_actions();
    assert_eq!(world.agent.state(), State::Quiesced);
    let host = world.connect();
    world.ask(host, &rebind(H, Cause::Restore));
    let again = world.connect();
    assert!(matches!(
        world.ask(again, &exec(1))[..],
        [Message::Started(_)]
    ));
    let signalled = |action: &Action| matches!(action, Action::SignalGroup { .. });
    assert!(!world.actions.iter().any(signalled), "the command runs on");
}

#[test]
fn a_host_that_connects_while_the_console_drains_is_severed_too() {
    let mut world = World::new();
    world.is_console_drained = false;
    let control = world.connect();
    world.send(control, &quiesce(Policy::Keep));
    let late = world.connect();
    world.pass(Duration::from_millis(2));
    assert!(world.is_closed(late));
    world.is_console_drained = true;
    world.pass(Duration::from_millis(2));
    assert_eq!(world.receive(control), [Message::Quiesced(TOKEN)]);
}

#[test]
fn draining_ends_with_a_command_that_could_not_be_started() {
    let mut world = World::new();
    let (worker, control) = (world.connect(), world.connect());
    let text = "no".to_owned();
    let failure = SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 2,
        text,
        stillborn: None,
    };
    world.spawn_failure = Some(failure);
    world
        .agent
        .handle_bytes(worker, &exec(1).encode(), world.now);
    world
        .agent
        .handle_bytes(control, &quiesce(Policy::Drain).encode(), world.now);
    world.drain_actions();
    assert!(matches!(
        world.receive(control)[..],
        [Message::Busy(_), Message::Quiesced(_)]
    ));
}

#[test]
fn the_connection_that_asks_keeps_no_command_of_its_own() {
    for request in [quiesce(Policy::Keep), rebind(H, Cause::Resume)] {
        let mut world = World::new();
        let id = world.connect();
        world.ask(id, &exec(1));
        let pid = world.pid();
        world.ask(id, &request);
        world.write(pid, Stream::Stdout, b"later");
        assert!(world.receive(id).is_empty(), "its output waits in the ring");
    }
}
