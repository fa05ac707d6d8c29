//! Snapshots and clones of busy machines.
//!
//! Goal: load makes snapshots and restores slower and breaks none of their promises. Method:
//! commands that print numbered lines, so that a lost or repeated byte shows, while others start
//! and end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use tests::process::{Running, run};

use crate::Case;
use crate::machine::{Machine, TIMEOUT};

pub(crate) const CASES: &[Case] = &[
    ("three_snapshots_under_load", |machine| {
        snapshots_under_load(machine, 3, 4);
    }),
    ("fifty_snapshots_under_load", |machine| {
        snapshots_under_load(machine, 50, 100);
    }),
    ("ten_restores_with_ten_execs_each", |machine| {
        restores_with_execs(machine, 10);
    }),
    ("a_hundred_restores_with_ten_execs_each", |machine| {
        restores_with_execs(machine, 100);
    }),
    ("six_clones_are_distinct", |machine| clones(machine, 6)),
    ("twenty_clones_are_distinct", |machine| clones(machine, 20)),
];

/// Prints a line with the next number after each pause. The pause is a process, so it is longer
/// where many of these commands run: a guest that only starts processes would not answer its host.
fn numbered(command_count: usize) -> String {
    let pause_us = 2500 * command_count;
    format!("i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); usleep {pause_us}; done")
}

/// As many bytes as fit through, in rounds of numbers.
const TORRENT: &str = "while [ ! -e /tmp/stop ]; do seq 1 20000; done";
const TORRENT_ROUND: u64 = 20_000;

fn exec_command(machine: &Machine, name: &str, line: &str) -> Command {
    let args = ["exec", "--name", name, "--timeout", "90m", "--", "sh", "-c"];
    let mut command = machine.command(args);
    command.arg(line);
    command
}

/// Running commands, each with its output in a file.
struct Load {
    children: Vec<(Child, std::path::PathBuf)>,
}

impl Load {
    fn start(machine: &Machine, count: usize) -> Self {
        let children = (0..count).map(|number| {
            let path = machine.path(&format!("out-{number}"));
            let mut command = exec_command(machine, "vm", &numbered(count));
            command
                .stdin(Stdio::piped())
                .stdout(File::create(&path).unwrap());
            command.stderr(Stdio::inherit());
            (command.spawn().unwrap(), path)
        });
        Self {
            children: children.collect(),
        }
    }

    /// Fails unless each has succeeded and printed every number once.
    #[track_caller]
    fn finish(self) {
        for (mut child, path) in self.children {
            assert!(child.wait().unwrap().success(), "{}", path.display());
            let text = fs::read_to_string(&path).unwrap();
            assert!(is_counted(&text), "lines lost in {}", path.display());
        }
    }
}

/// Whether the lines are the numbers from 0, each once.
fn is_counted(text: &str) -> bool {
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    !numbers.is_empty() && numbers.iter().copied().eq(0..numbers.len() as u64)
}

/// Reads the torrent to its end. Fails when a line is lost or repeated.
fn drink(child: &mut Child, drunk: &AtomicU32) {
    let mut expected = 1;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        assert_eq!(line.unwrap().parse::<u64>().unwrap(), expected);
        expected = expected % TORRENT_ROUND + 1;
        drunk.fetch_add(1, Ordering::Relaxed);
    }
    assert_eq!(expected, 1, "the last round is cut short");
    assert!(child.wait().unwrap().success());
}

/// Probes the listener again and again. Gives the number of answers.
fn knock(machine: &Machine, is_over: &AtomicBool) -> u32 {
    let mut answered = 0;
    while !is_over.load(Ordering::Relaxed) {
        let args = ["probe", "--name", "vm", "--depth", "listener"];
        let mut probe = machine.command(args);
        // A guest that is quiesced for its snapshot refuses, which is not a failure.
        answered += u32::from(run(probe.args(["--timeout", TIMEOUT])).code() == 0);
    }
    answered
}

