//! Faults of a session's streams and process, and children whose end is not told.

use super::*;
use crate::agent::sessions::children::{CHECK_PAUSE_MAX, CHECK_PAUSE_MIN};
use crate::agent::sessions::lifetimes::KILL_TIMEOUT;
use shared::message::{Chunk, Fault, FaultPart, StdinEof};

const EIO: i32 = 5;
const ECHILD: i32 = 10;
const TERM: u8 = 15;
const KILL: u8 = 9;

fn fault(part: FaultPart, offset: u64, errno: i32) -> Option<Fault> {
    Some(Fault {
        part,
        offset,
        errno,
    })
}

fn fed(world: &mut World) -> (ConnectionId, i32) {
    running_with(world, &exec_with(1, |exec| exec.stdin = true))
}

/// How often the core has asked for a look at the sources.
fn checks(world: &World) -> usize {
    let is_check = |action: &&Action| **action == Action::CheckSources;
    world.actions.iter().filter(is_check).count()
}

fn fail_input(world: &mut World, pid: i32) {
    let session = world.session_of(pid);
    world.agent.handle_input_failed(session, EIO, world.now);
    world.drain_actions();
}

fn fail_output(world: &mut World, session: SessionId, stream: Stream) {
    world
        .agent
        .handle_output_failed(session, stream, EIO, world.now);
    world.drain_actions();
}

#[test]
fn an_input_that_is_cut_is_not_taken_for_whole() {
    let mut world = World::new();
    let (id, pid) = fed(&mut world);
    let session = world.session_of(pid);
    world.inputs.entry(session).or_default().room = Some(3);
    let bytes = b"hello".to_vec();
    world.send(id, &Message::Stdin(Chunk { offset: 0, bytes }));
    world.send(id, &Message::StdinEof(StdinEof { offset: 5 }));
    fail_input(&mut world, pid);
    assert!(world.agent.input_pending(session).is_empty());
    assert_eq!(signals(&world), [(pid, TERM)], "it is told to end");
    let is_closed = |world: &World| world.inputs[&session].is_closed;
    assert!(!is_closed(&world), "closing it would be its end");
    let told = world.receive(id);
    assert!(matches!(told[..], [Message::Window(it)] if it.is_closed));
    // It is not written to any more, and a second fault is not the first.
    fail_output(&mut world, session, Stream::Stderr);
    world.pass(KILL_TIMEOUT);
    assert_eq!(signals(&world), [(pid, TERM), (pid, KILL)]);
    world.finish(pid, 0);
    assert!(is_closed(&world), "now it is closed");
    let exited = exited(&world.receive(id));
    assert_eq!(exited.status, ExitStatus::Code(0));
    assert_eq!(exited.fault, fault(FaultPart::Stdin, 3, EIO));
}

/// A closed input has nothing that could be cut.
#[test]
fn an_input_that_was_closed_has_no_fault() {
    let mut world = World::new();
    let (id, pid) = fed(&mut world);
    world.send(id, &Message::StdinEof(StdinEof { offset: 0 }));
    fail_input(&mut world, pid);
    assert!(signals(&world).is_empty());
    world.finish(pid, 0);
    assert_eq!(exited(&world.receive(id)).fault, None);
}

#[test]
fn an_output_that_is_lost_is_told_with_its_place() {
    for (stream, part) in [
        (Stream::Stdout, FaultPart::Stdout),
        (Stream::Stderr, FaultPart::Stderr),
    ] {
        // The process may have ended before, which leaves nothing to signal.
        for is_reaped in [false, true] {
            let mut world = World::new();
            let (id, pid) = running(&mut world, 1);
            let session = world.session_of(pid);
            world.write(pid, stream, b"four");
            if is_reaped {
                world.reap(pid, ExitStatus::Code(0));
            }
            fail_output(&mut world, session, stream);
            let expected: &[_] = if is_reaped { &[] } else { &[(pid, TERM)] };
            assert_eq!(signals(&world), expected);
            for &stream in Stream::ALL {
                world.agent.handle_output_closed(session, stream, world.now);
            }
            if !is_reaped {
                world.reap(pid, ExitStatus::Code(0));
            }
            world.drain_actions();
            let exited = exited(&world.receive(id));
            assert_eq!(exited.fault, fault(part, 4, EIO));
            assert_eq!(world.agent.poll_timeout(), None);
        }
    }
}

#[test]
fn the_first_look_is_soon_and_the_next_ones_later_and_later() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    let mut pause = CHECK_PAUSE_MIN;
    let mut count = 0;
    while pause < CHECK_PAUSE_MAX {
        world.pass(pause - Duration::from_millis(1));
        assert_eq!(checks(&world), count);
        world.pass(Duration::from_millis(1));
        count += 1;
        assert_eq!(checks(&world), count);
        pause *= 2;
    }
    world.pass(CHECK_PAUSE_MAX * 100);
    assert_eq!(checks(&world), count + 100, "a minute is the longest pause");
    // A command that has closed its outputs is about to end.
    world.close_outputs(pid);
    world.pass(CHECK_PAUSE_MIN);
    assert_eq!(checks(&world), count + 101);
    // Another one that starts begins again, too.
    let (_, other) = running(&mut world, 2);
    world.pass(CHECK_PAUSE_MIN);
    assert_eq!(checks(&world), count + 102);
    world.reap(pid, ExitStatus::Code(0));
    assert_eq!(exited(&world.receive(id)).status, ExitStatus::Code(0));
    world.finish(other, 0);
    assert_eq!(world.agent.poll_timeout(), None, "nothing is left");
}

#[test]
fn a_source_that_failed_is_looked_at_again_without_any_child() {
    let mut world = World::new();
    world.agent.handle_source_failed(world.now);
    assert_eq!(checks(&world), 0);
    world.pass(CHECK_PAUSE_MIN);
    assert_eq!(checks(&world), 1);
    assert_eq!(
        world.agent.poll_timeout(),
        None,
        "once, unless it fails again"
    );
    // The end of the last child leaves the look that is due.
    let (_, pid) = running(&mut world, 1);
    world.agent.handle_source_failed(world.now);
    world.finish(pid, 0);
    world.pass(CHECK_PAUSE_MIN);
    assert_eq!(checks(&world), 2);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn children_that_the_kernel_does_not_know_are_lost() {
    let mut world = World::with_generation(G);
    let (id, pid) = running(&mut world, 1);
    let (prober, request) = (world.connect(), probe(G, Depth::Exec));
    world.ask(prober, &request);
    world.spawn_failure = Some(SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 2,
        text: String::new(),
        stillborn: Some(50),
    });
    let other = world.connect();
    world.ask(other, &exec(2));
    let session = world.session_of(pid);
    let ask = |world: &mut World, are_left| {
        world.agent.handle_reaped_all(are_left, world.now);
        world.drain_actions();
    };
    // One such answer may be wrong.
    ask(&mut world, false);
    ask(&mut world, true);
    ask(&mut world, false);
    assert!(world.receive(id).is_empty());
    world.pass(CHECK_PAUSE_MIN);
    assert_eq!(checks(&world), 1, "it is asked again");
    ask(&mut world, false);
    assert!(signals(&world).is_empty(), "the numbers may be others' now");
    for &stream in Stream::ALL {
        world.agent.handle_output_closed(session, stream, world.now);
    }
    world.drain_actions();
    let exited = exited(&world.receive(id));
    assert_eq!(exited.fault, fault(FaultPart::Process, 0, ECHILD));
    assert_eq!(fail_code(&world.receive(prober)), FailCode::Probe);
    assert!(!world.agent.timers.is_set(Timer::Check));
}
