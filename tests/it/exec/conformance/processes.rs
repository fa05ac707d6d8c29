//! Commands of several processes, and clients that are signalled, killed or detached.

use std::process::Stdio;

use nix::sys::signal::Signal;
use shared::message::ExitStatus;
use tests::client::killed_by;
use tests::fifo::Fifo;
use tests::process::{Finished, Running, run};

use super::case::{Case, Fixture, NONE, case};

pub(super) fn processes() -> Vec<Case> {
    vec![
        case("a background process that holds the output")
            .fifo("hold")
            .sh("cat {dir}/hold & echo started; exit 5")
            .prints("started\n")
            .exits(5)
            .ends("writers alive", |it| it.writers_alive)
            .podman("same; it does not report the writers"),
        case("a background process that does not hold the output")
            .fifo("hold")
            .sh("cat {dir}/hold >/dev/null 2>&1 & exit 5")
            .exits(5)
            .ends("no writers", |it| !it.writers_alive),
        case("a background process that writes once more, soon")
            .special("-- sh -c '(echo late) & echo now'", late_writer)
            .podman("differs: what comes after the end is lost"),
        case("a daemon: two forks, a session of its own, none of the session's streams")
            .fifo("hold")
            .fifo("alive")
            .special(
                "-- sh -c '(setsid cat FIFO >/dev/null 2>&1 </dev/null &)'",
                daemon,
            )
            .exits(6),
        case("two forks that keep the output")
            .fifo("hold")
            .sh("(setsid cat {dir}/hold &); exit 6")
            .exits(6)
            .ends("writers alive", |it| it.writers_alive)
            .podman("same; it does not report the writers"),
        case("a child that stops itself, until it gets SIGCONT")
            .special(
                "-- sh -c 'kill -STOP $$; exit 8', and kill -s CONT",
                stops_itself,
            )
            .exits(8)
            .podman("hangs as well; it has no command to send a signal to an exec"),
        case("a leader that changes its process group")
            .run(&["{odd}", "regroup", "sh", "-c", "echo elsewhere; exit 9"])
            .prints("elsewhere\n")
            .exits(9),
        case("a leader that begins a session of its own")
            .sh("exec setsid --wait sh -c 'echo apart; exit 3'")
            .prints("apart\n")
            .exits(3),
        case("a command that becomes another program")
            .sh("exec sh -c 'exec sh -c \"exit 12\"'")
            .exits(12),
        case("a command whose own children end badly")
            .sh("sh -c 'kill -9 $$'; sh -c 'exit 3'; exit 0")
            .errs("Killed\n"),
        case("a hundred processes in a row")
            .sh("i=0; while [ $i -lt 100 ]; do sh -c :; i=$((i + 1)); done; echo $i")
            .prints("100\n"),
    ]
}

pub(super) fn time_limits() -> Vec<Case> {
    vec![
        case("a time limit")
            .fifo("hold")
            .with("--timeout 300ms")
            .sh("cat {dir}/hold")
            .exits(124)
            .complains(&["limit"])
            .ends("timed out, by TERM", |it| {
                it.timed_out && it.status == killed_by(Signal::SIGTERM)
            })
            .podman(NONE),
        case("a time limit, taken with grace")
            .fifo("hold")
            .with("--timeout 300ms")
            .sh("trap 'echo bye; exit 3' TERM; cat {dir}/hold & wait")
            .exits(124)
            .prints("bye\n")
            .complains(&["limit"])
            .ends("timed out, exit 3", |it| {
                it.timed_out && it.status == ExitStatus::Code(3)
            })
            .podman(NONE),
        case("a time limit that TERM does not enforce")
            .fifo("hold")
            .with("--timeout 300ms")
            .sh("trap '' TERM; cat {dir}/hold")
            .exits(124)
            .complains(&["limit"])
            .ends("timed out, by KILL", |it| {
                it.timed_out && it.status == killed_by(Signal::SIGKILL)
            })
            .podman(NONE),
        case("a time limit ends the whole process group")
            .fifo("hold")
            .special(
                "--timeout 1s -- sh -c 'cat FIFO & cat FIFO | cat'",
                limit_for_all,
            )
            .exits(124)
            .complains(&["limit"])
            .podman(NONE),
        case("a time limit for a leader that left its process group")
            .fifo("hold")
            .with("--timeout 300ms")
            .run(&["{odd}", "regroup", "cat", "{dir}/hold"])
            .exits(124)
            .complains(&["limit"])
            .ends("timed out", |it| it.timed_out)
            .podman(NONE),
    ]
}

