//! Restores for any length of time, with random faults.
//!
//! Goal: what holds once also holds the five hundredth time, and nothing accumulates: no process,
//! memory, descriptor or file, on the host or in a guest that is a clone of a clone of a clone.
//! Method: a seeded generator chooses what happens to each clone, after all promises about the
//! clone were checked. `scripts/soak.sh` sets the variables that enable it.

mod fault;
mod tally;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tests::process::{Running, run as run_tool};

use crate::machine::{Machine, TIMEOUT, Vmm};

use self::fault::Fault;
use self::tally::Tally;

/// Restores between one boot and the next. When the emulator loses a guest, the remaining rounds of
/// its boot are lost.
const ROUNDS_PER_LIFE: u32 = 20;

/// Generations of clones before the line starts again at the booted machine.
const DEPTH_MAX: u32 = 8;

/// Commands that run at once in each clone.
const COMMAND_COUNT: u32 = 10;

/// Most seconds between a ready guest's clock and this machine's. The emulated lab delays an answer
/// by many seconds; a clock that was not set is off by hours.
const CLOCK_ERROR_MAX: u64 = 60;

/// Most growth of an agent's memory along a line of clones, in KiB: the ring of the workload, which
/// fills over time, and its reallocations.
const GROWTH_MAX: u64 = 512;

/// Commands after which an agent keeps its maximum of results (256).
const WARM_UP_COUNT: &str = "300";

/// Descriptors that an agent may have beyond those of the first clone: connections of the
/// supervisor and of the last command, which are there at times.
const SPARE_FDS: u64 = 2;

/// What the environment asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    seconds: u64,
    restores: u32,
    seed: u64,
}

impl Plan {
    /// `None` if the environment does not ask for a soak.
    pub(crate) fn from_environment() -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let plan = Self {
            seconds: number("TEST_SOAK_SECONDS").unwrap_or(u64::MAX),
            restores: number("TEST_SOAK_RESTORES")
                .map_or(u32::MAX, |count| u32::try_from(count).unwrap_or(u32::MAX)),
            seed: number("TEST_SOAK_SEED").unwrap_or(1),
        };
        (plan.seconds != u64::MAX || plan.restores != u32::MAX).then_some(plan)
    }
}

/// xorshift64*: small, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        from[usize::try_from(number % from.len() as u64).unwrap()]
    }
}

/// Runs the plan on a VMM, and prints the result.
pub(crate) fn run(vmm: Vmm, plan: Plan) {
    let started_at = Instant::now();
    let mut soak = Soak {
        plan,
        ends_at: started_at.checked_add(Duration::from_secs(plan.seconds)),
        random: Random(plan.seed.max(1)),
        tally: Tally::default(),
        generations: BTreeSet::new(),
        random_bytes: BTreeSet::new(),
    };
    let before = leftovers();
    while soak.goes_on() {
        soak.tally.lives += 1;
        let machine = Machine::new(vmm);
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| soak.live(&machine))) else {
            continue;
        };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let logs = machine.logs();
        if is_lost(&format!("{text}{logs}")) {
            println!("note: the emulator shut a processor down; another machine is booted");
            soak.tally.lost_lives += 1;
            continue;
        }
        eprintln!("{logs}{}", machine.look_at_processors());
        println!("soak {vmm} FAILED: {} (seed {})", soak.tally, plan.seed);
        resume_unwind(panic);
    }
    assert_eq!(leftovers(), before, "left on this machine");
    let seconds = started_at.elapsed().as_secs();
    println!(
        "soak {vmm} passed: {}, no failure, no leak, {seconds} s, seed {}",
        soak.tally, plan.seed
    );
}

/// Whether these texts of a failure show a fault of the emulator.
fn is_lost(text: &str) -> bool {
    std::env::var("LAB").as_deref() == Ok("emulated") && is_triple_fault(text)
}

/// Whether a VMM's guest ended by a triple fault. Firecracker reports it; QEMU, told not to reboot,
/// exits with 0 although the guest's kernel has not logged a power-off.
fn is_triple_fault(text: &str) -> bool {
    let ended_well = text.contains("the VMM ended with exit code 0")
        || text.contains("the VMM ended: exit code 0");
    text.contains("Unexpected exit reason on vcpu run: Shutdown")
        || (ended_well && !text.contains("reboot: "))
}

/// Processes and files that a soak could leave on this machine.
fn leftovers() -> (Vec<String>, usize) {
    let names = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let programs = ["firecracker", "qemu-system", "host-tool"];
            let is_ours = programs.iter().any(|program| name.starts_with(program));
            is_ours.then(|| name.trim().to_owned())
        });
    let files = fs::read_dir(std::env::temp_dir()).unwrap().count();
    (names.collect(), files)
}

struct Soak {
    plan: Plan,
    ends_at: Option<Instant>,
    random: Random,
    tally: Tally,
    generations: BTreeSet<String>,
    random_bytes: BTreeSet<String>,
}

impl Soak {
    fn goes_on(&self) -> bool {
        let in_time = self.ends_at.is_none_or(|ends_at| Instant::now() < ends_at);
        in_time && self.tally.restores < self.plan.restores
    }

