//! SESSIONS, SIGNAL and RESIZE: sessions as seen from outside.

use super::*;
use shared::limits::PAYLOAD_LEN_MAX;
use shared::message::{SessionState, Sessions, SessionsRequest, Signal as SignalRequest, TtySize};

fn list(world: &mut World, after: u64) -> Sessions {
    let id = world.connect();
    let answer = world.ask(id, &Message::SessionsRequest(SessionsRequest { after }));
    world.end(id, Ended::ByPeer);
    match &answer[..] {
        [Message::Sessions(sessions)] => sessions.clone(),
        other => panic!("{other:?}"),
    }
}

fn signal(session: Option<SessionRef>, number: u8) -> Message {
    Message::Signal(SignalRequest { session, number })
}

#[test]
fn sessions_are_listed_with_what_is_known_of_them() {
    let mut world = World::with_generation(G);
    let (_, first) = running_with(
        &mut world,
        &exec_with(1, |exec| {
            let argument = ByteString::new("two words").expect("no NUL");
            exec.argv.push(argument);
            exec.detached = true;
        }),
    );
    world.write(first, Stream::Stderr, b"oops");
    world.now += Duration::from_millis(1500);
    let (_, second) = running(&mut world, 2);
    world.finish(second, 7);
    let listed = list(&mut world, 0);
    let [one, two] = &listed.sessions[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (one.session, one.id, one.state),
        (1, Some(exec_id(1)), SessionState::Running)
    );
    assert_eq!((one.age_ms, one.generation), (1500, Some(G)));
    assert_eq!(
        (one.command.as_str(), one.detached),
        ("true two words", true)
    );
    assert_eq!((one.attached, one.stderr_end, one.exited), (1, 4, None));
    assert_eq!(one.pid, u32::try_from(first).unwrap());
    assert_eq!(
        (two.session, two.state, two.pid),
        (2, SessionState::Exited, 0)
    );
    assert_eq!(two.exited.map(|it| it.status), Some(ExitStatus::Code(7)));
    assert_eq!((two.attached, listed.more), (0, false));
    let rest = list(&mut world, 1).sessions;
    assert_eq!((rest.len(), rest[0].session), (1, 2));
    assert!(list(&mut world, 2).sessions.is_empty());
    assert!(list(&mut world, u64::MAX).sessions.is_empty());
}

#[test]
fn a_long_list_comes_in_parts_that_fit_a_frame() {
    let mut world = World::new();
    let count = 300;
    for number in 0..count {
        // The longest entry that a command can have in a list and on the wire.
        let request = exec_with(0, |exec| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&u16::to_le_bytes(number));
            exec.id = ExecId::from_bytes(bytes);
            exec.argv = vec![ByteString::new(vec![1; 500]).expect("no NUL")];
        });
        let (id, _) = running_with(&mut world, &request);
        world.end(id, Ended::ByReset);
    }
    let mut numbers = Vec::new();
    loop {
        let after = numbers.last().copied().unwrap_or(0);
        let part = list(&mut world, after);
        assert!(Message::Sessions(part.clone()).encode().len() <= PAYLOAD_LEN_MAX + 8);
        numbers.extend(part.sessions.iter().map(|session| session.session));
        if !part.more {
            break;
        }
        assert!(part.sessions.len() > 20, "a frame holds more than that");
    }
    assert_eq!(numbers, (1..=u64::from(count)).collect::<Vec<_>>());
}

