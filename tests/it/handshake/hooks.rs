//! Goal: the image's hooks run in order and within their time, and the host learns their results.
//! Method: a real agent with a folder of hooks, and a client that asks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use shared::id::Token;
use shared::message::{Depth, ExitStatus, HookResult, HookStage, Hooked, Hooks, Message};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::client::{probe, rebind};

fn hook(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn start(folder: &Path) -> Agent {
    Agent::start_with(&["--hooks", folder.to_str().unwrap()])
}

fn run(agent: &Agent, byte: u8, stage: HookStage, limit_ms: u64) -> Vec<HookResult> {
    let token = Token::from_bytes([byte; 16]);
    let request = Message::Hooks(Hooks {
        token,
        stage,
        limit_ms,
        keep_going: false,
    });
    match agent.greet().ask(&request) {
        Message::Hooked(Hooked {
            token: answered,
            hooks,
        }) => {
            assert_eq!(answered, token);
            hooks
        }
        other => panic!("{other:?}"),
    }
}

fn has_hooks(agent: &Agent, byte: u8) -> bool {
    agent.greet().rebound(&rebind(byte));
    agent.greet().probed(&probe(byte, Depth::Exec)).hooks
}

#[test]
fn they_run_in_order_and_are_told_what_for() {
    let folder = TempDir::new().unwrap();
    let seen = folder.path().join("seen");
    let line = "echo ${0##*/} $GUEST_AGENT_HOOK $GUEST_AGENT_GENERATION >>";
    let script = format!("{line} {}", seen.display());
    for name in ["restore.d/20-b", "restore.d/10-a", "restore.d/.hidden"] {
        hook(folder.path(), name, &script);
    }
    hook(folder.path(), "snapshot.d/10-a", &script);
    hook(folder.path(), "snapshot.d/20-b", &script);
    fs::write(folder.path().join("restore.d/30-data"), "not executable").unwrap();
    let agent = start(folder.path());
    assert!(has_hooks(&agent, 7));

    for (byte, stage, order) in [
        (1, HookStage::Restore, ["10-a", "20-b"]),
        (2, HookStage::Snapshot, ["20-b", "10-a"]),
    ] {
        let results = run(&agent, byte, stage, 60_000);
        let names: Vec<_> = results.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, order);
        assert!(results.iter().all(HookResult::is_success), "{results:?}");
        let generation = "07".repeat(16);
        let expected = order.map(|name| format!("{name} {stage} {generation}\n"));
        assert_eq!(fs::read_to_string(&seen).unwrap(), expected.concat());
        fs::remove_file(&seen).unwrap();
        run(&agent, byte, stage, 60_000);
        assert!(!seen.exists(), "the same request ran again");
    }
}

#[test]
fn a_failure_is_told_and_the_next_one_does_not_run() {
    let folder = TempDir::new().unwrap();
    hook(folder.path(), "restore.d/1", "echo why >&2; exit 3");
    hook(folder.path(), "restore.d/2", "touch \"${0%/*}/../ran\"");
    let agent = start(folder.path());
    let results = run(&agent, 1, HookStage::Restore, 60_000);
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!(results[0].status, ExitStatus::Code(3));
    assert!(!folder.path().join("ran").exists());
    // The agent writes its log at the end of a turn; one more turn has written it.
    assert_eq!(agent.exec(["true"]).code(), 0);
    let log = fs::read_to_string(agent.folder().join("log")).unwrap();
    assert!(
        log.contains("hook 1 failed with status 3; stderr: why"),
        "{log}"
    );
}

#[test]
fn one_that_hangs_is_ended() {
    let folder = TempDir::new().unwrap();
    hook(folder.path(), "restore.d/1", "exec sleep 1000");
    let agent = start(folder.path());
    let results = run(&agent, 1, HookStage::Restore, 10);
    assert!(results[0].timed_out && !results[0].is_success());
    assert_eq!(agent.exec(["true"]).code(), 0);
}

#[test]
fn an_image_without_hooks_says_so() {
    let folder = TempDir::new().unwrap();
    let agent = start(folder.path());
    assert!(!has_hooks(&agent, 7));
    assert_eq!(run(&agent, 1, HookStage::Snapshot, 1), []);
    hook(folder.path(), "restore.d/1", "true");
    assert_eq!(run(&agent, 2, HookStage::Snapshot, 1), []);
    assert!(has_hooks(&agent, 8), "made since, and seen since");
}
