//! How commands end, and programs that cannot be started.

use nix::sys::signal::Signal;
use tests::client::killed_by;
use tests::process::Finished;

use super::case::{Case, Fixture, NONE, case};

/// Whether a signal ends a process by default (`signal(7)`). 32 and 33 belong to the C library: a
/// caller of `posix_spawn` may leave them ignored in an agent, and a shell in its children.
const fn is_deadly(number: i32) -> bool {
    let is_harmless = matches!(number, 17 | 18 | 23 | 28);
    let is_stop = matches!(number, 19..=22);
    !is_harmless && !is_stop && !matches!(number, 32 | 33)
}

pub(super) fn exit_codes() -> Vec<Case> {
    vec![
        case("success").run(&["true"]),
        case("failure").run(&["false"]).exits(1),
        case("a code").sh("exit 3").exits(3),
        case("the highest code").sh("exit 255").exits(255),
        case("a code that host-tool has as well: 124")
            .sh("exit 124")
            .exits(124)
            .ends("not timed out", |it| !it.timed_out),
        case("a code that host-tool has as well: 125")
            .sh("exit 125")
            .exits(125),
        case("a code that host-tool has as well: 126")
            .sh("exit 126")
            .exits(126),
        case("a code that host-tool has as well: 127")
            .sh("exit 127")
            .exits(127),
        case("each code, 0 to 255")
            .special("sh -c 'exit N'", each_code)
            .exits(255),
    ]
}

