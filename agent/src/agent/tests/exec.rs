//! EXEC, and the ends of sessions.

use super::*;
use shared::message::{Origin, Signal};

use crate::agent::sessions::exec::GRACE_TIMEOUT;
use crate::agent::sessions::lifetimes::{CUT_KEEP_MIN, KILL_TIMEOUT};

#[test]
fn output_comes_in_order_and_completion_last() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"one");
    world.write(pid, Stream::Stderr, b"two");
    world.write(pid, Stream::Stdout, b"three");
    world.reap(pid, ExitStatus::Code(7));
    world
        .processes
        .insert(pid, Purpose::Session(SessionId::from_number(1)));
    world.close_outputs(pid);
    let received = world.receive(id);
    let chunk = |message: &Message| match message {
        Message::Stdout(chunk) | Message::Stderr(chunk) => Some((chunk.offset, chunk.bytes.len())),
        _ => None,
    };
    let chunks: Vec<_> = received.iter().filter_map(chunk).collect();
    assert_eq!(chunks, [(0, 3), (0, 3), (3, 5)]);
    let exited = exited(&received);
    assert_eq!(
        (exited.status, exited.stdout_end, exited.stderr_end),
        (ExitStatus::Code(7), 8, 3)
    );
    assert!(!exited.writers_alive);
    assert_eq!(
        world.agent.poll_timeout(),
        None,
        "nothing is left to wait for"
    );
}

#[test]
fn output_held_by_another_process_is_waited_for_and_then_given_up() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let session = world.session_of(pid);
    world.reap(pid, ExitStatus::Code(0));
    world.pass(GRACE_TIMEOUT - Duration::from_millis(1));
    assert!(world.receive(id).is_empty());
    world.pass(Duration::from_millis(1));
    assert!(exited(&world.receive(id)).writers_alive);
    assert!(world.actions.contains(&Action::CloseOutput(session)));
}

/// What the command has left in its pipe is its own output, and comes whole. What others write
/// after it is not waited for, however much room there is.
#[test]
fn after_the_grace_only_what_the_command_left_is_read() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let session = world.session_of(pid);
    world.peers.get_mut(&id).unwrap().room = Some(0);
    assert_eq!(world.fill(pid, Stream::Stdout), RING_LEN_MAX);
    world.left.insert(session, [5, 0]);
    world.reap(pid, ExitStatus::Code(0));
    world.pass(GRACE_TIMEOUT * 100);
    assert_eq!(
        world.agent.sessions.running_count(),
        1,
        "its output is not lost"
    );
    world.unblock(id);
    assert!(!world.actions.contains(&Action::ResumeOutput(session)));
    world.send(id, &ack(Stream::Stdout, RING_LEN_MAX as u64));
    assert!(world.actions.contains(&Action::ResumeOutput(session)));
    // One more byte would be read, to see whether the pipe has ended.
    assert_eq!(world.agent.output_room(session, Stream::Stdout), 6);
    world.output(session, Stream::Stdout, b"abcd");
    assert_eq!(world.agent.output_room(session, Stream::Stdout), 2);
    assert_eq!(world.agent.sessions.running_count(), 1);
    world.output(session, Stream::Stdout, b"ey");
    let received = world.receive(id);
    let end = exited(&received);
    assert!(end.writers_alive);
    assert_eq!(end.stdout_end, RING_LEN_MAX as u64 + 6);
    assert_eq!(world.agent.poll_timeout(), None);
}

/// For each way in which the rest of standard output turns out to be all there is. A background
/// process may hold standard error, of which nothing is left to be read.
#[test]
fn the_rest_of_the_output_ends_with_its_pipe() {
    for (is_stderr_held, is_closed, writers_alive) in [
        (false, true, false),
        (false, false, true),
        (true, true, true),
        (true, false, true),
    ] {
        let mut world = World::new();
        let (id, pid) = running(&mut world, 1);
        let session = world.session_of(pid);
        world.peers.get_mut(&id).unwrap().room = Some(0);
        world.fill(pid, Stream::Stdout);
        world.left.insert(session, [3, 0]);
        if !is_stderr_held {
            let stderr = Stream::Stderr;
            world.agent.handle_output_closed(session, stderr, world.now);
        }
        world.reap(pid, ExitStatus::Code(0));
        world.pass(GRACE_TIMEOUT);
        world.unblock(id);
        world.send(id, &ack(Stream::Stdout, RING_LEN_MAX as u64));
        world.output(session, Stream::Stdout, b"abc");
        assert_eq!(world.agent.sessions.running_count(), 1);
        let now = world.now;
        match is_closed {
            true => world
                .agent
                .handle_output_closed(session, Stream::Stdout, now),
            false => world
                .agent
                .handle_output_empty(session, Stream::Stdout, now),
        }
        world.drain_actions();
        let end = exited(&world.receive(id));
        assert_eq!(end.writers_alive, writers_alive);
        assert_eq!(end.stdout_end, RING_LEN_MAX as u64 + 3);
    }
}

