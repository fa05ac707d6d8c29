//! How long sessions live: keep, timeout, TERM and KILL, and session time that stands still.

use shared::message;

use super::*;
use crate::agent::sessions::exec::GRACE_TIMEOUT;
use crate::agent::sessions::lifetimes::{CUT_KEEP_MIN, KILL_TIMEOUT};

const TERM: u8 = EndSignal::Terminate.number();
const KILL: u8 = EndSignal::Kill.number();
const MS: Duration = Duration::from_millis(1);

fn keep(ms: u64) -> Message {
    exec_with(1, |exec| exec.keep_ms = Some(ms))
}

fn timeout(ms: u64) -> Message {
    exec_with(1, |exec| exec.timeout_ms = Some(ms))
}

/// For each way to lose the connection: how long the command then runs on.
#[test]
fn a_command_is_kept_for_its_client_as_long_as_that_asked() {
    let long = CUT_KEEP_MIN * 2;
    let long_ms = u64::try_from(long.as_millis()).expect("small");
    for (ms, ended, kept) in [
        (0, Ended::ByPeer, Duration::ZERO),
        (0, Ended::ByError, Duration::ZERO),
        (0, Ended::ByReset, CUT_KEEP_MIN),
        (3000, Ended::ByPeer, Duration::from_secs(3)),
        (3000, Ended::ByReset, CUT_KEEP_MIN),
        (long_ms, Ended::ByPeer, long),
        (long_ms, Ended::ByReset, long),
    ] {
        let mut world = World::new();
        let (id, pid) = running_with(&mut world, &keep(ms));
        world.end(id, ended);
        if !kept.is_zero() {
            world.pass(kept - MS);
            assert!(signals(&world).is_empty(), "{ms} {ended:?}");
            world.pass(MS);
        }
        assert_eq!(signals(&world), [(pid, TERM)], "{ms} {ended:?}");
        world.pass(KILL_TIMEOUT - MS);
        assert_eq!(signals(&world).len(), 1);
        world.pass(MS);
        assert_eq!(signals(&world)[1..], [(pid, KILL)]);
        world.finish(pid, 0);
        assert_eq!(world.agent.poll_timeout(), None);
    }
}

#[test]
fn a_client_that_returns_in_time_finds_everything() {
    let mut world = World::new();
    let (first, pid) = running_with(&mut world, &keep(10_000));
    world.write(pid, Stream::Stdout, b"ab");
    world.end(first, Ended::ByPeer);
    world.pass(Duration::from_millis(9_999));
    world.write(pid, Stream::Stdout, b"cd");
    let second = world.connect();
    let answer = world.ask(second, &keep(10_000));
    assert_eq!(stdout_of(&answer).1, b"abcd");
    world.pass(Duration::from_secs(3600));
    assert!(signals(&world).is_empty());
    // An observer is not an owner: the wait continues.
    let observer = world.connect();
    world.ask(
        observer,
        &attach(SessionRef::Number(1), AttachMode::Observe, None),
    );
    world.end(second, Ended::ByPeer);
    world.pass(Duration::from_secs(10));
    assert_eq!(signals(&world), [(pid, TERM)]);
}

