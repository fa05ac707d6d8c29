//! The workload.

use super::*;
use crate::agent::sessions::workload::{PAUSE_MAX, PAUSE_MIN, RUN_LEN_MIN};
use shared::message::SessionsRequest;

const MS: Duration = Duration::from_millis(1);

fn settings(restart: Restart, at_end: WorkloadEnd) -> WorkloadSettings {
    WorkloadSettings {
        argv: vec![b"/bin/app".to_vec(), b"-x".to_vec()],
        env: vec![b"A=1".to_vec()],
        cwd: None,
        user: None,
        restart,
        at_end,
    }
}

fn world(restart: Restart, at_end: WorkloadEnd) -> World {
    World::with(true, Some(settings(restart, at_end)))
}

fn spawn_count(world: &World) -> usize {
    let purpose = Purpose::Session(SessionId::from_number(1));
    let is_spawn =
        |action: &&Action| matches!(action, Action::Spawn { purpose: it, .. } if *it == purpose);
    world.actions.iter().filter(is_spawn).count()
}

fn is_ending(world: &World) -> bool {
    world.agent.state() == State::Ending
}

fn observe(world: &mut World) -> (ConnectionId, Vec<Message>) {
    let id = world.connect();
    let request = attach(SessionRef::Workload, AttachMode::Observe, None);
    let answer = world.ask(id, &request);
    (id, answer)
}

#[test]
fn it_is_started_with_the_agent() {
    let mut world = world(Restart::No, WorkloadEnd::Keep);
    let spawned = world.actions.iter().find_map(|action| match action {
        Action::Spawn { command, .. } => Some(command.clone()),
        _ => None,
    });
    let command = spawned.expect("spawned");
    assert_eq!(command.candidates, [b"/bin/app".to_vec()]);
    assert!(command.env.contains(&b"A=1".to_vec()) && command.cwd == b"/");
    assert!(!command.has_input && command.tty.is_none());
    let pid = world.pid();
    world.write(pid, Stream::Stdout, b"up\n");
    let (id, answer) = observe(&mut world);
    assert!(matches!(answer[0], Message::Attached(it) if it.id.is_none() && it.session == 1));
    assert_eq!(stdout_of(&answer).1, b"up\n");
    world.finish(pid, 0);
    world.pass(Duration::ZERO);
    assert_eq!(exited(&world.receive(id)).status, ExitStatus::Code(0));
    assert!(!is_ending(&world));
    // Its output and result stay available as long as the guest lives.
    assert_eq!(stdout_of(&observe(&mut world).1).1, b"up\n");
    assert_eq!(world.agent.poll_timeout(), None);
}

/// For each policy: what follows an end.
#[test]
fn what_its_end_leads_to() {
    let signal = ExitStatus::Signal {
        number: 9,
        core: false,
    };
    for (restart, status, is_again) in [
        (Restart::No, ExitStatus::Code(0), false),
        (Restart::No, ExitStatus::Code(1), false),
        (Restart::No, signal, false),
        (Restart::OnFailure, ExitStatus::Code(0), false),
        (Restart::OnFailure, ExitStatus::Code(1), true),
        (Restart::OnFailure, signal, true),
    ] {
        for at_end in [WorkloadEnd::Keep, WorkloadEnd::PowerOff] {
            let mut world = world(restart, at_end);
            let pid = world.pid();
            world.close_outputs(pid);
            world.reap(pid, status);
            world.pass(PAUSE_MIN);
            assert_eq!(spawn_count(&world) == 2, is_again, "{restart:?} {status:?}");
            let ends = !is_again && at_end == WorkloadEnd::PowerOff;
            assert_eq!(is_ending(&world), ends, "{restart:?} {status:?}");
            assert_eq!(world.actions.contains(&Action::End(End::PowerOff)), ends);
        }
    }
}