/// A background process writes without end, and its reader keeps up.
#[test]
fn a_background_writer_gets_the_grace_once() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let session = world.session_of(pid);
    world.reap(pid, ExitStatus::Code(0));
    let mut offset = 0;
    for _ in 0..9 {
        let len = world
            .agent
            .output_room(session, Stream::Stdout)
            .min(RING_LEN_MAX);
        world.output(session, Stream::Stdout, &vec![b'y'; len]);
        offset += len as u64;
        world.pass(GRACE_TIMEOUT / 10);
        world.send(id, &ack(Stream::Stdout, offset));
    }
    world.pass(GRACE_TIMEOUT / 10);
    assert!(world.actions.contains(&Action::CloseOutput(session)));
    assert!(exited(&world.receive(id)).writers_alive);
}

/// When the command has ended and only its output is still to be read, nothing else can end it.
#[test]
fn a_signal_or_the_time_limit_gives_up_the_rest_of_the_output() {
    for number in [None, Some(1), Some(2), Some(3), Some(9), Some(15), Some(10)] {
        let mut world = World::new();
        let request = exec_with(1, |exec| exec.timeout_ms = Some(60_000));
        let (id, pid) = running_with(&mut world, &request);
        let session = world.session_of(pid);
        world.fill(pid, Stream::Stdout);
        world.left.insert(session, [1, 0]);
        world.reap(pid, ExitStatus::Code(0));
        world.pass(GRACE_TIMEOUT);
        assert_eq!(world.agent.sessions.running_count(), 1);
        match number {
            Some(number) => {
                let session = Some(SessionRef::Number(session.number()));
                let other = world.connect();
                world.ask(other, &Message::Signal(Signal { session, number }));
            }
            None => world.pass(Duration::from_secs(60)),
        }
        if number == Some(10) {
            assert_eq!(world.agent.sessions.running_count(), 1, "USR1 ends nothing");
            continue;
        }
        let end = exited(&world.receive(id));
        assert_eq!(end.timed_out, number.is_none(), "{number:?}");
        assert!(end.writers_alive);
        assert!(signals(&world).is_empty(), "the group may be another's");
    }
}

/// For each thing that an agent cannot vouch for: the command may have run, and does not run now.
#[test]
fn a_request_in_doubt_runs_nothing() {
    let here = Instance::from_bytes([7; 16]);
    let there = Instance::from_bytes([8; 16]);
    let origin = |instance, generation, sessions_begun| {
        Some(Origin {
            instance,
            generation,
            sessions_begun,
        })
    };
    // The guest was bound to G, resumed as H, and has begun two sessions, of which the first is
    // forgotten.
    for (number, origin, is_run) in [
        (9, None, true),
        (9, origin(here, None, 0), true),
        (9, origin(here, Some(G), 0), true),
        (9, origin(here, Some(H), 2), true),
        (9, origin(there, None, 0), false),
        (9, origin(there, Some(H), 2), false),
        (9, origin(here, Some(H), 3), false),
        (
            9,
            origin(here, Some(Generation::from_bytes([9; 16])), 0),
            false,
        ),
        (1, None, false),
        (1, origin(here, None, 0), false),
        (1, origin(here, Some(G), 0), false),
        (2, None, false),
    ] {
        let mut world = World::of(Settings {
            results_max: 1,
            ..settings()
        });
        world.rebind(G, Cause::Boot);
        for number in [1, 2] {
            let (id, pid) = running(&mut world, number);
            world.finish(pid, 0);
            world.end(id, Ended::ByPeer);
        }
        world.rebind(H, Cause::Resume);
        let id = world.connect();
        let answer = world.ask(
            id,
            &exec_with(number, |exec| exec.origin = origin.map(Box::new)),
        );
        match (number, is_run) {
            // Its result is still known.
            (2, _) => assert!(matches!(answer[0], Message::Started(it) if !it.fresh)),
            (_, true) => assert!(matches!(answer[0], Message::Started(it) if it.fresh)),
            (_, false) => assert_eq!(fail_code(&answer), FailCode::Unknown, "{origin:?}"),
        }
        assert_eq!(world.processes.len(), usize::from(is_run), "{origin:?}");
    }
}

