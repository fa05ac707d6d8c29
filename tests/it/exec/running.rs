//! Goal: `host-tool exec` behaves like running the command here. Method: the agent on a Unix
//! socket, the built `host-tool`, and commands with a known result.

use nix::sys::signal::Signal;
use shared::message::{ExitStatus, FailCode, Message};
use tests::agent::Agent;
use tests::client::{exec, shell};
use tests::fifo::Fifo;

#[test]
fn every_exit_code_is_passed_on() {
    let agent = Agent::start();
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 200, 255] {
        let ended = agent.exec(["sh", "-c", &format!("exit {code}")]);
        assert_eq!(ended.code(), code, "{ended}");
    }
}

#[test]
fn a_signal_is_reported_as_a_shell_does() {
    let agent = Agent::start();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGKILL,
        Signal::SIGSEGV,
        Signal::SIGTERM,
    ] {
        let ended = agent.exec(["sh", "-c", &format!("kill -{} $$", signal as i32)]);
        assert_eq!(ended.code(), 128 + signal as i32, "{ended}");
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    let agent = Agent::start();
    let plain = agent.folder().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let missing = agent
        .exec(["no-such-program"])
        .exits(127)
        .complains("no-such-program");
    assert!(missing.out().is_empty(), "{missing}");
    agent
        .exec(["/no/such/program"])
        .exits(127)
        .complains("/no/such/program");
    agent
        .exec([plain.to_str().unwrap()])
        .exits(126)
        .complains("plain");
    agent.exec(["/tmp"]).exits(126).complains("/tmp");
    let tool = agent.host_tool(["exec", "-w", "/no/such/folder"], ["true"]);
    assert!([126, 127].contains(&tool.code()), "{tool}");
    tool.complains("/no/such/folder");
}

#[test]
fn the_streams_stay_apart_and_exact() {
    let agent = Agent::start();
    let script = r"printf 'a\000b\377\r\n'; printf 'e\001\n' >&2; printf tail; exit 3";
    let ended = agent.exec(["sh", "-c", script]).exits(3);
    assert_eq!(ended.stdout, b"a\0b\xff\r\ntail");
    assert_eq!(ended.stderr, b"e\x01\n");
}

#[test]
fn arguments_are_passed_without_a_shell_and_without_loss() {
    use std::os::unix::ffi::OsStrExt;
    let agent = Agent::start();
    let odd = [
        &b"a b"[..],
        b"$HOME",
        b"\xff\xfe",
        b"",
        b"-x",
        "ü\n".as_bytes(),
        b"'\"",
    ];
    let argv = [&b"printf"[..], b"%s|"].into_iter().chain(odd);
    let argv = argv.map(std::ffi::OsStr::from_bytes);
    let command = ["exec"].map(std::ffi::OsStr::new);
    let ended = tests::process::run(&mut agent.host_tool_command(command, argv)).exits(0);
    let expected: Vec<u8> = odd
        .iter()
        .flat_map(|arg| [arg, &b"|"[..]].concat())
        .collect();
    assert_eq!(ended.stdout, expected);
}

#[test]
fn environment_and_folder_are_the_requests() {
    let agent = Agent::start();
    let command = ["exec", "-w", "/usr", "-e", "A=1 2", "-e", "B="];
    let ended = agent.host_tool(command, ["sh", "-c", "echo \"$A|$B|$PWD|${PATH:+path}\""]);
    assert_eq!(ended.exits(0).out(), "1 2||/usr|path\n");
}

#[test]
fn a_large_output_arrives_whole() {
    let agent = Agent::start();
    let ended = agent.exec(["sh", "-c", "seq 1 2000000"]).exits(0);
    let mut expected = Vec::new();
    for number in 1..=2_000_000 {
        expected.extend_from_slice(format!("{number}\n").as_bytes());
    }
    assert_eq!(ended.stdout.len(), expected.len());
    assert!(ended.stdout == expected, "same length, other bytes");
}

#[test]
fn many_run_at_once_and_none_is_lost() {
    let agent = Agent::start();
    let fds = agent.settled_fd_count();
    let start = |number| {
        let script = format!("echo {number}; exit {number}");
        (number, agent.run(["exec"], ["sh", "-c", &script]))
    };
    let running: Vec<_> = (0..50).map(start).collect();
    for (number, running) in running {
        assert_eq!(running.finish().exits(number).out(), format!("{number}\n"));
    }
    assert_eq!((agent.settled_fd_count(), agent.zombie_count()), (fds, 0));
}