pub(super) fn signals() -> Vec<Case> {
    vec![
        case("TERM to the client is passed on")
            .special(
                "-- sh -c 'trap \"echo got; exit 9\" TERM …', then kill -TERM",
                passes_term,
            )
            .exits(9)
            .podman("differs: not passed on; podman is ended and the command runs on"),
        case("INT to the client is passed on")
            .special(
                "-- sh -c 'trap \"echo got; exit 9\" INT …', then kill -INT",
                passes_int,
            )
            .exits(9)
            .podman("differs: not passed on; podman is ended and the command runs on"),
        case("HUP to the client is passed on")
            .special(
                "-- sh -c 'trap \"echo got; exit 9\" HUP …', then kill -HUP",
                passes_hup,
            )
            .exits(9)
            .podman("differs: not passed on; podman is ended and the command runs on"),
        case("a signal to the client ends a command that does not expect it")
            .special("-- cat FIFO, then kill -TERM", plain_term)
            .fifo("hold")
            .exits(143)
            .podman("differs: not passed on; podman is ended and the command runs on"),
        case("a client that is killed ends its command, after --keep")
            .special("--keep 1ms -- cat FIFO, then kill -KILL", killed_client)
            .fifo("hold")
            .exits(137)
            .podman("differs: the command runs on"),
        case("kill sends any signal to a session")
            .fifo("hold")
            .special("-- cat FIFO, and kill ID -s USR1", kill_by_name)
            .exits(138)
            .podman(NONE),
        case("kill for a missing session")
            .special("kill 4711", kill_nobody)
            .exits(6)
            .complains(&["4711"])
            .podman(NONE),
    ]
}

pub(super) fn detached_commands() -> Vec<Case> {
    vec![
        case("-d prints the id and does not wait")
            .fifo("hold")
            .special("-d -- cat FIFO", detached)
            .podman("same, with an id of its own"),
        case("the end of a detached command can be waited for")
            .fifo("hold")
            .special("-d -- sh -c 'cat FIFO; exit 7', and wait ID", waited_for)
            .exits(7)
            .podman(NONE),
        case("and its output can be attached to, also after the end")
            .special(
                "-d -- sh -c 'echo out; echo err >&2; exit 3', and attach ID",
                attached_later,
            )
            .exits(3)
            .prints("out\n")
            .errs("err\n")
            .podman(NONE),
    ]
}

pub(super) fn terminals() -> Vec<Case> {
    vec![
        case("-t makes all three streams a terminal")
            .with("-t")
            .sh("test -t 0 && test -t 1 && test -t 2 && echo terminal >&2")
            .prints("terminal\r\n"),
        case("with -t the command leads a session and controls the terminal")
            .with("-t")
            .sh("read -r pid _ _ _ _ session _ </proc/$$/stat; \
                 [ $pid = $session ] && : </dev/tty && echo leads")
            .prints("leads\r\n"),
        case("-it without a terminal is refused")
            .with("-it")
            .piped(b"a\n")
            .run(&["cat"])
            .exits(125)
            .complains(&["not a TTY"])
            .podman("differs: runs it, and never ends"),
        case("-it: what is typed is echoed and read, and Ctrl-D is the end")
            .special("-it -- cat, with a line and Ctrl-D typed", typed_line)
            .mentions(&["a line\r\na line\r\n"]),
        case("-it: Ctrl-C is an interrupt")
            .special("-it -- cat, with Ctrl-C typed", control_c)
            .exits(130)
            .mentions(&["^C"]),
        case("-it: Ctrl-\\ is a quit")
            .special("-it -- cat, with Ctrl-\\ typed", control_backslash)
            .exits(131)
            .mentions(&["^\\"])
            .podman("was not tried"),
        case("-i -t apart is the same").special("-i -t -- tty -s", apart),
        case("a terminal whose command ends with a background process in it")
            .fifo("hold")
            .with("-t")
            .sh("trap '' HUP; cat {dir}/hold & echo now; exit 4")
            .prints("now\r\n")
            .exits(4),
    ]
}