/// A clone does not know what its source did after the snapshot.
#[test]
fn a_clone_does_not_answer_for_its_source() {
    let mut world = World::with_generation(G);
    world.rebind(H, Cause::Restore);
    let id = world.connect();
    let before = exec_with(1, |exec| {
        exec.origin = Some(Box::new(Origin {
            instance: Instance::from_bytes([7; 16]),
            generation: Some(G),
            sessions_begun: 0,
        }));
    });
    assert_eq!(fail_code(&world.ask(id, &before)), FailCode::Unknown);
    assert!(world.processes.is_empty());
}

#[test]
fn hello_says_which_instance_it_is_and_how_many_sessions_it_has_begun() {
    let mut world = World::with_generation(G);
    running(&mut world, 1);
    let (_, hello) = world.greet();
    let origin = hello.origin().expect("a guest");
    assert_eq!(origin.instance, Instance::from_bytes([7; 16]));
    assert_eq!((origin.generation, origin.sessions_begun), (Some(G), 1));
}

#[test]
fn a_wrong_generation_runs_nothing() {
    let mut world = World::with_generation(G);
    let id = world.connect();
    let mut request = exec(1);
    if let Message::Exec(exec) = &mut request {
        exec.generation = Some(H);
    }
    assert_eq!(fail_code(&world.ask(id, &request)), FailCode::Stale);
    assert!(world.processes.is_empty());
    if let Message::Exec(exec) = &mut request {
        exec.generation = Some(G);
    }
    assert!(matches!(world.ask(id, &request)[..], [Message::Started(_)]));
}

#[test]
fn a_program_that_cannot_be_started_is_told_apart() {
    let cases = [
        (SpawnStage::Exec, 2, FailCode::NotFound),
        (SpawnStage::Exec, 20, FailCode::NotFound),
        (SpawnStage::Exec, 13, FailCode::NotRunnable),
        (SpawnStage::Exec, 8, FailCode::NotRunnable),
        (SpawnStage::Chdir, 2, FailCode::NotRunnable),
        (SpawnStage::Clone, 11, FailCode::Limit),
        (SpawnStage::SetUp, 1, FailCode::Internal),
        (SpawnStage::User, 1, FailCode::NotRunnable),
    ];
    // EAGAIN, ENOMEM, ENFILE, EMFILE and ENOSPC are shortages, wherever they come from.
    let stages = [
        SpawnStage::Clone,
        SpawnStage::SetUp,
        SpawnStage::User,
        SpawnStage::Chdir,
        SpawnStage::Exec,
    ];
    let of_stage = |stage| [11, 12, 23, 24, 28].map(|errno| (stage, errno, FailCode::Limit));
    let shortages = stages.into_iter().flat_map(of_stage);
    for (stage, errno, code) in cases.into_iter().chain(shortages) {
        let mut world = World::new();
        let id = world.connect();
        let text = "why".to_owned();
        world.spawn_failure = Some(SpawnFailure {
            stage,
            errno,
            text,
            stillborn: Some(50),
        });
        let answer = world.ask(id, &exec(1));
        assert_eq!(fail_code(&answer), code, "{stage:?} {errno}");
        world.reap(50, ExitStatus::Code(127));
        assert_eq!(
            world.agent.children.orphans_reaped(),
            0,
            "the stillborn child is our own"
        );
        // Nothing ran, so the same request may be made again.
        assert!(matches!(world.ask(id, &exec(1))[..], [Message::Started(_)]));
    }
}

#[test]
fn a_known_request_attaches_and_never_runs_twice() {
    let mut world = World::new();
    let (first, pid) = running(&mut world, 1);
    world.write(pid, Stream::Stdout, b"abc");
    let second = world.connect();
    let answer = world.ask(second, &exec(1));
    let [Message::Started(started), Message::Stdout(chunk)] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!((started.fresh, started.stdout_from), (false, 0));
    assert_eq!(chunk.bytes, b"abc");
    assert!(
        world.is_closed(first),
        "the first connection was superseded"
    );
    world.write(pid, Stream::Stdout, b"d");
    world.finish(pid, 5);
    let end = exited(&world.receive(second));
    assert_eq!(end.stdout_end, 4);
    // Again, after it has ended.
    let third = world.connect();
    let answer = world.ask(third, &exec(1));
    let [Message::Started(started), Message::Stdout(chunk), _] = &answer[..] else {
        panic!("{answer:?}")
    };
    assert_eq!((started.fresh, started.pid), (false, 0));
    assert_eq!(chunk.bytes, b"abcd", "it was not acknowledged");
    assert_eq!(exited(&answer), end);
    assert!(world.processes.is_empty());
}