#[test]
fn it_is_the_same_session_however_often_it_is_started() {
    let mut world = world(Restart::OnFailure, WorkloadEnd::Keep);
    let (id, _) = observe(&mut world);
    world.write(world.pid(), Stream::Stdout, b"one ");
    let pid = world.pid();
    world.finish(pid, 1);
    // While it waits to be started it can be attached to, but not be signalled.
    let (_, answer) = observe(&mut world);
    assert!(matches!(answer[0], Message::Attached(it) if it.pid == 0));
    world.pass(PAUSE_MIN);
    world.write(world.pid(), Stream::Stdout, b"two");
    assert_eq!(stdout_of(&world.receive(id)), (0, b"one two".to_vec()));
    let asker = world.connect();
    let answer = world.ask(
        asker,
        &Message::SessionsRequest(SessionsRequest { after: 0 }),
    );
    assert!(matches!(&answer[..], [Message::Sessions(it)]
        if it.sessions.len() == 1 && it.sessions[0].restarts == 1));
    let pid = world.pid();
    world.finish(pid, 0);
    assert_eq!(exited(&world.receive(id)).stdout_end, 7);
}

#[test]
fn the_pause_doubles_up_to_its_limit_and_a_long_run_resets_it() {
    let mut world = world(Restart::OnFailure, WorkloadEnd::Keep);
    let mut pause = PAUSE_MIN;
    for round in 1..=12 {
        let pid = world.pid();
        world.finish(pid, 1);
        world.pass(pause - MS);
        assert_eq!(spawn_count(&world), round, "{pause:?}");
        world.pass(MS);
        assert_eq!(spawn_count(&world), round + 1, "{pause:?}");
        pause = (pause * 2).min(PAUSE_MAX);
    }
    world.pass(RUN_LEN_MIN - MS);
    let pid = world.pid();
    world.finish(pid, 1);
    world.pass(PAUSE_MAX);
    assert_eq!(spawn_count(&world), 14);
    world.pass(RUN_LEN_MIN);
    let pid = world.pid();
    world.finish(pid, 1);
    world.pass(PAUSE_MIN);
    assert_eq!(spawn_count(&world), 15);
}

#[test]
fn a_program_that_cannot_be_started_is_a_failure() {
    for (errno, code) in [(2, 127), (13, 126)] {
        for restart in [Restart::No, Restart::OnFailure] {
            let failure = SpawnFailure {
                stage: SpawnStage::Exec,
                errno,
                text: "/bin/app".to_owned(),
                stillborn: Some(50),
            };
            let now = Instant::now();
            let mut settings_of = World::new().agent.settings;
            settings_of.workload = Some(settings(restart, WorkloadEnd::Keep));
            let mut world = World::new();
            world.agent = Agent::new(settings_of, now);
            world.now = now;
            world.spawn_failure = Some(failure);
            world.drain_actions();
            world.pass(Duration::ZERO);
            let (_, answer) = observe(&mut world);
            match restart {
                Restart::No => assert_eq!(exited(&answer).status, ExitStatus::Code(code)),
                Restart::OnFailure => {
                    world.pass(PAUSE_MIN);
                    assert_eq!(world.processes.len(), 1, "the next start came off");
                }
            }
        }
    }
}

/// It has not run, so its policy about restarts does not count.
#[test]
fn a_shortage_at_its_start_is_not_its_end() {
    for restart in [Restart::No, Restart::OnFailure] {
        let now = Instant::now();
        let mut settings_of = World::new().agent.settings;
        settings_of.workload = Some(settings(restart, WorkloadEnd::PowerOff));
        let mut world = World::new();
        world.agent = Agent::new(settings_of, now);
        world.now = now;
        world.spawn_failure = Some(SpawnFailure {
            stage: SpawnStage::Exec,
            errno: 11,
            text: "/bin/app".to_owned(),
            stillborn: Some(50),
        });
        world.drain_actions();
        world.pass(PAUSE_MIN);
        assert_eq!(world.processes.len(), 1, "it runs now");
        assert!(!is_ending(&world));
        let pid = world.pid();
        world.finish(pid, 0);
        world.pass(Duration::ZERO);
        assert!(is_ending(&world), "this is its end");
    }
}