#[test]
fn a_time_limit_ends_the_group_and_is_told() {
    let mut world = World::new();
    let (id, pid) = running_with(&mut world, &timeout(2000));
    world.pass(Duration::from_millis(1999));
    assert!(signals(&world).is_empty());
    world.pass(MS);
    assert_eq!(signals(&world), [(pid, TERM)]);
    world.write(pid, Stream::Stdout, b"last words");
    world.pass(KILL_TIMEOUT);
    assert_eq!(signals(&world)[1..], [(pid, KILL)]);
    let number = KILL;
    let status = ExitStatus::Signal {
        number,
        core: false,
    };
    world.reap(pid, status);
    assert_eq!(signals(&world)[2..], [(pid, KILL)], "the rest of the group");
    world.pass(GRACE_TIMEOUT);
    let received = world.receive(id);
    assert_eq!(stdout_of(&received).1, b"last words");
    let end = exited(&received);
    assert_eq!((end.timed_out, end.status), (true, status));
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_command_that_ends_in_time_is_not_timed_out() {
    let mut world = World::new();
    let (id, pid) = running_with(&mut world, &timeout(100));
    world.reap(pid, ExitStatus::Code(0));
    world.pass(GRACE_TIMEOUT);
    let end = exited(&world.receive(id));
    assert_eq!((end.timed_out, end.writers_alive), (false, true));
    assert!(signals(&world).is_empty());
}

/// It was told to end because its owner did not return, not because of its time limit.
#[test]
fn the_first_reason_to_end_is_the_one() {
    let mut world = World::new();
    let request = exec_with(1, |exec| {
        exec.timeout_ms = Some(1000);
        exec.keep_ms = Some(500);
    });
    let (id, pid) = running_with(&mut world, &request);
    world.end(id, Ended::ByPeer);
    world.pass(Duration::from_secs(2));
    assert_eq!(signals(&world), [(pid, TERM)]);
    world.finish(pid, 0);
    let again = world.connect();
    let answer = world.ask(again, &request);
    assert!(!exited(&answer).timed_out);
}

#[test]
fn a_limit_beyond_all_time_never_ends() {
    let mut world = World::new();
    let request = exec_with(1, |exec| {
        exec.timeout_ms = Some(u64::MAX);
        exec.keep_ms = Some(u64::MAX);
    });
    let (id, pid) = running_with(&mut world, &request);
    world.end(id, Ended::ByPeer);
    world.pass(Duration::from_secs(24 * 3600));
    assert!(signals(&world).is_empty());
    world.finish(pid, 0);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_command_that_was_told_to_end_waits_for_no_reader() {
    let mut world = World::new();
    let (id, pid) = running(&mut world, 1);
    world.fill(pid, Stream::Stdout);
    let session = world.session_of(pid);
    world.end(id, Ended::ByPeer);
    assert!(world.actions.contains(&Action::ResumeOutput(session)));
    world.write(pid, Stream::Stdout, &[b'y'; 10]);
    world.finish(pid, 0);
    let again = world.connect();
    let answer = world.ask(again, &exec(1));
    assert!(matches!(answer[1], Message::Gap(gap) if (gap.from, gap.to) == (0, 10)));
}

/// Sessions are not charged for the time of a snapshot, and a clone may find that hours have
/// passed.
#[test]
fn session_time_stands_still_between_two_generations() {
    let request = exec_with(1, |exec| {
        exec.timeout_ms = Some(100_000);
        exec.keep_ms = Some(70_000);
    });
    let mut world = World::with_generation(G);
    let (id, pid) = running_with(&mut world, &request);
    world.pass(Duration::from_secs(30));
    world.end(id, Ended::ByPeer);
    world.pass(Duration::from_secs(10));
    // 60 s are left of each, before and after two quiescences and hours of absence.
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.now += Duration::from_secs(5 * 3600);
    world.agent.handle_timeout(world.now);
    world.drain_actions();
    let host = world.connect();
    world.ask(host, &rebind(H, Cause::Restore));
    world.pass(Duration::from_secs(60) - MS);
    assert!(signals(&world).is_empty());
    world.pass(MS);
    assert_eq!(signals(&world)[0], (pid, TERM));
}

#[test]
fn a_client_that_was_cut_by_a_snapshot_has_its_whole_time() {
    let mut world = World::with_generation(G);
    let (_, pid) = running_with(&mut world, &keep(0));
    let control = world.connect();
    world.ask(control, &quiesce(Policy::Keep));
    world.pass(Duration::from_secs(50));
    let host = world.connect();
    world.ask(host, &rebind(H, Cause::Resume));
    world.pass(CUT_KEEP_MIN - MS);
    assert!(signals(&world).is_empty());
    world.pass(MS);
    assert_eq!(signals(&world), [(pid, TERM)]);
}

#[test]
fn a_command_whose_client_left_while_it_was_started_is_told_to_end() {
    let mut world = World::new();
    let id = world.connect();
    world.agent.handle_bytes(id, &exec(1).encode(), world.now);
    world.agent.handle_closed(id, Ended::ByPeer, world.now);
    world.drain_actions();
    let pid = world.pid();
    assert_eq!(signals(&world), [(pid, TERM)]);
    world.pass(KILL_TIMEOUT);
    assert_eq!(signals(&world)[1..], [(pid, KILL)]);
}

/// The sessions whose cgroup was killed.
fn killed(world: &World) -> usize {
    let is_kill = |action: &&Action| matches!(action, Action::KillSession(_));
    world.actions.iter().filter(is_kill).count()
}

/// KILL, the last step of every end that a session is told, is for its cgroup, too. An end of its
/// own is not told.
#[test]
fn every_told_end_kills_the_cgroup() {
    type End = fn(&mut World, ConnectionId, i32);
    let ends: [(&str, bool, End); 6] = [
        ("its own", false, |world, _, pid| world.finish(pid, 0)),
        ("its own, when a client has left", true, |world, id, pid| {
            world.end(id, Ended::ByPeer);
            world.finish(pid, 0);
        }),
        ("the time limit", true, |world, _, pid| {
            world.pass(Duration::from_secs(1));
            world.finish(pid, 0);
        }),
        ("the time limit, without heed", true, |world, _, _| {
            world.pass(Duration::from_secs(1));
            world.pass(KILL_TIMEOUT);
        }),
        ("SIGNAL with KILL", true, |world, id, _| {
            let signal = message::Signal {
                session: None,
                number: KILL,
            };
            world.ask(id, &Message::Signal(signal));
        }),
        ("the agent's end", true, |world, _, _| {
            world.agent.handle_signal(Signal::End, world.now);
            world.drain_actions();
            world.pass(Duration::from_secs(5));
        }),
    ];
    for has_cgroups in [true, false] {
        for (name, is_told, end) in ends {
            let mut world = World::new();
            world.agent.settings.confinement.has_cgroups = has_cgroups;
            let (id, pid) = running_with(&mut world, &timeout(1000));
            end(&mut world, id, pid);
            assert_eq!(killed(&world) > 0, is_told && has_cgroups, "{name}");
        }
    }
}

/// The command has ended and left others, which hold its output open or not.
#[test]
fn kill_reaches_what_a_command_has_left() {
    let mut world = World::new();
    world.agent.settings.confinement.has_cgroups = true;
    let (id, pid) = running_with(&mut world, &timeout(1000));
    world.finish(pid, 0);
    let signal = |number| {
        Message::Signal(message::Signal {
            session: Some(SessionRef::Number(1)),
            number,
        })
    };
    let _answers = world.ask(id, &signal(TERM));
    assert_eq!(killed(&world), 0);
    let _answers = world.ask(id, &signal(KILL));
    assert_eq!(killed(&world), 1);
    assert!(signals(&world).is_empty(), "its number may be another's");
}
