//! HOOKS: which run, in which order, and what the host is told.

use super::*;
use crate::agent::rebind::checkpoints::PROGRESS_INTERVAL;
use crate::agent::sessions::lifetimes::KILL_TIMEOUT;
use shared::message::{Fault, FaultPart, HookResult, HookStage, Hooked, Hooks, Progress};

const LIMIT: Duration = Duration::from_secs(10);

fn request(stage: HookStage, keep_going: bool) -> Message {
    Message::Hooks(Hooks {
        token: TOKEN,
        stage,
        limit_ms: 10_000,
        keep_going,
    })
}

fn world_with(names: &[&str]) -> World {
    let mut world = World::with_generation(G);
    let path = |name: &&str| format!("/etc/guest-agent/x.d/{name}").into_bytes();
    world.hooks.paths = names.iter().map(path).collect();
    world.hooks.has_restore = true;
    world
}

fn end_hook(world: &mut World, status: ExitStatus) {
    let pid = world.pid();
    world.close_outputs(pid);
    world.reap(pid, status);
}

fn result(name: &str, status: ExitStatus) -> HookResult {
    HookResult {
        name: name.to_owned(),
        status,
        us: 0,
        timed_out: false,
        fault: None,
    }
}

fn hooked(hooks: Vec<HookResult>) -> Message {
    Message::Hooked(Hooked {
        token: TOKEN,
        hooks,
    })
}

fn running_hook(name: &str) -> Message {
    let step = name.to_owned();
    Message::Progress(Progress { step })
}

#[test]
fn each_stage_has_its_order() {
    for (stage, order) in [
        (HookStage::Restore, ["1", "2"]),
        (HookStage::Snapshot, ["2", "1"]),
    ] {
        let mut world = world_with(&["1", "2"]);
        let host = world.connect();
        let request = request(stage, false);
        assert_eq!(world.ask(host, &request), [running_hook(order[0])]);
        end_hook(&mut world, ExitStatus::Code(0));
        assert_eq!(world.receive(host), [running_hook(order[1])]);
        end_hook(&mut world, ExitStatus::Code(0));
        let results = order.map(|name| result(name, ExitStatus::Code(0)));
        let expected = hooked(results.into());
        assert_eq!(world.receive(host), std::slice::from_ref(&expected));
        // A repeated request does not run them again.
        let again = world.connect();
        assert_eq!(world.ask(again, &request), [expected]);
        assert!(world.processes.is_empty());
        world.pass(PROGRESS_INTERVAL);
        assert_eq!(world.agent.sessions.running_count(), 0);
    }
}

#[test]
fn without_hooks_there_is_nothing_to_wait_for() {
    let mut world = World::with_generation(G);
    let host = world.connect();
    let answer = world.ask(host, &request(HookStage::Restore, false));
    assert_eq!(answer, [hooked(Vec::new())]);
    world.end(host, Ended::ByPeer);
    world.pass(PROGRESS_INTERVAL);
    assert_eq!(world.agent.poll_timeout(), None);
}

#[test]
fn a_failure_ends_the_run_unless_the_host_wants_all() {
    for keep_going in [false, true] {
        let mut world = world_with(&["1", "2"]);
        let host = world.connect();
        world.ask(host, &request(HookStage::Restore, keep_going));
        end_hook(&mut world, ExitStatus::Code(3));
        let mut results = vec![result("1", ExitStatus::Code(3))];
        if keep_going {
            assert_eq!(world.receive(host), [running_hook("2")]);
            end_hook(&mut world, ExitStatus::Code(0));
            results.push(result("2", ExitStatus::Code(0)));
        }
        assert_eq!(world.receive(host), [hooked(results)]);
    }
}