#[test]
fn a_connection_carries_one_command_at_a_time() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    assert_eq!(fail_code(&world.ask(id, &exec(2))), FailCode::Limit);
    world.finish(pid, 0);
    world.receive(id);
    assert!(matches!(world.ask(id, &exec(2))[..], [Message::Started(_)]));
}

#[test]
fn a_client_that_leaves_takes_its_command_with_it() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let session = world.session_of(pid);
    world.end(id, Ended::ByPeer);
    assert_eq!(signals(&world), [(pid, EndSignal::Terminate.number())]);
    assert!(
        world.agent.output_room(session, Stream::Stdout) > 0,
        "its output must not keep it from ending"
    );
    world.pass(KILL_TIMEOUT);
    assert_eq!(signals(&world)[1..], [(pid, EndSignal::Kill.number())]);
    world.finish(pid, 0);
    assert_eq!(world.agent.sessions.running_count(), 0);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_reset_leaves_the_command_running_for_a_while() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let session = world.session_of(pid);
    world.end(id, Ended::ByReset);
    assert_eq!(world.fill(pid, Stream::Stdout), RING_LEN_MAX);
    assert_eq!(
        world.agent.output_room(session, Stream::Stdout),
        0,
        "it waits for a reader"
    );
    world.pass(CUT_KEEP_MIN - Duration::from_millis(1));
    assert!(signals(&world).is_empty());
    let again = world.connect();
    assert!(matches!(
        world.ask(again, &exec(1))[..],
        [Message::Started(_), Message::Stdout(_), ..]
    ));
    world.pass(CUT_KEEP_MIN);
    assert!(signals(&world).is_empty(), "a client returned");
    world.end(again, Ended::ByReset);
    world.pass(CUT_KEEP_MIN);
    assert_eq!(signals(&world), [(pid, EndSignal::Terminate.number())]);
}

#[test]
fn rebind_carries_sessions_on_or_kills_them() {
    for (sessions, expected) in [(InheritedSessions::Keep, 0), (InheritedSessions::Kill, 1)] {
        let mut world = World::new();
        let (old, pid) = running(&mut world, 1);
        world.fill(pid, Stream::Stdout);
        let id = world.connect();
        let mut request = rebind(G, Cause::Resume);
        if let Message::Rebind(rebind) = &mut request {
            rebind.sessions = sessions;
        }
        let answer = world.ask(id, &request);
        let [Message::Rebound(rebound)] = &answer[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(rebound.sessions_dropped, expected);
        assert!(world.is_closed(old));
        let killed = signals(&world) == [(pid, EndSignal::Kill.number())];
        assert_eq!(killed, sessions == InheritedSessions::Kill);
        // A killed command does not wait for a reader; a kept one waits for its client.
        let session = world.session_of(pid);
        assert_eq!(world.agent.output_room(session, Stream::Stdout) > 0, killed);
    }
}

#[test]
fn orphans_are_counted() {
    let mut world = World::new();
    world.reap(4711, ExitStatus::Code(0));
    let id = world.connect();
    let answer = world.ask(id, &Message::InfoRequest);
    assert!(matches!(&answer[..], [Message::Info(info)] if info.orphans_reaped == 1));
}

/// A host that got no answer repeats its request on a second connection while its first is still
/// open. The two requests may be read in either order, and the end of the first connection must not
/// end the command.
#[test]
fn of_two_connections_with_one_request_the_later_wins() {
    let mut world = World::new();
    let first = world.connect();
    let (second, pid) = running(&mut world, 1);
    let answer = world.ask(first, &exec(1));
    assert_eq!(fail_code(&answer), FailCode::Superseded);
    assert!(world.is_closed(first));
    assert!(signals(&world).is_empty(), "the command was told to end");
    world.write(pid, Stream::Stdout, b"still here");
    let received = world.receive(second);
    assert!(matches!(received[..], [Message::Stdout(_)]), "{received:?}");
}
