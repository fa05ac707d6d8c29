//! Goal: a child's environment is as documented, and an error says which step failed. Method: real
//! programs that print what they see.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::FcntlArg;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::message::TtySize;

use super::*;
use crate::sys::process::raise_priority;
use crate::sys::stdio::StdioEnd;

/// Longest wait of a test, ms.
const DEADLINE_MS: u16 = 30_000;

const SIZE: TtySize = TtySize { rows: 24, cols: 80 };

const LIMIT: FileLimit = FileLimit {
    soft: 256,
    hard: 512,
};

fn spawner() -> Spawner {
    Spawner::new(LIMIT, false).unwrap()
}

fn program(candidates: &[&str], argv: &[&str]) -> Program {
    let strings = |list: &[&str]| list.iter().map(|s| CString::new(*s).unwrap()).collect();
    Program {
        candidates: strings(candidates),
        argv: strings(argv),
        env: strings(&["NAME=value", "PATH=/usr/bin:/bin"]),
        cwd: CString::new("/").unwrap(),
        wiring: Wiring::Output,
        user: None,
        cgroup: None,
        slot: None,
    }
}

fn script(wiring: Wiring, text: &str) -> Program {
    Program {
        wiring,
        ..program(&["/bin/sh"], &["sh", "-c", text])
    }
}

/// Reads until `is_enough`, or until the child's exit ends the stream.
fn read_until(end: &StdioEnd, is_enough: impl Fn(&str) -> bool) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if is_enough(&text) {
            return text;
        }
        match end.read(&mut [io::IoSliceMut::new(&mut buffer)]) {
            Ok(0) => return text,
            Ok(len) => bytes.extend_from_slice(&buffer[..len]),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => await_event(end),
            Err(err) => panic!("{err} after {text:?}"),
        }
    }
}

fn await_event(end: &StdioEnd) {
    let mut descriptors = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    assert!(
        poll(&mut descriptors, PollTimeout::from(DEADLINE_MS)).unwrap() > 0,
        "nothing came"
    );
}

fn read_all(end: &StdioEnd) -> String {
    read_until(end, |_| false)
}

#[track_caller]
fn check_output(program: &Program, expected: &str) {
    let started = spawner().spawn(program).unwrap();
    let errors = started.stdio.stderr.as_ref().map(read_all);
    assert_eq!(read_all(&started.stdio.stdout), expected, "{errors:?}");
}

/// A folder of the test that is removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes an executable file.
    fn program(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this process may become another user. Prints that the test is skipped if not.
fn may_change_user(test: &str) -> bool {
    let may = nix::unistd::geteuid().is_root();
    if !may {
        eprintln!("skipped: {test} needs root");
    }
    may
}

#[test]
fn child_gets_its_environment_group_limit_and_no_descriptors() {
    let text = "echo $NAME; ulimit -n; ls /proc/self/fd | wc -l; pwd; umask; echo err >&2";
    let started = spawner().spawn(&script(Wiring::Output, text)).unwrap();
    // 0, 1, 2, and the directory that `ls` itself opens.
    let output = read_all(&started.stdio.stdout);
    assert_eq!(output, "value\n256\n4\n/\n0022\n");
    assert_eq!(read_all(started.stdio.stderr.as_ref().unwrap()), "err\n");
    assert!(started.stdio.stdin.is_none());
}

/// On Linux niceness belongs to a thread (setpriority(2), "C library/kernel differences"), so a
/// thread plays the agent without affecting other tests.
#[test]
fn the_agent_has_a_higher_priority_than_its_children() {
    let niceness = |chosen: libc::c_int| {
        let thread = std::thread::spawn(move || {
            // SAFETY: integers only.
            check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, chosen) }).ok()?;
            let is_preferred = raise_priority();
            // SAFETY: integers only.
            let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            let mut spawner = Spawner::new(LIMIT, is_preferred).unwrap();
            let started = spawner.spawn(&script(Wiring::Output, "nice")).unwrap();
            Some((own, read_all(&started.stdio.stdout)))
        });
        thread.join().unwrap()
    };
    // A niceness that the agent was started with stays.
    assert_eq!(niceness(5), Some((5, "5\n".to_owned())));
    if niceness(-5).is_none() {
        return eprintln!("skipped: the_agent_goes_before_its_children needs CAP_SYS_NICE");
    }
    assert_eq!(niceness(-5), Some((-5, "-5\n".to_owned())));
    assert_eq!(niceness(0), Some((-10, "0\n".to_owned())));
}