fn snapshots_under_load(machine: &Machine, rounds: u32, commands: usize) {
    let image = std::env::var("TEST_INITRD_WORKLOAD").unwrap();
    // Each command has a shell, and rings that fill while the guest is cut off.
    let args = machine.boot_image("vm", &image).into_iter();
    let args = args.map(|arg| if arg == "128M" { "384M".into() } else { arg });
    machine.tool(args).exits(0);
    let load = Load::start(machine, commands);
    let mut torrent = exec_command(machine, "vm", TORRENT);
    torrent.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut torrent = torrent.spawn().unwrap();
    let (is_over, drunk) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let drinker = scope.spawn(|| drink(&mut torrent, &drunk));
        let knocker = scope.spawn(|| knock(machine, &is_over));
        // The other threads end even when a round fails.
        let guard = Over(&is_over, machine);
        for round in 0..rounds {
            let before = drunk.load(Ordering::Relaxed);
            let artifact = machine.snapshot("vm", "artifact", &[]);
            restores(machine, &artifact, round);
            let after = drunk.load(Ordering::Relaxed);
            assert!(after > before, "no output since snapshot {round}");
        }
        drop(guard);
        drinker.join().unwrap();
        let answered = knocker.join().unwrap();
        assert!(answered > rounds, "the listener is gone");
    });
    load.finish();
    let printed = machine.tool(["logs", "--name", "vm"]).exits(0).out();
    assert!(is_counted(&printed), "lines of the workload are lost");
    machine.end("vm");
    machine.is_clean();
}

/// Ends the load when it is dropped.
struct Over<'a>(&'a AtomicBool, &'a Machine);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        // When this fails, the machine and the load are gone already.
        run(&mut exec_command(self.1, "vm", "touch /tmp/stop"));
    }
}

/// A clone of a busy machine is ready and as busy. It is removed again.
#[track_caller]
fn restores(machine: &Machine, artifact: &Path, round: u32) {
    machine.restore(artifact, "clone");
    let word = format!("{round}\n");
    assert_eq!(machine.exec("clone", &format!("echo {round}")), word);
    machine.tool(["rm", "clone", "--force"]).exits(0);
    fs::remove_dir_all(artifact).unwrap();
}

fn restores_with_execs(machine: &Machine, rounds: u32) {
    let artifact = machine.artifact();
    for round in 0..rounds {
        machine.restore(&artifact, "clone");
        let execs: Vec<_> = (0..10)
            .map(|number| {
                let line = format!("echo {number}");
                Running::start(&mut exec_command(machine, "clone", &line))
            })
            .collect();
        for (number, exec) in execs.into_iter().enumerate() {
            let ended = exec.finish().exits(0);
            assert_eq!(ended.out(), format!("{number}\n"), "round {round}");
        }
        machine.tool(["rm", "clone", "--force"]).exits(0);
    }
    machine.is_clean();
}

/// The test image with as little memory as possible, so that many clones fit.
fn small_artifact(machine: &Machine) -> std::path::PathBuf {
    let args = machine.boot_arguments("small").into_iter();
    let args = args.map(|arg| if arg == "128M" { "96M".into() } else { arg });
    machine.tool(args).exits(0);
    let artifact = machine.snapshot("small", "small", &["--stop"]);
    machine.tool(["rm", "small"]).exits(0);
    artifact
}

fn clones(machine: &Machine, count: usize) {
    let artifact = small_artifact(machine);
    let mut command = machine.command(["restore", "--json", "--name", "c", "--timeout", "10m"]);
    command.args(["--count", &count.to_string()]).arg(artifact);
    let restore = Running::start(&mut command);
    let record = restore.finish_within(tests::DEADLINE * 20).exits(0).json();
    let clones = record["clones"].as_array().unwrap();
    let field = |field: &str| -> BTreeSet<String> {
        let values = clones.iter().map(|clone| clone[field].as_str());
        values.map(|value| value.unwrap().to_owned()).collect()
    };
    let names = field("name");
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    let random: BTreeSet<_> = names
        .iter()
        .map(|name| machine.exec(name, random))
        .collect();
    let [generations, machine_ids] = ["generation", "machine_id"].map(field);
    for distinct in [&names, &generations, &machine_ids, &random] {
        assert_eq!(distinct.len(), count, "{distinct:?}");
    }
    for name in &names {
        machine.tool(["rm", name, "--force"]).exits(0);
    }
    machine.is_clean();
}