#[test]
fn signals_go_to_the_group_of_the_session_that_is_meant() {
    let mut world = World::new();
    let (one, first) = running(&mut world, 1);
    let (_, second) = running(&mut world, 2);
    let other = world.connect();
    assert_eq!(world.ask(one, &signal(None, 2)), [Message::Ok]);
    assert_eq!(
        world.ask(one, &signal(Some(SessionRef::Number(2)), 15)),
        [Message::Ok]
    );
    let by_request = SessionRef::Exec(exec_id(1));
    assert_eq!(
        world.ask(other, &signal(Some(by_request), 64)),
        [Message::Ok]
    );
    assert_eq!(signals(&world), [(first, 2), (second, 15), (first, 64)]);
    assert_eq!(
        fail_code(&world.ask(other, &signal(None, 2))),
        FailCode::NoSession
    );
    let unknown = signal(Some(SessionRef::Number(3)), 2);
    assert_eq!(fail_code(&world.ask(other, &unknown)), FailCode::NoSession);
    // An ended command gets no signal; its number may be another's.
    world.finish(first, 0);
    world.receive(one);
    assert_eq!(world.ask(one, &signal(None, 9)), [Message::Ok]);
    assert_eq!(
        world.ask(other, &signal(Some(by_request), 9)),
        [Message::Ok]
    );
    assert_eq!(signals(&world).len(), 3);
}

#[test]
fn a_session_that_is_being_started_takes_no_signal_yet() {
    let mut world = World::new();
    let id = world.connect();
    let bytes = [exec(1), signal(None, 15)]
        .map(|message| message.encode())
        .concat();
    world.send_bytes(id, &bytes);
    let received = world.receive(id);
    assert_eq!(fail_code(&received[..1]), FailCode::Refusing);
    assert!(signals(&world).is_empty());
}

/// A host that drains sessions may help one to its end; a silent guest does nothing.
#[test]
fn signals_are_taken_while_sessions_drain() {
    let mut world = World::new();
    let (_, pid) = running(&mut world, 1);
    let (control, other) = (world.connect(), world.connect());
    world.ask(control, &quiesce(Policy::Drain));
    let kill = signal(Some(SessionRef::Number(1)), 9);
    assert_eq!(world.ask(other, &kill), [Message::Ok]);
    assert_eq!(signals(&world), [(pid, 9)]);
    world.finish(pid, 0);
    assert_eq!(world.agent.state(), State::Quiesced);
    let late = world.connect();
    assert_eq!(fail_code(&world.ask(late, &kill)), FailCode::Refusing);
}

#[test]
fn a_size_is_for_the_owner_of_a_terminal() {
    let mut world = World::new();
    let size = TtySize { rows: 5, cols: 6 };
    let (plain, _) = running(&mut world, 1);
    world.send(plain, &Message::Resize(size));
    let with_tty = exec_with(2, |exec| exec.tty = Some(TtySize { rows: 1, cols: 1 }));
    let (owner, pid) = running_with(&mut world, &with_tty);
    let (observer, stranger) = (world.connect(), world.connect());
    world.ask(
        observer,
        &attach(SessionRef::Number(2), AttachMode::Observe, None),
    );
    world.send(observer, &Message::Resize(size));
    world.send(stranger, &Message::Resize(size));
    let resized = |world: &World| {
        let actions = world.actions.iter();
        actions
            .filter(|action| matches!(action, Action::ResizeTty { .. }))
            .count()
    };
    assert_eq!(resized(&world), 0);
    assert!(
        [plain, observer, stranger]
            .iter()
            .all(|id| !world.is_closed(*id))
    );
    world.send(owner, &Message::Resize(size));
    assert_eq!(resized(&world), 1);
    world.reap(pid, ExitStatus::Code(0));
    world.send(owner, &Message::Resize(size));
    assert_eq!(resized(&world), 1);
}

#[test]
fn ping_is_answered_in_every_state() {
    let ping = Message::Ping(shared::message::Ping { nonce: 5 });
    let pong = [Message::Pong(shared::message::Ping { nonce: 5 })];
    let mut world = World::new();
    let id = world.connect();
    assert_eq!(world.ask(id, &ping), pong);
    world.ask(id, &quiesce(Policy::Keep));
    assert_eq!(world.ask(id, &ping), pong);
    world.failing_steps.insert("clock");
    world.ask(id, &rebind(G, Cause::Restore));
    assert_eq!(world.agent.state(), State::Failed(G));
    assert_eq!(world.ask(id, &ping), pong);
}