#[test]
fn standard_input_is_null_or_a_pipe() {
    check_output(
        &script(Wiring::Output, "readlink /proc/self/fd/0; cat"),
        "/dev/null\n",
    );
    let mut started = spawner()
        .spawn(&script(Wiring::InputAndOutput, "cat"))
        .unwrap();
    let stdin = started.stdio.stdin.take().unwrap();
    assert_eq!(stdin.write(b"a\0\xff").unwrap(), 3);
    drop(stdin);
    assert_eq!(read_all(&started.stdio.stdout), "a\0\u{fffd}");
}

#[test]
fn child_leads_a_group_of_its_own_and_no_session() {
    let started = spawner()
        .spawn(&script(
            Wiring::Output,
            "cut -d' ' -f5,6 /proc/$$/stat; echo $$",
        ))
        .unwrap();
    let output = read_all(&started.stdio.stdout);
    let numbers: Vec<i32> = output
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let session = nix::unistd::getsid(None).unwrap().as_raw();
    assert_eq!(numbers, [started.pid, session, started.pid]);
}

#[test]
fn terminal_is_all_three_and_controls_the_childs_session() {
    let text = "test -t 0 && test -t 1 && test -t 2 && stty size; \
        ls /proc/self/fd | wc -l; cut -d' ' -f5,6,8 /proc/$$/stat; echo err >&2; : </dev/tty";
    let started = spawner()
        .spawn(&script(Wiring::Terminal(SIZE), text))
        .unwrap();
    assert!(started.stdio.stderr.is_none());
    let pid = started.pid;
    let expected = format!("24 80\r\n4\r\n{pid} {pid} {pid}\r\nerr\r\n");
    assert_eq!(read_all(&started.stdio.stdout), expected);
    // The end stays the end when read again, and the other end reports it too.
    assert_eq!(read_all(&started.stdio.stdout), "");
    assert!(started.stdio.stdin.unwrap().is_hung_up());
}

#[test]
fn terminal_takes_input_signals_and_sizes() {
    // Shells differ in whether a trapped signal ends `read`, so each reads until it has its line.
    let text = "trap 'stty size' WINCH; trap 'echo int' INT; echo ready; \
        until read a; do :; done; echo a=$a; until read b; do :; done; echo b=$b";
    // An interrupt discards unread bytes in both directions, after it has sent the signal: the
    // trap's own output could be among them.
    let program = script(
        Wiring::Terminal(SIZE),
        &format!("stty -echo noflsh; {text}"),
    );
    let started = spawner().spawn(&program).unwrap();
    let (stdin, stdout) = (started.stdio.stdin.unwrap(), &started.stdio.stdout);
    read_until(stdout, |text| text.contains("ready"));
    assert!(!stdin.is_hung_up());
    stdout
        .resize(TtySize {
            rows: 50,
            cols: 132,
        })
        .unwrap();
    // A trap may run only after the interrupted command, so a line follows each signal.
    stdin.write(b"one\n").unwrap();
    read_until(stdout, |text| {
        text.contains("50 132") && text.contains("a=one\r\n")
    });
    stdin.write(b"\x03").unwrap();
    stdin.write(b"two\n").unwrap();
    let output = read_all(stdout);
    assert!(output.contains("int\r\n"), "{output:?}");
    assert!(output.contains("b=two\r\n"), "{output:?}");
}

#[test]
fn every_end_is_closed_on_exec_and_the_agents_do_not_block() {
    for wiring in [Wiring::InputAndOutput, Wiring::Terminal(SIZE)] {
        let (child, agent) = stdio::open(wiring).unwrap();
        let null = File::open("/dev/null").unwrap();
        let flags = |fd: i32, argument| {
            // SAFETY: both ends live to the end of the loop's body.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            nix::fcntl::fcntl(fd, argument).unwrap()
        };
        let agents = [
            agent.stdin.as_ref(),
            Some(&agent.stdout),
            agent.stderr.as_ref(),
        ];
        let agents = agents.into_iter().flatten();
        let agents: Vec<_> = agents.map(|end| end.as_fd().as_raw_fd()).collect();
        let children = child.descriptors(&null);
        for fd in agents.iter().chain(&children) {
            let descriptor_flags = flags(*fd, FcntlArg::F_GETFD);
            assert_eq!(descriptor_flags, libc::FD_CLOEXEC, "{wiring:?}");
            let does_not_block = flags(*fd, FcntlArg::F_GETFL) & libc::O_NONBLOCK != 0;
            assert_eq!(does_not_block, agents.contains(fd), "{wiring:?}");
        }
    }
}

