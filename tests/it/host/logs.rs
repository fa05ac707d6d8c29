//! Goal: `host-tool logs` shows every byte of the workload once, whichever process is killed
//! meanwhile. Method: an agent whose workload prints what the test writes into a pipe, and a VM
//! directory that has this agent as its VMM and a dead supervisor.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::agent::Agent;
use tests::host::mark;
use tests::muxer::Muxer;
use tests::process::{lines, run, signal};
use tests::{DEADLINE, await_true, program};

/// A workload that prints what is written into a pipe, and ends when the pipe is closed.
pub(crate) struct Workload {
    folder: TempDir,
    agent: Agent,
    pipe: File,
}

impl Workload {
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let command = make_pipe(folder.path());
        let agent = Agent::start_with(&["--workload", &command]);
        let pipe = open_pipe(folder.path());
        Self {
            folder,
            agent,
            pipe,
        }
    }

    fn print(&mut self, lines: std::ops::Range<u32>) {
        self.pipe.write_all(text(lines).as_bytes()).unwrap();
    }
}

/// Makes the pipe. Gives the workload's command line.
fn make_pipe(folder: &Path) -> String {
    let path = folder.join("pipe");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    format!("cat {}", path.display())
}

/// Waits until the workload has opened the pipe.
fn open_pipe(folder: &Path) -> File {
    let mut options = OpenOptions::new();
    options.write(true).open(folder.join("pipe")).unwrap()
}

fn text(lines: std::ops::Range<u32>) -> String {
    lines.map(|line| format!("line {line}\n")).collect()
}

/// A VM directory with the agent as its VMM.
pub(crate) struct VmDir {
    state_dir: PathBuf,
    /// Firecracker's vsock device, once the VM is published.
    muxer: Option<Muxer>,
}

impl VmDir {
    pub(crate) fn new(workload: &Workload) -> Self {
        let mut vm = Self::empty(workload.folder.path());
        vm.publish(workload.agent.pid(), &workload.agent.socket());
        vm
    }

    fn empty(folder: &Path) -> Self {
        let state_dir = folder.join("state");
        let mut private = DirBuilder::new();
        private.mode(0o700).recursive(true);
        private.create(state_dir.join("vm")).unwrap();
        mark(&state_dir.join("vm"));
        Self {
            state_dir,
            muxer: None,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.state_dir.join("vm")
    }

    /// Writes `state.json` with process `pid` as the VMM.
    fn publish(&mut self, pid: u32, agent: &Path) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap();
        let start_time = behind_name.split_whitespace().nth(19).unwrap();
        let start_time: u64 = start_time.parse().unwrap();
        let state = json!({
            "stage": "ready",
            "vmm": { "kind": "firecracker", "version": "1.16.1" },
            "process": { "pid": pid, "start_time": start_time },
            "supervisor": { "pid": pid, "start_time": start_time + 1 },
            "machine": {
                "kernel": "/k", "initrd": "/i", "memory_mib": 256, "vcpu_count": 1,
                "append": "", "guest_cid": 3, "drives": [],
            },
            "cause": "boot",
            "created_ms": 1,
        });
        fs::write(self.path().join("state.json"), state.to_string()).unwrap();
        self.muxer = Some(Muxer::start(self.path().join("vsock.sock"), agent));
    }

    pub(crate) fn host_tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("host-tool"));
        command
            .args(arguments)
            .arg("--state-dir")
            .arg(&self.state_dir);
        command
    }

    fn follow(&self) -> Follower {
        Follower::start(self.host_tool(&["logs", "--name", "vm", "--follow"]))
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.path().join("output.log")).unwrap()
    }
}

/// A `logs --follow` that is running.
struct Follower {
    child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self {
            child,
            lines,
            seen: String::new(),
        }
    }

    /// Waits until `line` was printed.
    fn await_line(&mut self, line: u32) {
        let line = format!("line {line}\n");
        while !self.seen.ends_with(&line) {
            self.seen += &(self.lines.recv_timeout(DEADLINE).unwrap() + "\n");
        }
    }

    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.seen
    }

    /// Everything that it printed. Waits until it has ended successfully by itself.
    fn join(mut self) -> String {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => self.seen += &(line + "\n"),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
            }
        }
        assert!(self.child.wait().unwrap().success());
        self.seen
    }
}

#[test]
fn writers_that_are_killed_lose_and_repeat_nothing() {
    let mut workload = Workload::start();
    let vm = VmDir::new(&workload);
    // The first follower writes the log in the supervisor's place; the second one waits for its
    // turn.
    let mut writer = vm.follow();
    workload.print(0..1);
    writer.await_line(0);
    let mut survivor = vm.follow();
    survivor.await_line(0);
    for round in 1..8u32 {
        let end = round * 500;
        workload.print(end - 499..end);
        // Killed in the middle of these lines.
        writer.await_line(end - 250);
        assert!(text(0..end).starts_with(&writer.kill()));
        workload.print(end..end + 1);
        writer = vm.follow();
        writer.await_line(end);
    }
    drop(workload.pipe);
    let expected = text(0..3501);
    assert!(writer.join() == expected, "a later writer");
    assert!(survivor.join() == expected, "who was there all the time");
    assert!(vm.logged() == expected, "the log");

    let inspected = run(&mut vm.host_tool(&["inspect", "vm", "--json"])).exits(0);
    assert_eq!(inspected.json()["workload_exit"]["code"], 0);
    assert_eq!(inspected.json()["workload_exit"]["restarts"], 0);
}

/// A supervisor with the agent as its VMM.
pub(crate) struct Supervised {
    pub(crate) vm: VmDir,
    pub(crate) supervisor: Child,
    pub(crate) vmm: u32,
    pipe: File,
    _folder: TempDir,
}

