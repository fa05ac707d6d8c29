//! SHUTDOWN and signals.

use super::*;
use crate::agent::ending::FLUSH_TIMEOUT;
use shared::message::{PowerAction, Sever, SeverReason, Shutdown};

const SEVERED: Message = Message::Sever(Sever {
    reason: SeverReason::Shutdown,
});

fn shutdown(action: PowerAction) -> Message {
    Message::Shutdown(Shutdown {
        action,
        grace_ms: 2_000,
    })
}

fn end_of(world: &World) -> Option<End> {
    world.actions.iter().find_map(|action| match action {
        Action::End(end) => Some(*end),
        _ => None,
    })
}

#[test]
fn all_clients_are_told_and_an_idle_guest_ends_at_once() {
    let mut world = World::new();
    let (other, id) = (world.connect(), world.connect());
    let answer = world.ask(id, &shutdown(PowerAction::PowerOff));
    assert_eq!(answer, [Message::Ok, SEVERED]);
    assert_eq!(world.receive(other), [SEVERED]);
    assert_eq!(end_of(&world), Some(End::PowerOff));
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn sessions_have_their_grace() {
    let mut world = World::with_init(true);
    let worker = world.connect();
    world.ask(worker, &exec(1));
    let pid = world.pid();
    let id = world.connect();
    world.send(id, &shutdown(PowerAction::Reboot));
    let term = Action::SignalGroup {
        group: pid,
        number: EndSignal::Terminate.number(),
    };
    let kill = Action::SignalGroup {
        group: pid,
        number: EndSignal::Kill.number(),
    };
    assert!(world.actions.contains(&term));
    assert!(
        world
            .actions
            .contains(&Action::SignalEveryone(EndSignal::Terminate))
    );
    world.pass(Duration::from_millis(1_999));
    assert!(!world.actions.contains(&kill));
    assert_eq!(end_of(&world), None);
    world.pass(Duration::from_millis(1));
    assert!(world.actions.contains(&kill));
    // Its client would get its end. What is killed ends soon, or is not waited for.
    assert_eq!(end_of(&world), None);
    world.pass(FLUSH_TIMEOUT);
    assert_eq!(end_of(&world), Some(End::Reboot));
}

/// For each way in which a command ends after it was told to: its client gets its last output and
/// its end before the connection is cut.
#[test]
fn what_a_command_does_when_it_is_told_to_end_reaches_its_client() {
    for is_killed in [false, true] {
        let mut world = World::new();
        let (worker, pid) = running(&mut world, 1);
        let waiter = world.connect();
        world.ask(
            waiter,
            &attach(SessionRef::Number(1), AttachMode::Wait, None),
        );
        let id = world.connect();
        let answer = world.ask(id, &shutdown(PowerAction::PowerOff));
        assert_eq!(answer, [Message::Ok, SEVERED]);
        assert_eq!(world.receive(worker), []);
        world.write(pid, Stream::Stdout, b"last");
        if is_killed {
            world.pass(Duration::from_secs(2));
        }
        assert_eq!(end_of(&world), None);
        world.finish(pid, 7);
        let received = world.receive(worker);
        assert_eq!(stdout_of(&received).1, b"last");
        let [.., Message::Exited(exited), last] = &received[..] else {
            panic!("{received:?}")
        };
        assert_eq!((exited.status, last), (ExitStatus::Code(7), &SEVERED));
        let received = world.receive(waiter);
        assert!(matches!(
            received[..],
            [Message::Exited(_), Message::Sever(_)]
        ));
        assert_eq!(end_of(&world), Some(End::PowerOff));
        assert_eq!(world.agent.poll_timeout(), None);
    }
}

/// Neither a client that does not read nor a command that does not end holds the machine up.
#[test]
fn a_client_that_does_not_read_is_told_so_much_later() {
    let mut world = World::new();
    let (worker, pid) = running(&mut world, 1);
    world.peers.get_mut(&worker).unwrap().room = Some(0);
    world.write(pid, Stream::Stdout, b"last");
    let id = world.connect();
    world.send(id, &shutdown(PowerAction::PowerOff));
    world.finish(pid, 0);
    world.pass(FLUSH_TIMEOUT);
    assert_eq!(end_of(&world), None);
    world.pass(FLUSH_TIMEOUT);
    assert_eq!(end_of(&world), Some(End::PowerOff));
}

#[test]
fn a_peer_that_does_not_read_delays_the_end_only_so_long() {
    let mut world = World::new();
    let slow = world.connect();
    world.peers.get_mut(&slow).unwrap().room = Some(0);
    let id = world.connect();
    world.send(id, &shutdown(PowerAction::PowerOff));
    assert_eq!(end_of(&world), None);
    world.pass(FLUSH_TIMEOUT);
    assert_eq!(end_of(&world), Some(End::PowerOff));
}

#[test]
fn signals_mean_the_same() {
    let cases = [
        (false, Signal::End, End::PowerOff),
        (false, Signal::Interrupt, End::PowerOff),
        (true, Signal::End, End::PowerOff),
        (true, Signal::Interrupt, End::Reboot),
    ];
    for (is_init, signal, end) in cases {
        let mut world = World::with_init(is_init);
        world.agent.handle_signal(signal, world.now);
        world.drain_actions();
        assert_eq!(end_of(&world), Some(end));
        assert_eq!(
            world
                .actions
                .contains(&Action::SignalEveryone(EndSignal::Kill)),
            is_init
        );
        // A second one changes nothing.
        world.agent.handle_signal(Signal::Interrupt, world.now);
        world.drain_actions();
        let ends = world
            .actions
            .iter()
            .filter(|action| matches!(action, Action::End(_)));
        assert_eq!(ends.count(), 1);
    }
}

#[test]
fn whatever_is_under_way_gives_way() {
    let mut world = World::new();
    world.is_console_drained = false;
    let control = world.connect();
    world.send(control, &quiesce(Policy::Keep));
    let id = world.connect();
    world.send(id, &shutdown(PowerAction::PowerOff));
    world.pass(Duration::from_secs(1));
    assert_eq!(
        (world.agent.state(), end_of(&world)),
        (State::Ending, Some(End::PowerOff))
    );
}