#[track_caller]
fn check_failure(program: &Program, stage: Stage, errno: i32) {
    let err = spawner().spawn(program).unwrap_err();
    assert_eq!((err.stage, err.source.raw_os_error()), (stage, Some(errno)));
    assert!(err.stillborn.is_some());
}

#[test]
fn failed_exec_names_stage_and_errno() {
    let check = |candidates: &[&str], stage, errno| {
        check_failure(&program(candidates, &["x"]), stage, errno);
    };
    let folder = Folder::new("exec");
    let text = folder.program("text", b"echo hi\n");
    let orphan = folder.program("orphan", b"#!/nonexistent/sh\n");
    check(&["/nonexistent"], Stage::Exec, libc::ENOENT);
    check(&["/etc/passwd/x"], Stage::Exec, libc::ENOENT);
    check(&[], Stage::Exec, libc::ENOENT);
    check(&["/etc/passwd"], Stage::Exec, libc::EACCES);
    check(&["/etc"], Stage::Exec, libc::EACCES);
    check(&[&text], Stage::Exec, libc::ENOEXEC);
    check(&[&orphan], Stage::Interpreter, libc::ENOENT);
    let misled = folder.program("misled", b"#!/etc/passwd/sh\n");
    check(&[&misled], Stage::Interpreter, libc::ENOENT);
    // A file that cannot be executed is more informative than a missing one, in either order.
    check(&["/etc/passwd", "/nonexistent"], Stage::Exec, libc::EACCES);
    check(&["/nonexistent", "/etc/passwd"], Stage::Exec, libc::EACCES);
    check(&[&orphan, "/nonexistent"], Stage::Interpreter, libc::ENOENT);
    check(&[&orphan, "/etc/passwd"], Stage::Interpreter, libc::ENOENT);
}

#[test]
fn failed_exec_of_a_good_program_says_why() {
    let mut absent = program(&["/bin/sh"], &["sh"]);
    absent.cwd = CString::new("/nonexistent").unwrap();
    check_failure(&absent, Stage::Chdir, libc::ENOENT);

    // One byte more than the kernel accepts in an argument (`MAX_ARG_STRLEN`).
    let long = program(&["/bin/sh"], &["sh", &"x".repeat(32 * 4096)]);
    check_failure(&long, Stage::Exec, libc::E2BIG);

    let folder = Folder::new("busy");
    let busy = folder.program("busy", &std::fs::read("/bin/sh").unwrap());
    let _writer = std::fs::OpenOptions::new()
        .append(true)
        .open(&busy)
        .unwrap();
    check_failure(&program(&[&busy], &["busy"]), Stage::Exec, libc::ETXTBSY);
}

#[test]
fn later_candidate_wins_when_earlier_ones_cannot_be_run() {
    let folder = Folder::new("later");
    let orphan = folder.program("sh", b"#!/nonexistent/sh\n");
    let candidates = ["/nonexistent/sh", "/etc/passwd/sh", &orphan, "/bin/sh"];
    check_output(&program(&candidates, &["sh", "-c", "echo hi"]), "hi\n");
}

#[test]
fn child_becomes_the_user_and_owns_its_descriptors() {
    if !may_change_user("child_becomes_the_user_and_owns_its_descriptors") {
        return;
    }
    let text = "id -u; id -g; id -G; echo output >/dev/stdout; cat /dev/stdin";
    let user = Some(User {
        uid: 12345,
        gid: 23456,
        groups: vec![23456, 7, 8],
    });
    for wiring in [Wiring::Output, Wiring::Terminal(SIZE)] {
        let text = match wiring {
            Wiring::Output | Wiring::InputAndOutput => text.to_owned(),
            Wiring::Terminal(_) => text.replace("cat /dev/stdin", ": <$(tty)"),
        };
        let program = Program {
            user: user.clone(),
            ..script(wiring, &text)
        };
        let started = spawner().spawn(&program).unwrap();
        let output = read_all(&started.stdio.stdout).replace('\r', "");
        assert_eq!(output, "12345\n23456\n23456 7 8\noutput\n", "{wiring:?}");
    }
}

