//! Commands and the workload keep their output through snapshots and cuts.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread;

use tests::process::{Finished, Running, lines};

use crate::Case;
use crate::machine::{Machine, TIMEOUT};
use crate::proxy::Proxy;

pub(crate) const CASES: &[Case] = &[
    (
        "an_exec_runs_across_snapshots_of_its_machine",
        an_exec_runs_across_snapshots,
    ),
    (
        "an_exec_runs_across_hard_cuts",
        an_exec_runs_across_hard_cuts,
    ),
    ("a_mebibyte_through_cat", |machine| through_cat(machine, 1)),
    ("a_gibibyte_through_cat", |machine| {
        through_cat(machine, 1024)
    }),
    ("a_hundred_execs", |machine| flood(machine, 100, 20)),
    ("ten_thousand_execs", |machine| flood(machine, 10_000, 500)),
    ("the_workloads_output_is_whole", |machine| {
        the_workloads_output_is_whole(machine, 3);
    }),
    ("the_workloads_output_across_twenty_cuts", |machine| {
        the_workloads_output_is_whole(machine, 20);
    }),
    ("a_terminal_in_a_machine", a_terminal_in_a_machine),
];

/// Prints a line with the next number every millisecond until the file exists. `usleep` is a
/// process, so in the emulated lab it is ten milliseconds rather.
pub(crate) const NUMBERED: &str =
    "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); usleep 1000; done";

/// A command whose lines are read as they come.
pub(crate) struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn exec(machine: &Machine, target: &[&str], line: &str) -> Self {
        let mut command = machine.command(["exec"]);
        command.args(target).args(["--timeout", TIMEOUT]);
        command.args(["--", "sh", "-c", line]);
        Self::start(command)
    }

    /// Reads numbered lines, starting at `next`, until `count` more have come.
    #[track_caller]
    pub(crate) fn expect_numbers(&self, next: &mut u64, count: u64) {
        for _ in 0..count {
            let line = self.lines.recv_timeout(tests::DEADLINE).expect("a line");
            assert_eq!(line, next.to_string(), "a line is lost or repeated");
            *next += 1;
        }
    }

    /// Reads numbered lines to the end.
    #[track_caller]
    pub(crate) fn finish_numbers(self, mut next: u64) -> (Finished, u64) {
        while let Ok(line) = self.lines.recv_timeout(tests::DEADLINE) {
            assert_eq!(line, next.to_string(), "a line is lost or repeated");
            next += 1;
        }
        (self.finish(), next)
    }

    #[track_caller]
    fn finish(mut self) -> Finished {
        let mut stderr = Vec::new();
        drop(self.child.stderr.take().unwrap().read_to_end(&mut stderr));
        let status = self.child.wait().unwrap();
        Finished {
            status,
            stdout: Vec::new(),
            stderr,
        }
    }
}

fn an_exec_runs_across_snapshots(machine: &Machine) {
    machine.boot("vm");
    let follower = Follower::exec(machine, &["--name", "vm"], NUMBERED);
    let mut next = 0;
    follower.expect_numbers(&mut next, 20);
    for round in 0..3 {
        machine.snapshot("vm", &format!("artifact-{round}"), &[]);
        follower.expect_numbers(&mut next, 50);
    }
    machine.exec("vm", "touch /tmp/stop");
    let (ended, count) = follower.finish_numbers(next);
    assert!(ended.exits(0).stderr.is_empty());
    assert!(count >= 170, "{count} lines");
    // The clone has a copy of the command, which runs on there without a client.
    machine.restore(&machine.path("artifact-2"), "clone");
    let listed = machine
        .tool(["ps", "--name", "clone", "--json"])
        .exits(0)
        .json();
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 1, "{listed}");
    let session = sessions[0]["session"].to_string();
    machine.exec("clone", "touch /tmp/stop");
    let waited = machine.tool(["wait", "--name", "clone", &session, "--timeout", TIMEOUT]);
    waited.exits(0);
    machine.end("clone");
    machine.end("vm");
    machine.is_clean();
}

fn an_exec_runs_across_hard_cuts(machine: &Machine) {
    machine.boot("vm");
    let proxy = Proxy::start(machine, "vm");
    let socket = proxy.socket().to_str().unwrap().to_owned();
    let follower = Follower::exec(machine, &["--unix", &socket], NUMBERED);
    let mut next = 0;
    for _ in 0..5 {
        follower.expect_numbers(&mut next, 30);
        proxy.cut();
    }
    follower.expect_numbers(&mut next, 30);
    machine.exec("vm", "touch /tmp/stop");
    let (ended, _) = follower.finish_numbers(next);
    ended.exits(0);
    drop(proxy);
    machine.end("vm");
    machine.is_clean();
}

/// Random bytes, so that no error can hide in a repetition.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

