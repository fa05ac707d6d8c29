//! Real microVMs: every case runs on every VMM that is installed.
//!
//! Goal: the whole path, from boot to stop, on real Firecracker and real QEMU. Method: the built
//! `host-tool`, and an image with the release agent as its `/init`. Run it through `scripts/test.sh
//! lab`, which makes the image and runs this program inside `scripts/lab.sh`. The cases of a VMM
//! that is missing are listed as ignored, by name.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod artifacts;
mod bad_input;
mod checkpoints;
mod clones;
mod failpoints;
mod fleet;
mod kills;
mod lifecycle;
mod limits;
mod load;
mod machine;
mod network;
mod proxy;
mod sessions;
mod snapshots;
mod soak;
mod standstill;
mod vmms;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use machine::{Machine, Vmm};
use soak::Plan;

/// A case: its name, and what it does on a VMM.
type Case = (&'static str, fn(&Machine));

/// The cases that `TEST_LAB_SET=quick` leaves out: each takes several minutes in the emulated lab,
/// and another case takes the same way with smaller numbers.
const LONG: &[&str] = &[
    "a_gibibyte_through_cat",
    "ten_thousand_execs",
    "fifty_snapshots_under_load",
    "a_hundred_restores_with_ten_execs_each",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case has two virtual machines or more, and the emulated lab has one processor.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let cases: Vec<Case> = [
        lifecycle::CASES,
        snapshots::CASES,
        clones::CASES,
        sessions::CASES,
        checkpoints::CASES,
        fleet::CASES,
        bad_input::CASES,
        artifacts::CASES,
        failpoints::CASES,
        kills::CASES,
        network::CASES,
        load::CASES,
        limits::CASES,
    ]
    .concat();
    let is_quick = std::env::var("TEST_LAB_SET").as_deref() == Ok("quick");
    if is_quick {
        println!("skipped: the longest lab cases; scripts/test.sh lab runs all");
    }
    let no_network = std::env::var_os("LAB").and_then(|_| network::missing());
    if let Some(reason) = &no_network {
        println!("skipped: lab cases with a network interface: {reason}");
    }
    let is_networked = |name: &str| network::CASES.iter().any(|(other, _)| *other == name);
    let mut trials = Vec::new();
    if let Some(plan) = Plan::from_environment() {
        let soaks = Vmm::ALL.map(|vmm| {
            let soak = move || {
                soak::run(vmm, plan);
                Ok(())
            };
            Trial::test(format!("{vmm}::soak"), soak).with_ignored_flag(vmm.missing().is_some())
        });
        return libtest_mimic::run(&arguments, share(soaks.into())).exit_code();
    }
    for vmm in Vmm::ALL {
        let missing = vmm.missing();
        if let Some(reason) = &missing {
            println!("skipped: lab {vmm}: {reason}");
        }
        for &(name, case) in &cases {
            let trial = Trial::test(format!("{vmm}::{name}"), move || {
                run(vmm, case);
                Ok(())
            });
            let is_left_out =
                (is_quick && LONG.contains(&name)) || (no_network.is_some() && is_networked(name));
            trials.push(trial.with_ignored_flag(missing.is_some() || is_left_out));
        }
    }
    libtest_mimic::run(&arguments, share(trials)).exit_code()
}

/// The cases of this program's share, `TEST_LAB_SHARD=N/M`. The first share lists the ignored ones.
fn share(trials: Vec<Trial>) -> Vec<Trial> {
    let Ok(shard) = std::env::var("TEST_LAB_SHARD") else {
        return trials;
    };
    let (number, count) = shard.split_once('/').unwrap();
    let (number, count): (usize, usize) = (number.parse().unwrap(), count.parse().unwrap());
    let mut runnable = 0;
    let is_ours = |trial: &Trial| {
        if trial.has_ignored_flag() {
            return number == 1;
        }
        runnable += 1;
        runnable % count == number % count
    };
    trials.into_iter().filter(is_ours).collect()
}

/// Runs a case. After a failure, the logs and the state of the processors say what it met.
fn run(vmm: Vmm, case: fn(&Machine)) {
    let machine = Machine::new(vmm);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&machine))) {
        eprintln!("{}{}", machine.logs(), machine.look_at_processors());
        resume_unwind(panic);
    }
}
