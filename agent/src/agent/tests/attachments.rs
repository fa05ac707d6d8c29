//! ATTACH, ACK, GAP and EXIT_ACK: which connection gets which bytes of a session.

use super::*;
use shared::message::{Chunk, ExitAck, Gap, Started};

const ONE: SessionRef = SessionRef::Number(1);

fn end_ack(session: u64) -> Message {
    Message::ExitAck(ExitAck { session })
}

#[track_caller]
fn attached(messages: &[Message]) -> Started {
    match messages {
        [Message::Attached(started), ..] => *started,
        other => panic!("expected ATTACHED, got {other:?}"),
    }
}

fn counter(world: &mut World, name: &str) -> u64 {
    let id = world.connect();
    let answer = world.ask(id, &Message::InfoRequest);
    world.end(id, Ended::ByPeer);
    match &answer[..] {
        [Message::Info(info)] => info.counters[name],
        other => panic!("{other:?}"),
    }
}

#[test]
fn observers_get_a_copy_and_change_nothing() {
    let mut world = World::new();
    let (owner, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"before ");
    let names = [ONE, SessionRef::Exec(exec_id(1))];
    let observers = names.map(|name| {
        let id = world.connect();
        let answer = world.ask(id, &attach(name, AttachMode::Observe, None));
        assert_eq!(
            (attached(&answer).session, attached(&answer).fresh),
            (1, false)
        );
        assert_eq!(stdout_of(&answer).1, b"before ");
        id
    });
    world.write(pid, Stream::Stdout, b"after");
    for id in observers {
        world.send(id, &ack(Stream::Stdout, 12));
        assert_eq!(stdout_of(&world.receive(id)), (7, b"after".to_vec()));
    }
    let session = world.session_of(pid);
    let kept = world
        .agent
        .sessions
        .get(session)
        .expect("running")
        .kept_len();
    assert_eq!(kept, 12, "an observer's ACK frees nothing");
    world.end(observers[0], Ended::ByPeer);
    assert!(
        signals(&world).is_empty(),
        "an observer that leaves ends nothing"
    );
    assert_eq!(stdout_of(&world.receive(owner)).1, b"before after");
    world.finish(pid, 3);
    let end = exited(&world.receive(owner));
    assert_eq!(exited(&world.receive(observers[1])), end);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_waiting_connection_gets_the_end_only() {
    let mut world = World::new();
    let (_, pid) = running(&mut world, 1);
    let waiter = world.connect();
    assert_eq!(
        world
            .ask(waiter, &attach(ONE, AttachMode::Wait, None))
            .len(),
        1
    );
    world.write(pid, Stream::Stdout, b"output");
    assert!(world.receive(waiter).is_empty());
    world.finish(pid, 9);
    assert_eq!(exited(&world.receive(waiter)).status, ExitStatus::Code(9));
    // And again, now that it has ended; the connection is free.
    let answer = world.ask(waiter, &attach(ONE, AttachMode::Wait, None));
    assert_eq!((answer.len(), exited(&answer).stdout_end), (2, 6));
}

#[test]
fn a_client_that_was_cut_continues_at_the_byte() {
    let mut world = World::new();
    let (first, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"0123456789");
    world.send(first, &ack(Stream::Stdout, 3));
    world.end(first, Ended::ByReset);
    world.write(pid, Stream::Stdout, b"abc");
    let again = exec_with(1, |exec| exec.stdout_from = 5);
    let second = world.connect();
    let answer = world.ask(second, &again);
    let [Message::Started(started), ..] = answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!((started.fresh, started.stdout_from), (false, 5));
    assert_eq!(stdout_of(&answer), (5, b"56789abc".to_vec()));
    // The requested offsets acknowledged what comes before them.
    world.end(second, Ended::ByReset);
    let third = world.connect();
    let answer = world.ask(third, &attach(ONE, AttachMode::Own, Some(0)));
    let gap = Gap {
        stream: Stream::Stdout,
        from: 0,
        to: 5,
    };
    assert_eq!(attached(&answer).stdout_from, 0);
    assert_eq!(answer[1], Message::Gap(gap));
    assert_eq!(stdout_of(&answer).0, 5);
    assert_eq!(counter(&mut world, "gaps"), 1);
}

#[test]
fn an_offset_behind_the_end_is_the_end() {
    let mut world = World::new();
    let (first, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"abc");
    world.end(first, Ended::ByReset);
    let id = world.connect();
    let answer = world.ask(id, &attach(ONE, AttachMode::Own, Some(99)));
    assert_eq!((answer.len(), attached(&answer).stdout_from), (1, 3));
}

#[test]
fn there_is_one_owner_and_the_later_connection_is_it() {
    let mut world = World::new();
    let early = world.connect();
    let (owner, pid) = running(&mut world, 1);
    let late = world.connect();
    assert_eq!(
        fail_code(&world.ask(early, &attach(ONE, AttachMode::Own, None))),
        FailCode::Superseded
    );
    assert!(world.is_closed(early) && !world.is_closed(owner));
    attached(&world.ask(late, &attach(ONE, AttachMode::Own, None)));
    assert_eq!(fail_code(&world.receive(owner)), FailCode::Superseded);
    assert!(world.is_closed(owner));
    assert!(signals(&world).is_empty());
    world.write(pid, Stream::Stdout, b"x");
    assert_eq!(stdout_of(&world.receive(late)).1, b"x");
    assert_eq!(counter(&mut world, "superseded"), 2);
}

#[test]
fn attaching_needs_a_session_and_the_current_generation() {
    let mut world = World::with_generation(G);
    running(&mut world, 1);
    let id = world.connect();
    let names = [
        SessionRef::Number(2),
        SessionRef::Number(0),
        SessionRef::Exec(exec_id(2)),
        SessionRef::Workload,
    ];
    for name in names {
        let answer = world.ask(id, &attach(name, AttachMode::Wait, None));
        assert_eq!(fail_code(&answer), FailCode::NoSession, "{name}");
    }
    let mut request = attach(ONE, AttachMode::Wait, None);
    if let Message::Attach(attach) = &mut request {
        attach.generation = Some(H);
    }
    assert_eq!(fail_code(&world.ask(id, &request)), FailCode::Stale);
    attached(&world.ask(id, &attach(ONE, AttachMode::Wait, None)));
    let answer = world.ask(id, &attach(ONE, AttachMode::Wait, None));
    assert_eq!(fail_code(&answer), FailCode::Limit, "one session at a time");
}

#[test]
fn a_forgotten_request_is_not_run_again() {
    let mut world = World::new();
    let id = world.connect();
    for change in [
        |exec: &mut Exec| exec.stdout_from = 1,
        |exec: &mut Exec| exec.stderr_from = 1,
    ] {
        let answer = world.ask(id, &exec_with(1, change));
        assert_eq!(fail_code(&answer), FailCode::NoSession);
    }
    assert!(world.processes.is_empty());
}

#[test]
fn an_ack_of_what_was_not_sent_ends_the_connection() {
    for (mode, offset, is_mistake) in [
        (AttachMode::Own, 3, false),
        (AttachMode::Own, 4, true),
        (AttachMode::Observe, 3, false),
        (AttachMode::Observe, 4, true),
    ] {
        let mut world = World::new();
        let (_, pid) = running(&mut world, 1);
        let id = world.connect();
        world.ask(id, &attach(ONE, mode, None));
        world.write(pid, Stream::Stdout, b"abc");
        world.receive(id);
        world.send(id, &ack(Stream::Stdout, offset));
        assert_eq!(world.is_closed(id), is_mistake, "{mode} {offset}");
        assert_eq!(counter(&mut world, "mistakes"), u64::from(is_mistake));
    }
    let mut world = World::new();
    let id = world.connect();
    let answer = world.ask(id, &ack(Stream::Stdout, 0));
    assert_eq!(
        fail_code(&answer),
        FailCode::Protocol,
        "there is no session"
    );
}

/// The end may cross with what the client still sends.
#[test]
fn what_comes_for_a_session_that_has_just_ended_is_ignored() {
    let mut world = World::new();
    let (id, pid) = running_with(&mut world, &exec_with(1, |exec| exec.stdin = true));
    world.write(pid, Stream::Stdout, b"abc");
    world.finish(pid, 0);
    exited(&world.receive(id));
    world.send(id, &ack(Stream::Stdout, 3));
    let bytes = b"late".to_vec();
    world.send(id, &Message::Stdin(Chunk { offset: 0, bytes }));
    world.send(
        id,
        &Message::StdinEof(shared::message::StdinEof { offset: 4 }),
    );
    assert!(world.receive(id).is_empty() && !world.is_closed(id));
    assert!(matches!(world.ask(id, &exec(2))[..], [Message::Started(_)]));
}

#[test]
fn the_oldest_output_gives_way_and_that_is_announced() {
    let mut world = World::new();
    let request = exec_with(1, |exec| exec.output = OutputPolicy::DropOldest);
    let (id, pid) = running_with(&mut world, &request);
    world.peers.get_mut(&id).unwrap().room = Some(0);
    let chunk = vec![b'x'; STREAM_DATA_LEN_MAX];
    let total = 20 * chunk.len() as u64;
    for _ in 0..20 {
        world.write(pid, Stream::Stdout, &chunk);
    }
    world.unblock(id);
    world.finish(pid, 0);
    let received = world.receive(id);
    let mut next = 0;
    let mut gaps = 0;
    for message in &received {
        match message {
            Message::Stdout(chunk) => {
                assert_eq!(chunk.offset, next);
                next += chunk.bytes.len() as u64;
            }
            Message::Gap(gap) => {
                assert_eq!((gap.stream, gap.from), (Stream::Stdout, next));
                next = gap.to;
                gaps += 1;
            }
            _ => {}
        }
    }
    assert_eq!((next, exited(&received).stdout_end), (total, total));
    assert_eq!(gaps, 1, "what fits the ring is there");
}

#[test]
fn a_ring_without_a_reader_stops_one_command_and_no_other() {
    let mut world = World::with_generation(G);
    let (stuck, stuck_pid) = running(&mut world, 1);
    let (quick, quick_pid) = running(&mut world, 2);
    world.end(stuck, Ended::ByReset);
    assert_eq!(world.fill(stuck_pid, Stream::Stderr), RING_LEN_MAX);
    world.write(quick_pid, Stream::Stdout, b"still here");
    assert_eq!(stdout_of(&world.receive(quick)).1, b"still here");
    world.finish(quick_pid, 0);
    exited(&world.receive(quick));
    let prober = world.connect();
    world.ask(prober, &probe(G, Depth::Exec));
    world.reap(world.pid(), ExitStatus::Code(0));
    assert!(matches!(world.receive(prober)[..], [Message::Probed(_)]));
}

#[test]
fn output_is_kept_until_the_end_is_acknowledged() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"abcdef");
    world.send(id, &ack(Stream::Stdout, 2));
    world.finish(pid, 0);
    exited(&world.receive(id));
    let (again, bystander) = (world.connect(), world.connect());
    // An observer's or waiter's acknowledgement changes nothing.
    world.ask(bystander, &attach(ONE, AttachMode::Wait, None));
    world.send(bystander, &end_ack(1));
    let answer = world.ask(again, &attach(ONE, AttachMode::Own, None));
    assert_eq!(attached(&answer).stdout_from, 2);
    assert_eq!(stdout_of(&answer), (2, b"cdef".to_vec()));
    world.send(again, &end_ack(1));
    world.send(again, &end_ack(1));
    let answer = world.ask(again, &attach(ONE, AttachMode::Own, None));
    assert_eq!((answer.len(), attached(&answer).stdout_from), (2, 6));
    assert_eq!(exited(&answer).stdout_end, 6, "the result is still known");
    world.send(again, &end_ack(99));
    assert!(!world.is_closed(again));
}