pub(super) fn signals() -> Vec<Case> {
    vec![
        case("each deadly signal, 1 to 64")
            .special("sh -c 'kill -N $$'", each_signal)
            .exits(192)
            .podman("same; QUIT was not tried"),
        case("signals that end nothing").sh("for s in CHLD CONT URG WINCH; do kill -$s $$; done"),
        case("a signal whose default the agent changed for itself: PIPE")
            .sh("kill -PIPE $$")
            .exits(141),
        case("a code above 128 is not a signal")
            .sh("exit 143")
            .exits(143)
            .ends("a code", |it| {
                it.status == shared::message::ExitStatus::Code(143)
            }),
        case("a signal is not a code above 128")
            .sh("kill -TERM $$")
            .exits(143)
            .ends("signal 15", |it| it.status == killed_by(Signal::SIGTERM))
            .podman("same code; not reported which of the two"),
        case("a core dump is reported")
            .special("sh -c 'ulimit -c unlimited; kill -ABRT $$'", core_dump)
            .exits(134)
            .podman("same code; the core is not reported"),
        case("no core dump, none reported")
            .sh("ulimit -c 0; kill -ABRT $$")
            .exits(134)
            .ends("no core", |it| it.status == killed_by(Signal::SIGABRT))
            .podman("same code; the core is not reported"),
        case("CPU time and memory are reported")
            .sh("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
            .ends("user time and peak memory", |it| {
                it.usage.user_us > 0 && it.usage.rss_max_kib > 0
            })
            .podman(NONE),
        case("the length of each output is reported")
            .sh("printf 12345; printf 123 >&2")
            .prints("12345")
            .errs("123")
            .ends("5 and 3 bytes", |it| {
                (it.stdout_end, it.stderr_end) == (5, 3)
            })
            .podman(NONE),
        case("a second EXEC with the same id runs nothing and has the same end")
            .special(
                "--id ID -- sh -c 'echo ran >> FILE; exit 4', twice",
                same_id,
            )
            .exits(4)
            .podman(NONE),
    ]
}

pub(super) fn programs() -> Vec<Case> {
    vec![
        case("not found in PATH")
            .run(&["no-such-program"])
            .exits(127)
            .complains(&["no-such-program"]),
        case("no such path")
            .run(&["/no/such/program"])
            .exits(127)
            .complains(&["/no/such/program"]),
        case("an empty name")
            .run(&[""])
            .exits(127)
            .complains(&["cannot find the program"])
            .podman("differs: 126"),
        case("no command at all")
            .special("--", no_command)
            .exits(125)
            .complains(&["--"])
            .podman("differs: 255"),
        case("a directory")
            .run(&["/tmp"])
            .exits(126)
            .complains(&["/tmp"]),
        case("not executable")
            .run(&["/etc/passwd"])
            .exits(126)
            .complains(&["/etc/passwd"]),
        case("a path through a file")
            .run(&["/etc/passwd/x"])
            .exits(127)
            .complains(&["/etc/passwd/x"])
            .podman("differs: 255"),
        case("a bad interpreter")
            .special(
                "./script, which begins with #!/no/such/interpreter",
                bad_interpreter,
            )
            .exits(126)
            .complains(&["bad-script"])
            .podman("differs: 1"),
        case("a script without an interpreter is not a program")
            .special("./script, which is executable text", no_interpreter)
            .exits(126)
            .complains(&["plain-script"])
            .podman("differs: 1"),
        case("an empty file is not a program")
            .special("./empty, which is executable", empty_program)
            .exits(126)
            .complains(&["empty-file"])
            .podman("differs: 1"),
    ]
}

pub(super) fn search() -> Vec<Case> {
    vec![
        case("PATH of the command itself is what counts")
            .with("-e PATH=/nowhere")
            .run(&["sh"])
            .exits(127)
            .complains(&["sh"]),
        case("what cannot be executed does not hide what can, later in PATH")
            .special(
                "-e PATH=DIR1:DIR2 -- tool, plain text in the first",
                later_in_path,
            )
            .prints("ran\n"),
        case("a relative path begins at the working directory")
            .with("-w /bin")
            .run(&["./sh", "-c", "echo here"])
            .prints("here\n"),
        case("a missing working directory")
            .with("-w /no/such/folder")
            .run(&["true"])
            .exits(126)
            .complains(&["/no/such/folder"])
            .podman("differs: 127"),
        case("a working directory that is a file")
            .with("-w /etc/passwd")
            .run(&["true"])
            .exits(126)
            .complains(&["/etc/passwd"])
            .podman("differs: 255"),
    ]
}

fn each_code(fixture: &Fixture<'_>) -> Finished {
    let mut last = None;
    for code in 0..=255 {
        let script = format!("exit {code}");
        last = Some(fixture.agent.exec(["sh", "-c", &script]).exits(code));
    }
    last.unwrap()
}

fn each_signal(fixture: &Fixture<'_>) -> Finished {
    let mut last = None;
    for number in (1..=64).filter(|&number| is_deadly(number)) {
        let script = format!("kill -{number} $$");
        let ended = fixture.agent.exec(["sh", "-c", &script]);
        last = Some(ended.exits(128 + number));
    }
    last.unwrap()
}

/// Whether a core is dumped depends on the machine, so the same command is run directly to compare.
fn core_dump(fixture: &Fixture<'_>) -> Finished {
    use shared::message::ExitStatus;
    use std::os::unix::process::ExitStatusExt;
    let script = "ulimit -c unlimited; kill -ABRT $$";
    let mut here = std::process::Command::new("sh");
    here.args(["-c", script]).current_dir(&fixture.folder);
    let core = tests::process::run(&mut here).status.core_dumped();
    let args = ["-w", "{dir}"];
    let ended = tests::process::run(&mut fixture.command(&args, &["sh", "-c", script]));
    assert_eq!(
        fixture.exited().status,
        ExitStatus::Signal { number: 6, core }
    );
    ended
}

fn same_id(fixture: &Fixture<'_>) -> Finished {
    let argv = ["sh", "-c", "echo ran >> {dir}/file; exit 4"];
    let none: [&str; 0] = [];
    let run = |argv: &[&str; 3]| tests::process::run(&mut fixture.command(&none[..], argv));
    let first = run(&argv).exits(4);
    assert!(first.stderr.is_empty(), "{first}");
    let second = run(&argv);
    let file = std::fs::read_to_string(fixture.folder.join("file")).unwrap();
    assert_eq!(file, "ran\n");
    second
}

fn no_command(fixture: &Fixture<'_>) -> Finished {
    fixture.agent.host_tool(["exec"], [])
}

/// Runs an executable file with this text.
fn script(fixture: &Fixture<'_>, name: &str, text: &str) -> Finished {
    use std::os::unix::fs::PermissionsExt;
    let path = fixture.folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let none: [&str; 0] = [];
    tests::process::run(&mut fixture.command(&none, &[path.to_str().unwrap()]))
}

fn bad_interpreter(fixture: &Fixture<'_>) -> Finished {
    script(fixture, "bad-script", "#!/no/such/interpreter\n")
}

fn no_interpreter(fixture: &Fixture<'_>) -> Finished {
    script(fixture, "plain-script", "echo ran\n")
}

fn empty_program(fixture: &Fixture<'_>) -> Finished {
    script(fixture, "empty-file", "")
}

fn later_in_path(fixture: &Fixture<'_>) -> Finished {
    use std::os::unix::fs::PermissionsExt;
    for (folder, mode) in [("1", 0o644), ("2", 0o755)] {
        let folder = fixture.folder.join(folder);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("tool");
        std::fs::write(&path, "#!/bin/sh\necho ran\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let args = ["-e", "PATH={dir}/1:{dir}/2:/bin:/usr/bin"];
    tests::process::run(&mut fixture.command(&args, &["tool"]))
}
