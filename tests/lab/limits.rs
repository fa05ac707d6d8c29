//! A command cannot take its guest down: limits hold, nothing escapes a time limit, and a guest
//! under load answers its host.

use std::time::{Duration, Instant};

use tests::process::run;

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("a_command_stays_within_its_limits", limits),
    ("no_process_escapes_a_time_limit", no_process_escapes),
    ("a_guest_under_pressure_answers", |machine| {
        under_pressure(machine);
    }),
];

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

fn no_process_escapes(machine: &Machine) {
    machine.boot("vm");
    let mut command = machine.line("exec --name vm --timeout 5s --");
    run(command.args(["sh", "-c", "setsid sleep 1000 & sleep 1000"])).exits(124);
    tests::await_true("no process is left", || {
        machine.exec("vm", "pidof sleep || echo none") == "none\n"
    });
    machine.end("vm");
}

/// What the commands do that put a guest under pressure.
const PRESSURES: [(&str, &str); 3] = [
    ("fork bomb", "b() { b & b & while :; do :; done; }; b"),
    (
        "memory hog",
        "while :; do dd if=/dev/zero of=/dev/null bs=1G count=1; done",
    ),
    ("log flood", "while :; do echo flood; echo flood >&2; done"),
];

/// Each answer has to come before the deadline of its command. How long they took is printed; with
/// `TEST_LAB_PRESSURE_SECONDS` each pressure lasts that long.
fn under_pressure(machine: &Machine) {
    let seconds = std::env::var("TEST_LAB_PRESSURE_SECONDS");
    let length = Duration::from_secs(seconds.map_or(0, |text| text.parse().unwrap()));
    machine.boot("vm");
    for user in ["0", "65534:65534"] {
        for (name, line) in PRESSURES {
            let mut command = machine.line(&format!("exec --name vm -d -u {user} --"));
            let id = run(command.args(["sh", "-c", line])).exits(0).out();
            let began = Instant::now();
            let mut times = [Vec::new(), Vec::new()];
            while times[0].len() < 5 || began.elapsed() < length {
                let probe = format!("probe --name vm --timeout {TIMEOUT}");
                let exec = format!("exec --name vm --timeout {TIMEOUT} -- sh -c :");
                for (times, line) in times.iter_mut().zip([probe, exec]) {
                    let asked = Instant::now();
                    run(&mut machine.line(&line)).exits(0);
                    times.push(asked.elapsed());
                }
            }
            let [probe, exec] = times.map(describe);
            println!(
                "{} {name} of {user}: probe {probe}; exec {exec}",
                machine.vmm
            );
            let kill = format!("kill --name vm -s KILL {}", id.trim());
            run(&mut machine.line(&kill)).exits(0);
            tests::await_true("the processes are gone", || {
                machine.exec("vm", "ls -d /sys/fs/cgroup/guest-agent.*/*/ | wc -l") == "1\n"
            });
        }
    }
    machine.end("vm");
}

/// The median, the 99th percentile and the longest.
fn describe(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_millis();
    format!("{} × {}, {}, {} ms", times.len(), at(50), at(99), at(100))
}