impl Supervised {
    fn start() -> Self {
        Self::start_in(TempDir::new().unwrap())
    }

    /// The same, in a folder that may already have files in `state/vm`.
    pub(crate) fn start_in(folder: TempDir) -> Self {
        let command = make_pipe(folder.path());
        let mut vm = VmDir::empty(folder.path());
        let socket = folder.path().join("agent.sock");
        let listen = format!("unix:{}", socket.display());
        let launch = json!({
            "program": program("guest-agent").to_str().unwrap(),
            "args": ["--unprivileged", "--listen", listen, "--workload", command],
        });
        fs::write(vm.path().join("launch.json"), launch.to_string()).unwrap();
        let mut supervisor = Command::new(program("host-tool"))
            .arg("supervise")
            .arg(vm.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut report = String::new();
        let mut reports = BufReader::new(supervisor.stdout.take().unwrap());
        reports.read_line(&mut report).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let vmm = u32::try_from(report["spawned"]["pid"].as_u64().unwrap()).unwrap();
        vm.publish(vmm, &socket);
        fs::copy(
            vm.path().join("state.json"),
            vm.path().join("state.next.json"),
        )
        .unwrap();
        let pipe = open_pipe(folder.path());
        // The VM is in use from now on, so that it outlives its starter.
        supervisor.stdin.take().unwrap().write_all(b"k").unwrap();
        let mut report = String::new();
        reports.read_line(&mut report).unwrap();
        assert_eq!(report, "{\"published\":true}\n");
        Self {
            vm,
            supervisor,
            vmm,
            pipe,
            _folder: folder,
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        signal(self.vmm, Signal::SIGKILL);
        drop(self.supervisor.wait());
    }
}

#[test]
fn a_supervisor_writes_down_and_its_death_loses_nothing() {
    let mut supervised = Supervised::start();
    let mut follower = supervised.vm.follow();
    let print = |pipe: &mut File, lines| pipe.write_all(text(lines).as_bytes()).unwrap();
    print(&mut supervised.pipe, 0..500);
    follower.await_line(499);
    print(&mut supervised.pipe, 500..1000);
    supervised.supervisor.kill().unwrap();
    print(&mut supervised.pipe, 1000..2000);
    follower.await_line(1999);
    signal(supervised.vmm, Signal::SIGKILL);
    assert!(follower.join() == text(0..2000));
    assert!(supervised.vm.logged() == text(0..2000));
}

#[test]
fn the_last_words_are_written_down_before_the_end_is() {
    let mut supervised = Supervised::start();
    let follower = supervised.vm.follow();
    supervised.pipe.write_all(b"line 0\nlast word").unwrap();
    let shown = || {
        let mut logs = supervised.vm.host_tool(&["logs", "--name", "vm"]);
        run(&mut logs).out()
    };
    // The agent may need more than one request until it has read the pipe.
    await_true("the last word", || shown().ends_with("last word"));
    signal(supervised.vmm, Signal::SIGTERM);
    supervised.supervisor.wait().unwrap();
    let inspected = run(&mut supervised.vm.host_tool(&["inspect", "vm", "--json"])).exits(0);
    assert_eq!(inspected.json()["status"], "exited");
    assert_eq!(supervised.vm.logged(), "line 0\nlast word");
    assert_eq!(follower.join(), "line 0\nlast word\n");
}

#[test]
fn what_the_guest_had_when_asked_is_shown_also_after_its_end() {
    let mut workload = Workload::start();
    let vm = VmDir::new(&workload);
    let logs = |arguments: &[&str]| {
        let args = [&["logs", "--name", "vm"], arguments].concat();
        run(&mut vm.host_tool(&args)).exits(0).out()
    };
    workload.print(0..1000);
    // The agent may need more than one request until it has read the whole pipe.
    await_true("line 999", || logs(&[]).ends_with("line 999\n"));
    assert_eq!(logs(&[]), text(0..1000));
    assert_eq!(logs(&["--tail", "2"]), text(998..1000));
    assert_eq!(logs(&["--tail", "0"]), "");
    drop(workload.agent);
    assert_eq!(logs(&[]), text(0..1000));
    assert_eq!(logs(&["--follow", "--tail", "1"]), text(999..1000));
}

#[test]
fn a_guest_without_a_directory_is_looked_at() {
    let mut workload = Workload::start();
    let command = workload
        .agent
        .host_tool_command(["logs", "--follow", "--tail", "5"], []);
    let mut follower = Follower::start(command);
    workload.print(0..100);
    follower.await_line(99);
    let shown = workload.agent.host_tool(["logs", "--tail", "3"], []);
    assert_eq!(shown.exits(0).out(), text(97..100));
    let shown = workload.agent.host_tool(["logs"], []);
    assert_eq!(
        shown.exits(0).out(),
        text(0..100),
        "the first reader took it away"
    );
    drop(workload.pipe);
    assert!(text(0..100).ends_with(&follower.join()));
}

#[test]
fn a_reader_that_has_had_enough_ends_it() {
    let mut workload = Workload::start();
    let vm = VmDir::new(&workload);
    let mut command = vm.host_tool(&["logs", "--name", "vm", "--follow"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    workload.print(0..1);
    let mut first = [0; 7];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"line 0\n");
    // No more output comes, so only the closed pipe itself can end the command.
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn a_guest_without_a_workload_is_told_apart() {
    let agent = Agent::start();
    for command in [["logs", "--quiet"], ["logs", "--follow"]] {
        let ended = agent.host_tool(command, []).exits(6);
        ended.complains("/etc/guest-agent/agent.json");
    }
    agent.host_tool(["logs", "--json"], []).exits(2);
}