#[test]
fn a_session_that_ends_with_a_slow_owner_keeps_its_output_for_it() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    // One frame goes out, and a part of the next.
    let room = Chunk::HEADER_LEN + STREAM_DATA_LEN_MAX + 20;
    world.peers.get_mut(&id).unwrap().room = Some(room);
    let written = world.fill(pid, Stream::Stdout);
    world.send(id, &ack(Stream::Stdout, STREAM_DATA_LEN_MAX as u64));
    let written = written + world.fill(pid, Stream::Stdout);
    world.finish(pid, 0);
    assert_eq!(world.agent.sessions.running_count(), 0);
    world.unblock(id);
    let received = world.receive(id);
    assert_eq!(stdout_of(&received).1.len(), written);
    assert_eq!(exited(&received).stdout_end, written as u64);
}

/// Other events may take the bytes from the ring, but not from the frame.
#[test]
fn a_frame_under_way_is_finished() {
    let takers: [fn(&mut World, i32); 3] = [
        // A later owner, which asks for later bytes.
        |world, _| {
            let late = world.connect();
            attached(&world.ask(late, &attach(ONE, AttachMode::Own, Some(100))));
        },
        // A client that acknowledges the end.
        |world, pid| {
            world.finish(pid, 0);
            let stranger = world.connect();
            world.send(stranger, &end_ack(1));
        },
        // A snapshot.
        |world, _| {
            let host = world.connect();
            world.ask(host, &quiesce(Policy::Keep));
        },
    ];
    for taker in takers {
        let mut world = World::new();
        let (owner, pid) = running(&mut world, 1);
        world.peers.get_mut(&owner).unwrap().room = Some(Chunk::HEADER_LEN + 30);
        world.write(pid, Stream::Stdout, &[b'x'; 100]);
        taker(&mut world, pid);
        assert!(world.receive(owner).is_empty());
        world.unblock(owner);
        let received = world.receive(owner);
        assert_eq!(stdout_of(&received[..1]), (0, vec![b'x'; 100]));
        assert_eq!(received.len(), 2, "{received:?}");
    }
}

