//! Goal: the agent costs next to nothing. Method: the release binary that `scripts/build-agent.sh`
//! makes, and the counters of an idle agent.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tests::agent::Agent;
use tests::process::run;
use tests::release_agent;

/// Most bytes of the agent, linked statically against glibc and stripped: 1.55 MiB.
const SIZE_MAX: u64 = 1_625_292;

#[test]
fn the_agent_is_static_stripped_and_small() {
    let path = release_agent();
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size <= SIZE_MAX, "{size} bytes exceed {SIZE_MAX}");
    let sections = run(Command::new("readelf")
        .args(["--wide", "--sections", "--program-headers"])
        .arg(&path));
    let sections = sections.exits(0).out();
    assert!(!sections.contains("INTERP"), "it wants a dynamic linker");
    assert!(!sections.contains(".symtab"), "it is not stripped");
    assert!(
        sections.contains(".text"),
        "readelf printed something else: {sections}"
    );
    let version = run(Command::new(&path).arg("--version")).exits(0);
    assert!(version.out().starts_with("guest-agent "), "{version}");
}

/// The binary that ships, without the features that other programs of the workspace enable in
/// shared crates.
#[test]
fn the_agent_says_what_it_takes() {
    let path = release_agent();
    let agent = |argument: &str| run(Command::new(&path).arg(argument));
    let help = agent("--help").exits(0);
    let text = help.out().replace(['\n', ','], " ");
    let document = std::fs::read_to_string(tests::top().join("docs/agent.md")).unwrap();
    let section = document.split("\n## ").nth(1).expect("the settings");
    let settings = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let settings: Vec<_> = settings.filter_map(|line| line.split('`').next()).collect();
    assert!(settings.contains(&"listen"), "{settings:?}");
    for setting in settings {
        let option = format!(" --{} ", setting.replace('_', "-"));
        assert!(text.contains(&option), "no{option}in {help}");
    }
    agent("--nonsense").exits(2).complains("--help");
}

/// The process that proves depth `exec` has nothing to do. It ends before the C library asks the
/// processor for its features. An argument that only resembles its option does not start it.
#[test]
fn a_process_that_does_nothing_ends_at_its_first_instructions() {
    let path = release_agent();
    let agent = |arguments: &[&str]| run(Command::new(&path).args(arguments));
    for arguments in [&["--noop"][..], &["--noop", "--noo"]] {
        let ended = agent(arguments).exits(0);
        assert_eq!(ended.out(), "", "{arguments:?}");
    }
    for arguments in [&["--noo"][..], &["--noopx"], &["--nooq"], &["-"]] {
        agent(arguments).exits(2);
    }
    // The end of execve(2), and the call that exits.
    if cfg!(target_arch = "x86_64") {
        assert_eq!(stops_after_exec(&path, "--noop"), 2);
    }
    assert!(stops_after_exec(&path, "--version") > 10);
}

/// How many stops at system calls ptrace reports from the program's execution on.
#[expect(clippy::zombie_processes, reason = "waitpid(2) reaps it")]
fn stops_after_exec(program: &Path, argument: &str) -> usize {
    let script = "read -r line; exec \"$0\" \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let events = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(pid, events | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut count = 0;
    loop {
        match waitpid(pid, None).unwrap() {
            // The first execution that is reported may be the shell's.
            WaitStatus::PtraceEvent(..) => count = 0,
            WaitStatus::PtraceSyscall(_) => count += 1,
            WaitStatus::Exited(_, 0) => return count,
            other => panic!("{argument} ends with {other:?}"),
        }
        ptrace::syscall(pid, None).unwrap();
    }
}

/// Counts context switches while the test waits for the agent's end, which must not come.
#[test]
fn an_idle_agent_never_wakes_up() {
    let agent = Agent::start();
    // After a connection and a finished exec, so that timers which they left would show.
    let client = agent.greet();
    assert_eq!(agent.exec(["true"]).code(), 0);
    let pid = Pid::from_raw(i32::try_from(agent.pid()).unwrap());
    let settled = agent.greet();
    drop(settled);
    assert_eq!(agent.host_tool(["probe"], []).code(), 0);
    wait_for_end(pid, Duration::from_secs(1));
    let switches = || agent.status("voluntary_ctxt_switches");
    let before = switches();
    wait_for_end(pid, Duration::from_secs(60));
    assert_eq!(switches(), before, "the agent woke up without a reason");
    drop(client);
}

/// Waits for the agent's end, and fails if it comes.
fn wait_for_end(pid: Pid, limit: Duration) {
    let path = format!("/proc/{pid}");
    let folder = std::fs::File::open(&path).expect("the agent runs");
    let limit = nix::poll::PollTimeout::try_from(limit).unwrap();
    let nothing = nix::poll::PollFlags::empty();
    let (read_end, _write_end) = nix::unistd::pipe().unwrap();
    let mut fds = [nix::poll::PollFd::new(read_end.as_fd(), nothing)];
    nix::poll::poll(&mut fds, limit).unwrap();
    drop(folder);
    assert!(Path::new(&path).exists(), "the agent ended");
}