/// Starts a shell that reports when it is ready, with a time limit that only a defect reaches.
fn ready(fixture: &Fixture<'_>, options: &[&str], script: &str) -> Running {
    let mut running = fixture.start(options, &format!("echo ready; {script}"));
    assert_eq!(running.read_line(), "ready");
    running
}

fn late_writer(fixture: &Fixture<'_>) -> Finished {
    let mut running = fixture.start(&[], "(echo late) & echo now");
    let mut lines = [running.read_line(), running.read_line()];
    lines.sort();
    assert_eq!(lines, ["late", "now"]);
    running.finish()
}

fn daemon(fixture: &Fixture<'_>) -> Finished {
    let (hold, alive) = (fixture.folder.join("hold"), fixture.folder.join("alive"));
    let body = format!("echo $$ >{}; exec cat {}", alive.display(), hold.display());
    let script = format!("(setsid sh -c '{body}' >/dev/null 2>&1 </dev/null &); exit 6");
    let ended = fixture.start(&[], &script).finish();
    assert!(!fixture.exited().writers_alive, "it holds nothing of ours");
    // The daemon writes its process id; by then the session has ended.
    let pid = read_gate(alive);
    let group = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
    assert!(group.contains("(sh)") || group.contains("(cat)"), "{group}");
    ended
}

fn read_gate(path: std::path::PathBuf) -> String {
    let read = move || std::fs::read_to_string(path);
    tests::within_deadline("the daemon", read).unwrap()
}

fn stops_itself(fixture: &Fixture<'_>) -> Finished {
    let running = ready(fixture, &[], "kill -STOP $$; exit 8");
    // Other commands run meanwhile.
    fixture.agent.exec(["true"]).exits(0);
    let pid = fixture.session().pid;
    wait_for_state(pid, 'T');
    fixture.about(["kill", "{id}", "-s", "CONT"]).exits(0);
    running.finish()
}

/// Waits until a process is in this state. It polls, since the kernel notifies only the parent.
fn wait_for_state(pid: u32, state: char) {
    let started = std::time::Instant::now();
    let is_there = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains(&format!("State:\t{state}"))
    };
    while !is_there() {
        assert!(started.elapsed() < tests::DEADLINE, "{pid} is not {state}");
        std::thread::yield_now();
    }
}

fn limit_for_all(fixture: &Fixture<'_>) -> Finished {
    let fifo = Fifo::new(&fixture.folder, "all");
    let script = format!("cat {0} & cat {0} | cat", fifo.path());
    let running =
        Running::start(&mut fixture.command(&["--timeout", "1s"], &["sh", "-c", &script]));
    let held = fifo.hold();
    let ended = running.finish();
    held.wait_gone();
    ended
}

/// Signals the client while its command waits in a shell.
fn passes(fixture: &Fixture<'_>, signal: Signal) -> Finished {
    let hold = Fifo::new(&fixture.folder, "wait");
    let name = signal.as_str().trim_start_matches("SIG");
    // The signal interrupts `wait`. A foreground process would be ended by it as well.
    let script = format!(
        "trap 'echo got; exit 9' {name}; echo ready; cat {} & wait",
        hold.path()
    );
    let mut running = fixture.start(&[], &script);
    assert_eq!(running.read_line(), "ready");
    running.signal(signal);
    assert_eq!(running.read_line(), "got");
    running.finish()
}

fn passes_term(fixture: &Fixture<'_>) -> Finished {
    passes(fixture, Signal::SIGTERM)
}

