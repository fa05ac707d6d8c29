//! Goal: the agent, which is root as a rule, writes over and removes no file that another user
//! could have put in its way, lets no other user in, and runs nothing that another user could have
//! written. Method: the built agent with planted files, folders and users.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};
use shared::id::Token;
use shared::message::{FailCode, HookStage, Hooks, Message};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::client::rebind;
use tests::process::{Finished, Running, run};
use tests::{await_true, program, skip};

const NOBODY: u32 = 65_534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn agent(arguments: &[&str]) -> Command {
    let mut agent = Command::new(program("guest-agent"));
    agent.arg("--unprivileged").args(arguments);
    agent
}

/// What stands where a socket should be, and how to make it. The first path is a link's target.
type Put = (&'static str, fn(&Path, &Path));

const PUTS: [Put; 4] = [
    ("a file", |_, path| fs::write(path, "precious").unwrap()),
    ("a link to a file", |bait, path| {
        symlink(bait, path).unwrap()
    }),
    ("a pipe", |_, path| mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("a folder", |_, path| fs::create_dir(path).unwrap()),
];

#[test]
fn what_is_not_a_dead_socket_of_the_agent_is_left_alone() {
    for (what, put) in PUTS {
        let folder = TempDir::new().unwrap();
        let bait = folder.path().join("bait");
        fs::write(&bait, "precious").unwrap();
        let path = folder.path().join("place");
        put(&bait, &path);
        let before = fs::symlink_metadata(&path).unwrap();
        let is_untouched = || {
            let after = fs::symlink_metadata(&path).unwrap();
            assert_eq!(before.file_type(), after.file_type(), "{what}");
            assert_eq!(before.permissions(), after.permissions(), "{what}");
            let text = |path: &Path| fs::read_to_string(path).unwrap();
            assert_eq!(text(&bait), "precious", "{what}");
            assert!(!before.is_file() || text(&path) == "precious", "{what}");
        };
        let listen = format!("unix:{}", path.display());
        let ended = run(&mut agent(&["--listen", &listen])).exits(1);
        ended.complains(&listen).complains("it is left alone");
        is_untouched();
        // Without the socket for programs, the agent does the rest of its work.
        let agent = Agent::start_with(&["--local", path.to_str().unwrap()]);
        let log = || fs::read_to_string(agent.folder().join("log")).unwrap();
        await_true("a warning", || log().contains("it is left alone"));
        assert!(log().contains(path.to_str().unwrap()));
        is_untouched();
    }
}

#[test]
fn a_folder_of_another_user_is_not_used() {
    if !geteuid().is_root() {
        return skip("agent::places::a_folder_of_another_user", "it takes root");
    }
    let folder = TempDir::new().unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    for name in ["generation", "generation.new"] {
        symlink(&victim, theirs.join(name)).unwrap();
    }
    let socket = theirs.join("agent.sock");
    for (mode, uid, text) in [
        (0o700, NOBODY, "belongs to another user"),
        (0o1777, NOBODY, "belongs to another user"),
        (0o777, 0, "may be written to by other users"),
    ] {
        chown(&theirs, Some(uid), None).unwrap();
        set_mode(&theirs, mode);
        let listen = format!("unix:{}", socket.display());
        let ended = run(&mut agent(&["--listen", &listen])).exits(1);
        ended.complains(&format!("{} {text}", theirs.display()));
        let agent = Agent::start_with(&["--local", socket.to_str().unwrap()]);
        agent.greet().rebound(&rebind(7));
        let log = || fs::read_to_string(agent.folder().join("log")).unwrap();
        await_true("a warning", || log().contains(text));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!socket.exists());
    }
    // In a folder like /tmp the agent's files replace links, and do not follow them.
    chown(&theirs, Some(0), None).unwrap();
    set_mode(&theirs, 0o1777);
    let agent = Agent::start_with(&["--local", socket.to_str().unwrap()]);
    agent.greet().rebound(&rebind(7));
    let generation = theirs.join("generation");
    await_true("a generation", || {
        fs::symlink_metadata(&generation).unwrap().is_file()
    });
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(
        generation.metadata().unwrap().permissions().mode() & 0o777,
        0o644
    );
}

#[test]
fn the_listener_is_for_the_agents_user_unless_told_otherwise() {
    let folder = TempDir::new().unwrap();
    set_mode(folder.path(), 0o755);
    let tool = folder.path().join("host-tool");
    fs::copy(program("host-tool"), &tool).unwrap();
    let probe = |socket: &Path, uid: Option<u32>| -> Finished {
        let mut probe = Command::new(&tool);
        probe.arg("probe").arg("--unix").arg(socket);
        probe.args(["--timeout", "2s"]);
        if let Some(uid) = uid {
            probe.uid(uid).gid(uid);
        }
        run(&mut probe)
    };
    for (kind, mode, theirs) in [("unix", 0o600, 2), ("unix-any", 0o666, 0)] {
        let socket = folder.path().join(kind);
        // A wide umask makes no difference.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "umask 000; exec \"$@\"", "sh"]);
        shell.arg(program("guest-agent")).arg("--unprivileged");
        shell
            .arg("--listen")
            .arg(format!("{kind}:{}", socket.display()));
        let _agent = Running::start_as_it_is(shell.stdin(Stdio::null()).stderr(Stdio::null()));
        probe(&socket, None).exits(0);
        let found = socket.metadata().unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{kind}");
        if !geteuid().is_root() {
            skip("agent::places: a peer of another user", "it takes root");
            continue;
        }
        probe(&socket, Some(NOBODY)).exits(theirs);
        // The mode is one hurdle and the peer's user another.
        set_mode(&socket, 0o666);
        probe(&socket, Some(NOBODY)).exits(theirs);
        probe(&socket, None).exits(0);
    }
}

/// What is wrong with a hook, whether it takes root, how it is spoiled, and what is named.
type Spoil = (&'static str, bool, fn(&Path), &'static str);

const SPOILS: [Spoil; 5] = [
    (
        "its mode",
        false,
        |top| set_mode(&top.join("restore.d/1"), 0o775),
        "restore.d/1 may be",
    ),
    (
        "the folder's mode",
        false,
        |top| set_mode(&top.join("restore.d"), 0o1777),
        "restore.d may be",
    ),
    (
        "the folder above",
        false,
        |top| set_mode(top, 0o757),
        " may be written to",
    ),
    (
        "its owner",
        true,
        |top| give(&top.join("restore.d/1")),
        "restore.d/1 belongs",
    ),
    (
        "a link to another user's",
        true,
        |top| {
            let (hook, real) = (top.join("restore.d/1"), top.join("real"));
            fs::rename(&hook, &real).unwrap();
            symlink(&real, &hook).unwrap();
            give(&real);
        },
        "real belongs",
    ),
];

fn give(path: &Path) {
    chown(path, Some(NOBODY), None).unwrap();
}

#[test]
fn hooks_that_another_user_could_have_written_are_refused_by_name() {
    for (what, needs_root, spoil, text) in SPOILS {
        if needs_root && !geteuid().is_root() {
            skip(&format!("agent::places: {what}"), "it takes root");
            continue;
        }
        let folder = TempDir::new().unwrap();
        let top = folder.path().join("hooks");
        fs::create_dir_all(top.join("restore.d")).unwrap();
        let hook = top.join("restore.d/1");
        let ran = folder.path().join("ran");
        fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        for path in [&top, &top.join("restore.d"), &hook] {
            set_mode(path, 0o755);
        }
        spoil(&top);
        let agent = Agent::start_with(&["--hooks", top.to_str().unwrap()]);
        let request = Message::Hooks(Hooks {
            token: Token::from_bytes([1; 16]),
            stage: HookStage::Restore,
            limit_ms: 60_000,
            keep_going: true,
        });
        let fail = agent.refuses(&request, FailCode::Internal);
        assert!(fail.text.contains(text), "{what}: {}", fail.text);
        assert!(!ran.exists(), "{what}: it ran");
    }
}

#[test]
fn a_file_of_settings_that_another_user_could_have_written_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("agent.json");
    fs::write(&file, "{}").unwrap();
    let start = || {
        let mut agent = agent(&["--listen", "unix:/dev/null/x"]);
        run(agent.arg("--config").arg(&file))
    };
    // It starts, and only the listener fails.
    start().exits(1);
    set_mode(&file, 0o664);
    let text = format!("{} may be written to by other users", file.display());
    start().exits(2).complains(&text);
    set_mode(&file, 0o644);
    set_mode(folder.path(), 0o777);
    let text = format!(
        "{} may be written to by other users",
        folder.path().display()
    );
    start().exits(2).complains(&text);
    set_mode(folder.path(), 0o700);
    if !geteuid().is_root() {
        return skip("agent::places: settings of another user", "it takes root");
    }
    give(&file);
    let text = format!("{} belongs to another user", file.display());
    start().exits(2).complains(&text);
}
