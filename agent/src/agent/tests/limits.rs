//! Each limit at its value and one past it.

use super::*;
use crate::agent::rebind::steps::WAITING_MAX;
use shared::limits::EXEC_BYTES_MAX;
use shared::message::Ping;

#[test]
fn one_connection_too_many_is_told_so() {
    let mut world = World::new();
    let mut ids: Vec<_> = (0..CONNECTIONS_MAX).map(|_| world.connect()).collect();
    let refused = world.accept();
    assert_eq!(fail_code(&world.receive(refused)), FailCode::Limit);
    assert!(world.is_closed(refused));
    let gone = ids.pop().expect("one");
    world.end(gone, Ended::ByPeer);
    world.connect();
}

#[test]
fn far_too_many_connections_are_just_closed() {
    let mut world = World::new();
    for _ in 0..CONNECTIONS_MAX {
        world.connect();
    }
    // Refused connections that read nothing stay for a moment; their number is limited, too.
    for _ in 0..REFUSALS_MAX {
        assert!(world.agent.handle_accepted(true, world.now).is_some());
    }
    assert!(world.agent.handle_accepted(true, world.now).is_none());
}

#[test]
fn a_peer_that_is_not_the_host_is_closed_and_counted() {
    let mut world = World::new();
    assert!(world.agent.handle_accepted(false, world.now).is_none());
    let id = world.connect();
    let answer = world.ask(id, &Message::InfoRequest);
    let [Message::Info(info)] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(info.counters["peers_refused"], 1);
}

#[test]
fn one_session_too_many_is_refused() {
    let mut world = World::new();
    let command = |number: usize| {
        let mut request = exec(0);
        if let Message::Exec(exec) = &mut request {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            exec.id = ExecId::from_bytes(bytes);
        }
        request
    };
    let mut ids = Vec::new();
    for number in 0..SESSIONS_MAX {
        // A session survives the reset of its connection, which makes room for the next connection.
        let id = world.connect();
        assert!(matches!(
            world.ask(id, &command(number))[..],
            [Message::Started(_)]
        ));
        world.end(id, Ended::ByReset);
        ids.push(world.pid());
    }
    let id = world.connect();
    assert_eq!(
        fail_code(&world.ask(id, &command(SESSIONS_MAX))),
        FailCode::Limit
    );
    world.finish(ids[0], 0);
    assert!(matches!(
        world.ask(id, &command(SESSIONS_MAX))[..],
        [Message::Started(_)]
    ));
}

#[test]
fn an_exec_over_its_byte_limit_is_refused_in_words() {
    // `true` and its terminator, `/`, and the terminator of the long argument.
    let fits = EXEC_BYTES_MAX - "true\0".len() - 1;
    for (len, is_taken) in [(fits, true), (fits + 1, false)] {
        let mut request = exec(1);
        if let Message::Exec(exec) = &mut request {
            exec.argv
                .push(ByteString::new("x".repeat(len)).expect("no NUL"));
        }
        let mut world = World::new();
        let id = world.connect();
        let answer = world.ask(id, &request);
        if is_taken {
            assert!(matches!(answer[..], [Message::Started(_)]));
        } else {
            assert_eq!(fail_code(&answer), FailCode::Limit);
        }
    }
}

#[test]
fn requests_wait_for_a_peer_that_does_not_read() {
    let mut world = World::new();
    let id = world.connect();
    world.peers.get_mut(&id).unwrap().room = Some(0);
    let pings: Vec<u8> = (0..20_000)
        .flat_map(|nonce| Message::Ping(Ping { nonce }).encode())
        .collect();
    for piece in pings.chunks(64 * 1024) {
        world.send_bytes(id, piece);
        assert!(world.pending(id).len() <= transport::outbox::LEN_MAX);
    }
    let interest = world.agent.interest(id).expect("open");
    assert!(!interest.readable && interest.writable);
    world.unblock(id);
    assert_eq!(world.receive(id).len(), 20_000, "none was lost");
    assert!(world.agent.interest(id).expect("open").readable);
}

#[test]
fn a_full_outbox_stops_one_session_and_no_other() {
    let mut world = World::new();
    let (slow, quick) = (world.connect(), world.connect());
    world.ask(slow, &exec(1));
    let slow_pid = world.pid();
    world.ask(quick, &exec(2));
    let quick_pid = world.pid();
    world.peers.get_mut(&slow).unwrap().room = Some(0);
    let session = world.session_of(slow_pid);
    let written = world.fill(slow_pid, Stream::Stdout);
    assert_eq!(written, RING_LEN_MAX);
    world.write(quick_pid, Stream::Stdout, b"still here");
    assert!(matches!(world.receive(quick)[..], [Message::Stdout(_)]));
    world.unblock(slow);
    let len = |message: &Message| match message {
        Message::Stdout(chunk) => chunk.bytes.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(world.receive(slow).iter().map(len).sum::<usize>(), written);
    world.send(slow, &ack(Stream::Stdout, written as u64));
    assert!(world.actions.contains(&Action::ResumeOutput(session)));
}

#[test]
fn so_many_attempts_may_wait_for_one_rebind() {
    let mut world = World::new();
    let ids: Vec<_> = (0..=WAITING_MAX).map(|_| world.connect()).collect();
    // Handed in before the first step is performed, so that the rebind stays under way.
    let request = rebind(G, Cause::Boot).encode();
    for id in &ids {
        world.agent.handle_bytes(*id, &request, world.now);
    }
    let is_refused = |id: &ConnectionId| {
        let text = String::from_utf8_lossy(&world.pending(*id)).into_owned();
        text.contains(FailCode::Limit.as_str())
    };
    assert!(!ids[..WAITING_MAX].iter().any(is_refused));
    assert!(is_refused(&ids[WAITING_MAX]));
}