fn through_cat(machine: &Machine, mebibytes: u64) {
    machine.boot("vm");
    let resident = || -> u64 {
        let line = machine.exec("vm", "grep VmRSS /proc/1/status");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = resident();
    let mut command = machine.command(["exec", "--name", "vm", "-i", "--", "sh", "-c", "exec cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn(move || {
        let (mut noise, mut bytes) = (Noise(42), vec![0; 1 << 20]);
        for _ in 0..mebibytes {
            noise.fill(&mut bytes);
            stdin.write_all(&bytes).unwrap();
        }
    });
    let mut stdout = child.stdout.take().unwrap();
    let (mut noise, mut expected, mut got) = (Noise(42), vec![0; 1 << 20], vec![0; 1 << 20]);
    for number in 0..mebibytes {
        noise.fill(&mut expected);
        // The client cannot end before the second half is read, since a pipe holds less.
        let (first, second) = got.split_at_mut(1 << 19);
        stdout.read_exact(first).unwrap();
        if number == mebibytes / 2 {
            let client = peak_kib(child.id());
            assert!(client < 16 * 1024, "the client takes {client} KiB");
        }
        stdout.read_exact(second).unwrap();
        assert!(got == expected, "other bytes in mebibyte {number}");
    }
    feeder.join().unwrap();
    assert_eq!(stdout.read(&mut got).unwrap(), 0, "more than was sent");
    assert!(child.wait().unwrap().success());
    let growth = resident().saturating_sub(before);
    assert!(growth < 2048, "the agent grew by {growth} KiB");
    machine.end("vm");
    machine.is_clean();
}

/// Peak resident memory of a process of this machine, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

fn flood(machine: &Machine, total: u32, parallel: u32) {
    machine.boot("vm");
    let fds = || machine.exec("vm", "ls /proc/1/fd | wc -l");
    let stress = |total: u32, parallel: u32| {
        let line = format!(
            "stress --name vm --json --total {total} --parallel {parallel} --timeout 20m \
             -- /init --noop"
        );
        Running::start(&mut machine.line(&line))
    };
    // The first run brings the allocator to its working size.
    let finish = |stress: Running| {
        let ended = stress.finish_within(tests::DEADLINE * 25);
        let record = ended.exits(0).json();
        assert_eq!(record["succeeded"], record["total"], "{record}");
    };
    finish(stress(parallel, parallel));
    let before = (fds(), resident_kib(machine));
    finish(stress(total, 1));
    let running = stress(parallel, parallel);
    let probe = machine.tool(["probe", "--name", "vm", "--timeout", TIMEOUT]);
    probe.exits(0);
    finish(running);
    assert_eq!(fds(), before.0, "descriptors of the agent");
    let growth = resident_kib(machine).saturating_sub(before.1);
    assert!(growth <= 512, "the agent grew by {growth} KiB");
    let zombies = machine.exec("vm", "grep -l 'State:.Z' /proc/[0-9]*/status | wc -l");
    assert_eq!(zombies, "0\n", "processes that were not reaped");
    machine.end("vm");
    machine.is_clean();
}

fn resident_kib(machine: &Machine) -> u64 {
    let line = machine.exec("vm", "grep VmRSS /proc/1/status");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The image's workload prints a numbered line every few milliseconds without end. Each snapshot
/// cuts the connection on which the supervisor reads them.
fn the_workloads_output_is_whole(machine: &Machine, snapshot_count: u32) {
    let image = std::env::var("TEST_INITRD_WORKLOAD").unwrap();
    machine.tool(machine.boot_image("vm", &image)).exits(0);
    let follow = || Follower::start(machine.command(["logs", "--name", "vm", "--follow"]));
    let follower = follow();
    let mut next = 0;
    follower.expect_numbers(&mut next, 20);
    let early = machine.snapshot("vm", "early", &[]);
    follower.expect_numbers(&mut next, 20);
    for _ in 1..snapshot_count {
        let later = machine.snapshot("vm", "later", &[]);
        follower.expect_numbers(&mut next, 20);
        fs::remove_dir_all(later).unwrap();
    }
    kill_supervisor(machine);
    drop(follower);
    // A reader gets everything from the supervisor's log.
    for _ in 0..2 {
        let printed = machine.tool(["logs", "--name", "vm"]).exits(0).out();
        let numbers: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            numbers.len() as u64 > next,
            "nothing since the supervisor's end"
        );
        assert!(
            numbers.iter().copied().eq(0..numbers.len() as u64),
            "{printed}"
        );
    }
    let tail = machine
        .tool(["logs", "--name", "vm", "--tail", "3"])
        .exits(0);
    assert_eq!(tail.out().lines().count(), 3, "{tail}");
    // A clone's log begins with what its guest still has, without a gap.
    machine.restore(&early, "clone");
    let clone = Follower::start(machine.command(["logs", "--name", "clone", "--follow"]));
    let first = clone.lines.recv_timeout(tests::DEADLINE).expect("a line");
    let mut next = first.parse::<u64>().unwrap() + 1;
    clone.expect_numbers(&mut next, 20);
    machine.end("clone");
    clone.finish_numbers(next).0.exits(0);
    machine.end("vm");
    machine.is_clean();
}

pub(crate) fn kill_supervisor(machine: &Machine) {
    let processes = machine.processes();
    let supervisor = processes
        .iter()
        .find(|(_, name)| name.starts_with("host-tool"));
    let (pid, _) = supervisor.expect("a supervisor");
    tests::process::signal(*pid, nix::sys::signal::Signal::SIGKILL);
    let pid = format!("--pid={pid}");
    tests::process::run(Command::new("tail").args([&pid, "--follow", "/dev/null"])).exits(0);
}

fn a_terminal_in_a_machine(machine: &Machine) {
    machine.boot("vm");
    let line = "tty; stty size; [ -t 0 ] && [ -t 1 ] && echo terminal";
    let ended = machine
        .tool(["exec", "--name", "vm", "-t", "--", "sh", "-c", line])
        .exits(0);
    assert_eq!(ended.out(), "/dev/pts/0\r\n24 80\r\nterminal\r\n");
    machine.end("vm");
    machine.is_clean();
}