    /// Boots a machine, and restores clones of it and of its clones.
    fn live(&mut self, machine: &Machine) {
        let image = std::env::var("TEST_INITRD_WORKLOAD").unwrap();
        machine.tool(machine.boot_image("vm", &image)).exits(0);
        let args = ["stress", "--name", "vm", "--timeout", TIMEOUT, "--total"];
        let mut warm_up = machine.command(args);
        run_tool(warm_up.args([WARM_UP_COUNT, "--", "sh", "-c", ":"])).exits(0);
        let base = machine.snapshot("vm", "base", &["--stop"]);
        machine.tool(["rm", "vm"]).exits(0);
        let mut line = Line {
            machine,
            artifact: base.clone(),
            base,
            depth: 0,
            first: None,
        };
        for _ in 0..ROUNDS_PER_LIFE {
            if !self.goes_on() {
                break;
            }
            self.round(&mut line);
            machine.is_clean();
        }
    }

    /// Restores one clone, checks it, and does something to it.
    fn round(&mut self, line: &mut Line<'_>) {
        let fault = self.random.pick(&Fault::ALL);
        self.tally.begin(fault);
        eprintln!(
            "soak {}: {} {fault:?}",
            line.machine.vmm, self.tally.restores
        );
        fault.before_restore(line.machine, &line.artifact, &mut self.random);
        let record = line.machine.restore(&line.artifact, "clone");
        self.tally.restores += 1;
        let generation = record["generation"].as_str().unwrap().to_owned();
        assert!(self.generations.insert(generation), "{record}");
        // A clone of a busy machine has a copy of its command, without a client.
        line.machine.exec("clone", "touch /tmp/stop");
        self.look_at(line);
        line.machine.exec("clone", "rm /tmp/stop");
        if let Some(later) = fault.after_restore(line.machine, &mut self.random) {
            self.tally.snapshots += 1;
            line.go_on_with(later);
        }
        line.machine.tool(["rm", "clone", "--force"]).exits(0);
    }

    /// A ready clone runs commands, has the right time and random bytes of its own, has lost none
    /// of its workload's output, and holds no more than the first clone did.
    fn look_at(&mut self, line: &mut Line<'_>) {
        let machine = line.machine;
        run_commands(machine);
        self.tally.commands += COMMAND_COUNT;
        let bytes = machine.exec("clone", "head -c 16 /dev/urandom | od -An -tx1");
        assert!(self.random_bytes.insert(bytes), "random bytes came twice");
        check_clock(machine, "clone");
        check_output(machine);
        line.check_growth();
    }
}

fn run_commands(machine: &Machine) {
    let start =
        |number: u32| Running::start(&mut machine.shell("clone", &format!("echo {number}")));
    let commands: Vec<_> = (0..COMMAND_COUNT).map(start).collect();
    for (number, command) in commands.into_iter().enumerate() {
        let ended = command.finish().exits(0);
        assert_eq!(ended.out(), format!("{number}\n"));
    }
}

/// Compares the guest's clock with this machine's.
fn check_clock(machine: &Machine, name: &str) {
    let guest: u64 = machine.exec(name, "date +%s").trim().parse().unwrap();
    let here = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let error = here.as_secs().abs_diff(guest);
    assert!(error <= CLOCK_ERROR_MAX, "the clock is off by {error} s");
}

/// The workload's output is complete from some line on, each line once.
fn check_output(machine: &Machine) {
    let printed = machine.tool(["logs", "--name", "clone"]).exits(0).out();
    let numbers: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
    let is_counted = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    assert!(is_counted, "a line is lost or repeated");
}

/// A line of clones of clones.
struct Line<'a> {
    machine: &'a Machine,
    /// The booted machine's artifact.
    base: PathBuf,
    /// The artifact of the next clone.
    artifact: PathBuf,
    /// How many clones lie between the two.
    depth: u32,
    /// The agent's descriptors and memory in KiB in the first clone.
    first: Option<(u64, u64)>,
}

impl Line<'_> {
    fn go_on_with(&mut self, later: PathBuf) {
        self.remove_artifact();
        self.depth += 1;
        self.artifact = self.machine.path(&format!("depth-{}", self.depth));
        fs::rename(later, &self.artifact).unwrap();
        if self.depth == DEPTH_MAX {
            self.remove_artifact();
            self.depth = 0;
            self.artifact.clone_from(&self.base);
        }
    }

    fn remove_artifact(&self) {
        let artifact: &Path = &self.artifact;
        if artifact != self.base {
            fs::remove_dir_all(artifact).unwrap();
        }
    }

    #[track_caller]
    fn check_growth(&mut self) {
        let line = "ls /proc/1/fd | wc -l; grep VmRSS /proc/1/status";
        let printed = self.machine.exec("clone", line);
        let mut numbers = printed
            .split_whitespace()
            .filter_map(|word| word.parse().ok());
        let (fds, memory) = (numbers.next().unwrap(), numbers.next().unwrap());
        let (fds_first, memory_first) = *self.first.get_or_insert((fds, memory));
        assert!(
            fds <= fds_first + SPARE_FDS,
            "{fds_first} descriptors became {fds}"
        );
        assert!(
            memory <= memory_first + GROWTH_MAX,
            "{memory_first} KiB became {memory} at depth {}",
            self.depth
        );
    }
}
