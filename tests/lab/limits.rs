//! A command cannot take its guest down: its limits hold.

use tests::process::run;

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[("a_command_stays_within_its_limits", limits)];

/// The folder of the asking command's cgroup.
const OWN: &str = "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)";

fn limits(machine: &Machine) {
    machine.boot("vm");
    let list = machine.line("ps --name vm --json");
    let list = run(&mut { list }).exits(0).json();
    let guest = &list["guest"];
    assert_eq!(
        (&guest["cgroup"], &guest["limits"]),
        (&true.into(), &true.into())
    );
    let exec = |options: &str, line: &str| {
        let mut command = machine.line(&format!("exec --name vm --timeout {TIMEOUT} {options} --"));
        run(command.args(["sh", "-c", line]))
    };
    let read = |options: &str, file: &str| {
        let ended = exec(options, &format!("cat {OWN}/{file}")).exits(0);
        ended.out().trim().parse::<u64>().unwrap()
    };
    assert_eq!(read("--pids-max 8", "pids.max"), 8);
    assert_eq!(read("--memory-max 16M", "memory.max"), 16 << 20);
    // By default one session leaves something to others, and all of them to the agent.
    for file in ["pids.max", "memory.max"] {
        assert!(read("", file) < read("", &format!("../{file}")), "{file}");
    }
    let hog = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    assert_eq!(exec("--memory-max 16M", hog).code(), 128 + 9);
    let forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done";
    assert_ne!(exec("--pids-max 8", forks).code(), 0);
    // The agent is beside the sessions, and its own process has no limit of theirs.
    let agent = machine.exec("vm", "cat /proc/1/cgroup /proc/1/oom_score_adj");
    assert_eq!(agent, "0::/guest-agent\n-1000\n");
    assert_eq!(machine.exec("vm", "cat /proc/self/oom_score_adj"), "0\n");
    machine.end("vm");
}