#[test]
fn one_that_takes_too_long_is_ended() {
    let mut world = world_with(&["1"]);
    let host = world.connect();
    world.ask(host, &request(HookStage::Restore, false));
    world.pass(LIMIT);
    let pid = world.pid();
    assert_eq!(signals(&world), [(pid, 15)]);
    world.pass(KILL_TIMEOUT);
    assert_eq!(signals(&world), [(pid, 15), (pid, 9)]);
    world.receive(host);
    let killed = ExitStatus::Signal {
        number: 9,
        core: false,
    };
    end_hook(&mut world, killed);
    let Message::Hooked(hooked) = &world.receive(host)[0] else {
        panic!("not HOOKED");
    };
    assert!(hooked.hooks[0].timed_out && hooked.hooks[0].status == killed);
    assert!(hooked.hooks[0].us >= 15_000_000);
}

#[test]
fn one_that_cannot_be_run_has_failed() {
    let mut world = world_with(&["1"]);
    world.spawn_failure = Some(SpawnFailure {
        stage: SpawnStage::Exec,
        errno: 8,
        text: "not a program".to_owned(),
        stillborn: None,
    });
    let host = world.connect();
    let answer = world.ask(host, &request(HookStage::Restore, false));
    let expected = hooked(vec![result("1", ExitStatus::Code(126))]);
    assert_eq!(answer.last(), Some(&expected));
}

#[test]
fn one_of_which_output_was_lost_has_failed() {
    let mut world = world_with(&["1", "2"]);
    let host = world.connect();
    world.ask(host, &request(HookStage::Restore, false));
    let session = world.session_of(world.pid());
    let now = world.now;
    world
        .agent
        .handle_output_failed(session, Stream::Stderr, 5, now);
    world.drain_actions();
    end_hook(&mut world, ExitStatus::Code(0));
    let fault = Some(Fault {
        part: FaultPart::Stderr,
        offset: 0,
        errno: 5,
    });
    let hook = HookResult {
        fault,
        ..result("1", ExitStatus::Code(0))
    };
    assert!(!hook.is_success());
    assert_eq!(world.receive(host), [hooked(vec![hook])]);
}

#[test]
fn hooks_and_silence_keep_out_of_each_others_way() {
    let mut world = world_with(&["1"]);
    let [host, other, third] = [world.connect(), world.connect(), world.connect()];
    world.ask(host, &request(HookStage::Snapshot, false));
    let refused = world.ask(other, &quiesce(Policy::Keep));
    assert_eq!(fail_code(&refused), FailCode::Refusing);
    let stranger = Message::Hooks(Hooks {
        token: Token::from_bytes([8; 16]),
        stage: HookStage::Snapshot,
        limit_ms: 1,
        keep_going: false,
    });
    let refused = world.ask(other, &stranger);
    assert_eq!(fail_code(&refused), FailCode::Refusing);
    let joined = world.ask(third, &request(HookStage::Snapshot, false));
    assert_eq!(joined.last(), Some(&running_hook("1")));
    end_hook(&mut world, ExitStatus::Code(0));
    for id in [host, third] {
        assert!(matches!(world.receive(id).last(), Some(Message::Hooked(_))));
    }
    assert_eq!(
        world.ask(other, &quiesce(Policy::Keep)),
        [Message::Quiesced(TOKEN)]
    );
    let late = world.connect();
    let refused = world.ask(late, &stranger);
    assert_eq!(fail_code(&refused), FailCode::Refusing);
}

#[test]
fn a_rebind_ends_hooks_that_no_host_waits_for() {
    let mut world = world_with(&["1", "2"]);
    let host = world.connect();
    world.ask(host, &request(HookStage::Restore, false));
    let pid = world.pid();
    let host = world.connect();
    world.ask(host, &rebind(H, Cause::Restore));
    assert_eq!(signals(&world), [(pid, 15)]);
    end_hook(&mut world, ExitStatus::Code(0));
    assert!(world.processes.is_empty(), "the second one does not run");
    let fresh = world.connect();
    let Message::Probed(probed) = &world.ask(fresh, &probe(H, Depth::Listener))[0] else {
        panic!("not PROBED");
    };
    assert!(probed.hooks, "that there are hooks was seen");
}