#[test]
fn a_detached_command_needs_no_client() {
    let mut world = World::new();
    let request = exec_with(1, |exec| {
        exec.detached = true;
        exec.output = OutputPolicy::DropOldest;
    });
    let (id, pid) = running_with(&mut world, &request);
    world.write(pid, Stream::Stdout, b"seen");
    assert_eq!(
        stdout_of(&world.receive(id)).1,
        b"seen",
        "a repeated request observes"
    );
    world.end(id, Ended::ByPeer);
    // An owner may come and leave as well.
    let owner = world.connect();
    world.ask(owner, &attach(ONE, AttachMode::Own, None));
    world.end(owner, Ended::ByPeer);
    world.pass(Duration::from_secs(24 * 3600));
    assert!(signals(&world).is_empty());
    // A repeated request observes again.
    let again = world.connect();
    let answer = world.ask(again, &request);
    assert!(matches!(answer[..], [Message::Started(it), _] if !it.fresh));
    let session = world.session_of(pid);
    assert_eq!(
        world.agent.sessions.get(session).expect("running").owner,
        None
    );
    world.finish(pid, 4);
    assert_eq!(exited(&world.receive(again)).status, ExitStatus::Code(4));
}

/// A client behind a slow terminal must be able to interrupt the command that floods it.
#[test]
fn a_flood_of_output_holds_no_request_back() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    world.peers.get_mut(&id).unwrap().room = Some(0);
    world.fill(pid, Stream::Stdout);
    assert!(world.agent.interest(id).expect("open").readable);
    let signal = shared::message::Signal {
        session: None,
        number: 2,
    };
    world.send(id, &Message::Signal(signal));
    assert_eq!(signals(&world), [(pid, 2)]);
}