fn passes_int(fixture: &Fixture<'_>) -> Finished {
    passes(fixture, Signal::SIGINT)
}

fn passes_hup(fixture: &Fixture<'_>) -> Finished {
    passes(fixture, Signal::SIGHUP)
}

fn plain_term(fixture: &Fixture<'_>) -> Finished {
    let running = ready(
        fixture,
        &[],
        &format!("exec cat {}/hold", fixture.folder.display()),
    );
    running.signal(Signal::SIGTERM);
    running.finish()
}

fn killed_client(fixture: &Fixture<'_>) -> Finished {
    let fifo = Fifo::new(&fixture.folder, "killed");
    let script = format!("cat {}", fifo.path());
    let running = ready(fixture, &["--keep", "1ms"], &script);
    let held = fifo.hold();
    running.signal(Signal::SIGKILL);
    held.wait_gone();
    running.finish()
}

fn kill_by_name(fixture: &Fixture<'_>) -> Finished {
    let running = ready(
        fixture,
        &[],
        &format!("exec cat {}/hold", fixture.folder.display()),
    );
    fixture.about(["kill", "{id}", "-s", "USR1"]).exits(0);
    running.finish()
}

fn kill_nobody(fixture: &Fixture<'_>) -> Finished {
    fixture.about(["kill", "4711"])
}

fn detached(fixture: &Fixture<'_>) -> Finished {
    let argv = [
        "cat".to_owned(),
        fixture.folder.join("hold").display().to_string(),
    ];
    let mut ended = run(&mut fixture.command(&["-d".to_owned()], &argv));
    assert_eq!(ended.out(), format!("{}\n", fixture.id));
    let session = fixture.session();
    assert_eq!(session.state.as_str(), "running");
    assert!(session.detached, "{session:?}");
    ended.stdout.clear();
    ended
}

fn waited_for(fixture: &Fixture<'_>) -> Finished {
    let script = format!("cat {}/hold; exit 7", fixture.folder.display());
    run(&mut fixture.command(&["-d"], &["sh", "-c", &script])).exits(0);
    let id = fixture.id.to_string();
    let waiting = fixture.agent.run(["wait", &id], []);
    // Releases the command once it reads the pipe.
    let path = fixture.folder.join("hold");
    let open = move || std::fs::OpenOptions::new().write(true).open(path);
    drop(tests::within_deadline("cat", open).unwrap());
    waiting.finish()
}

fn attached_later(fixture: &Fixture<'_>) -> Finished {
    let script = "echo out; echo err >&2; exit 3";
    run(&mut fixture.command(&["-d"], &["sh", "-c", script])).exits(0);
    fixture.about(["wait", "{id}"]).exits(3);
    fixture.about(["attach", "{id}"])
}

/// Types at the terminal of a command that has reported that it is ready.
fn typed(fixture: &Fixture<'_>, options: &[&str], script: &str, keys: &[u8]) -> Finished {
    let pair = nix::pty::openpty(None, None).unwrap();
    let script = format!("ulimit -c 0; echo ready; {script}");
    let mut command = fixture.command(options, &["sh", "-c", &script]);
    let command = command.stdin(pair.slave.try_clone().unwrap());
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running::start_as_it_is(command);
    assert_eq!(running.read_line(), "ready\r");
    nix::unistd::write(&pair.master, keys).unwrap();
    running.finish()
}

fn typed_line(fixture: &Fixture<'_>) -> Finished {
    typed(fixture, &["-it"], "exec cat", b"a line\n\x04")
}

fn control_c(fixture: &Fixture<'_>) -> Finished {
    typed(fixture, &["-it"], "exec cat", b"\x03")
}

fn control_backslash(fixture: &Fixture<'_>) -> Finished {
    typed(fixture, &["-it"], "exec cat", b"\x1c")
}

fn apart(fixture: &Fixture<'_>) -> Finished {
    let mut ended = typed(fixture, &["-i", "-t"], "tty -s", b"");
    ended.stdout.clear();
    ended
}