#[test]
fn users_directory_and_program_are_tried_with_the_users_rights() {
    if !may_change_user("users_directory_and_program_are_tried_with_the_users_rights") {
        return;
    }
    let folder = Folder::new("rights");
    let private = folder.program("private", b"#!/bin/sh\n");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&private, mode(0o700)).unwrap();
    let mut program = Program {
        user: Some(User {
            uid: 12345,
            gid: 23456,
            groups: Vec::new(),
        }),
        ..program(&[&private], &["private"])
    };
    check_failure(&program, Stage::Exec, libc::EACCES);
    std::fs::set_permissions(&folder.0, mode(0o700)).unwrap();
    program.cwd = CString::new(folder.0.to_str().unwrap()).unwrap();
    check_failure(&program, Stage::Chdir, libc::EACCES);
    // More groups than the kernel accepts (`NGROUPS_MAX`).
    let groups = vec![1; 65_537];
    program.user.as_mut().unwrap().groups = groups;
    check_failure(&program, Stage::User, libc::EINVAL);
}

/// The limit affects the whole process, so the test runs in a process of its own.
#[test]
fn running_out_of_descriptors_is_an_error_that_passes() {
    const VARIABLE: &str = "AGENT_TEST_DESCRIPTORS";
    if std::env::var_os(VARIABLE).is_none() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sys::spawn::tests::running_out_of_descriptors_is_an_error_that_passes",
            ])
            .env(VARIABLE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    let mut spawner = spawner();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let set_limit = |count: i32| {
        let limit = libc::rlimit {
            rlim_cur: u64::try_from(count).unwrap(),
            rlim_max: 1024,
        };
        // SAFETY: the pointer is to a live `rlimit`.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).unwrap();
    };
    let before = open();
    // The lowest free number: with any limit up to it no descriptor can be opened.
    let free = File::open("/dev/null").unwrap().as_raw_fd();
    for wiring in [Wiring::InputAndOutput, Wiring::Terminal(SIZE)] {
        // Each number of descriptors that is not enough.
        for count in 0..3 {
            set_limit(free + count);
            let err = spawner.spawn(&script(wiring, "true")).unwrap_err();
            assert_eq!(err.source.raw_os_error(), Some(libc::EMFILE));
            assert!(matches!(err.stage, Stage::Clone | Stage::Terminal));
            assert!(err.stillborn.is_none());
        }
        set_limit(1024);
        assert_eq!(open(), before);
        drop(spawner.spawn(&script(wiring, "true")).unwrap());
    }
}

/// The child begins in its cgroup, or moves there before the program.
#[test]
fn a_child_runs_in_its_cgroup() {
    let read = |path| std::fs::read_to_string(path).unwrap();
    let own = read("/proc/self/cgroup");
    let path = crate::cgroups::locate(&read("/proc/self/mountinfo"), &own);
    let Some(path) = path.filter(|_| may_change_user("a_child_runs_in_its_cgroup")) else {
        return;
    };
    let base = Cgroup::open(&path).unwrap();
    for clones_into_cgroups in [true, false] {
        let name = format!(
            "guest-agent-test-{clones_into_cgroups}-{}",
            std::process::id()
        );
        let mut spawner = spawner();
        spawner.clones_into_cgroups = clones_into_cgroups;
        let program = Program {
            cgroup: Some(base.make_child(&name).unwrap()),
            ..script(Wiring::Output, "cat /proc/self/cgroup")
        };
        let started = spawner.spawn(&program).unwrap();
        let output = read_all(&started.stdio.stdout);
        let line = output.lines().find(|line| line.starts_with("0::"));
        assert!(line.unwrap().ends_with(&format!("/{name}")), "{output}");
        assert_eq!(
            spawner.clones_into_cgroups, clones_into_cgroups,
            "Linux 5.7"
        );
        let cgroup = program.cgroup.as_ref().unwrap();
        assert!(
            cgroup
                .is_empty_within(std::time::Duration::from_secs(30))
                .unwrap()
        );
        assert!(base.remove_child(&name).unwrap());
    }
}