#[test]
fn a_background_child_does_not_hold_the_result_back() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!("cat {} & echo started; exit 5", fifo.path());
    let mut client = agent.greet();
    client.start(&shell(1, &script));
    let (stdout, _, exited) = client.collect();
    assert_eq!(stdout, b"started\n");
    assert_eq!(
        (exited.status, exited.writers_alive),
        (ExitStatus::Code(5), true)
    );
}

#[test]
fn a_known_exec_id_never_starts_twice() {
    let agent = Agent::start();
    let file = agent.folder().join("count");
    let script = format!("echo x >> {}; exit 7", file.display());
    for round in 0..3 {
        let mut client = agent.greet();
        let started = client.start(&shell(3, &script));
        assert_eq!(started.fresh, round == 0);
        let end = client.hear_exited();
        assert_eq!(end.status, ExitStatus::Code(7), "round {round}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x\n");
}

#[test]
fn a_client_that_goes_away_takes_its_command_along() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut client = agent.greet();
    client.start(&exec(1, &["cat", fifo.path()]));
    let held = fifo.hold();
    client.shut_down();
    held.wait_gone();
}

#[test]
fn a_stuck_reader_delays_nobody_else() {
    let agent = Agent::start();
    let mut stuck = agent.greet();
    stuck.start(&exec(1, &["cat", "/dev/zero"]));
    let resident = agent.status("VmRSS");
    for _ in 0..20 {
        assert_eq!(agent.exec(["true"]).code(), 0);
        assert_eq!(agent.host_tool(["probe"], []).code(), 0);
    }
    let growth = agent.status("VmRSS").saturating_sub(resident);
    assert!(
        growth < 4096,
        "the agent grew by {growth} KiB for a client that does not read"
    );
}

#[test]
fn a_time_limit_ends_the_command_with_124() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let exec = ["exec", "--timeout", "200ms"];
    agent.host_tool(exec, ["cat", fifo.path()]).exits(124);
}

#[test]
fn too_many_arguments_are_refused_in_words() {
    let agent = Agent::start();
    let argv: Vec<String> = std::iter::repeat_n("x".to_owned(), 100_000).collect();
    let argv = ["true".to_owned()].into_iter().chain(argv);
    let ended = tests::process::run(&mut agent.host_tool_command(["exec".to_owned()], argv));
    ended.exits(125).complains("exceed");
    let client = &mut agent.greet();
    let huge = exec(1, &["true", &"x".repeat(200_000)]);
    // Longer than Linux takes for one argument (128 KiB): the agent reports the kernel's refusal.
    client.ask_in_vain(&Message::Exec(huge), FailCode::NotRunnable);
}

#[test]
fn an_agent_that_dies_leaves_an_unknown_outcome() {
    let mut agent = Agent::start();
    let argv = ["sh", "-c", "echo go; exec cat /dev/zero"];
    let mut running = agent.run(["exec", "--reconnect", "2s"], argv);
    running.read(3);
    agent.signal(Signal::SIGKILL);
    agent.wait();
    // The client would go on waiting for the guest, but ends at the second signal. The two differ,
    // since a pending signal is not counted twice.
    running.signal(Signal::SIGINT);
    running.signal(Signal::SIGTERM);
    running.finish().exits(125).complains("unknown");
}

/// An agent without the right to change groups is one user, and may be asked for that one.
#[test]
fn an_agent_of_another_user_runs_commands_as_that_user() {
    if !nix::unistd::geteuid().is_root() {
        return tests::skip("exec::running, a user's own agent", "it takes root");
    }
    // The agent's folder is root's, and gets to be the user's before the agent begins.
    let script = r#"
        for argument; do
            case $argument in unix:*) chown 65534 "$(dirname "${argument#unix:}")" ;; esac
        done
        exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
    "#;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(tests::program("guest-agent"));
    let agent = Agent::start_through(command, &[]);
    for user in ["nobody", "65534", "65534:65534"] {
        let run = agent.host_tool(["exec", "-u", user], ["id", "-u"]);
        assert_eq!(run.exits(0).out(), "65534\n", "{user}");
    }
    for user in ["root", "1", "65534:1"] {
        let run = agent.host_tool(["exec", "-u", user], ["true"]);
        run.exits(126).complains("cannot become the user");
    }
}