#[test]
fn one_whose_output_was_lost_has_failed() {
    let mut world = world(Restart::OnFailure, WorkloadEnd::Keep);
    let pid = world.pid();
    let session = world.session_of(pid);
    let now = world.now;
    world
        .agent
        .handle_output_failed(session, Stream::Stdout, 5, now);
    world.drain_actions();
    assert_eq!(signals(&world), [(pid, 15)], "it must not run on unseen");
    world.finish(pid, 0);
    world.pass(PAUSE_MIN);
    assert_eq!(spawn_count(&world), 2);
    // The fault was that of its first run.
    let (id, _) = observe(&mut world);
    let pid = world.pid();
    world.finish(pid, 0);
    world.pass(Duration::ZERO);
    assert_eq!(exited(&world.receive(id)).fault, None);
}

#[test]
fn a_snapshot_waits_for_no_workload() {
    for policy in Policy::ALL {
        let mut world = world(Restart::No, WorkloadEnd::Keep);
        let control = world.connect();
        assert_eq!(
            world.ask(control, &quiesce(*policy)),
            [Message::Quiesced(TOKEN)]
        );
    }
}

/// While session time stands still it is not started, and the machine does not end.
#[test]
fn its_end_is_acted_on_under_the_next_generation() {
    for (restart, at_end) in [
        (Restart::OnFailure, WorkloadEnd::Keep),
        (Restart::No, WorkloadEnd::PowerOff),
    ] {
        let mut world = world(restart, at_end);
        let control = world.connect();
        world.ask(control, &quiesce(Policy::Keep));
        let pid = world.pid();
        world.finish(pid, 1);
        world.now += Duration::from_secs(3600);
        world.agent.handle_timeout(world.now);
        world.drain_actions();
        assert_eq!(
            (world.agent.state(), spawn_count(&world)),
            (State::Quiesced, 1)
        );
        let host = world.connect();
        let answer = world.ask(host, &rebind(H, Cause::Restore));
        assert!(matches!(answer[..], [Message::Rebound(_)]), "{answer:?}");
        world.pass(PAUSE_MIN);
        assert_eq!(spawn_count(&world) == 2, restart == Restart::OnFailure);
        assert_eq!(is_ending(&world), at_end == WorkloadEnd::PowerOff);
    }
}

#[test]
fn a_rebind_that_kills_what_is_inherited_ends_no_machine() {
    for restart in [Restart::No, Restart::OnFailure] {
        let mut world = world(restart, WorkloadEnd::PowerOff);
        let pid = world.pid();
        let mut request = rebind(G, Cause::Restore);
        if let Message::Rebind(rebind) = &mut request {
            rebind.sessions = InheritedSessions::Kill;
        }
        let id = world.connect();
        let answer = world.ask(id, &request);
        assert!(matches!(&answer[..], [Message::Rebound(it)] if it.sessions_dropped == 1));
        assert_eq!(signals(&world)[0], (pid, EndSignal::Kill.number()));
        world.close_outputs(pid);
        world.reap(
            pid,
            ExitStatus::Signal {
                number: 9,
                core: false,
            },
        );
        world.pass(PAUSE_MIN);
        assert!(!is_ending(&world));
        assert_eq!(spawn_count(&world) == 2, restart == Restart::OnFailure);
        if restart == Restart::OnFailure {
            let pid = world.pid();
            world.finish(pid, 0);
            world.pass(Duration::ZERO);
            assert!(is_ending(&world), "that was its own end");
        }
    }
}

#[test]
fn a_machine_that_ends_does_not_start_it_again() {
    let mut world = world(Restart::OnFailure, WorkloadEnd::Keep);
    let pid = world.pid();
    world.finish(pid, 1);
    world.agent.handle_signal(Signal::End, world.now);
    world.drain_actions();
    assert!(
        world.actions.contains(&Action::End(End::PowerOff)),
        "nothing to wait for"
    );
    world.pass(PAUSE_MAX);
    assert_eq!(spawn_count(&world), 1);
}
