//! Real microVMs: every case runs on every VMM that is here.
//!
//! Goal: the whole path, boot to stop, on real Firecracker and real QEMU. Method: the built
//! `host-tool`, an image with the release agent as its `/init`, and nothing in between. Run it
//! through `scripts/test.sh lab`, which makes the image and runs this program inside
//! `scripts/lab.sh`. A VMM that is not here has its cases listed as ignored, by name.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod artifacts;
mod bad_input;
mod checkpoints;
mod clones;
mod failpoints;
mod fleet;
mod kills;
mod lifecycle;
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

/// One case: its name, and what it does on a VMM.
type Case = (&'static str, fn(&Machine));

/// The cases that `TEST_LAB_SET=quick` runs: each link of the path once, in a few minutes of the
/// emulated lab. The others are listed as ignored.
const QUICK: &[&str] = &[
    "boot_exec_stop",
    "what_is_known_of_a_machine",
    "a_killed_vmm_is_noticed_and_cleaned_up",
    "a_killed_supervisor_loses_nothing",
    "a_health_check_in_a_machine",
    "a_source_answers_after_each_of_its_snapshots",
    "open_connections_do_not_survive_and_do_no_harm",
    "clones_have_a_network_of_their_own",
    "a_client_that_connects_during_the_pause",
    "an_image_without_the_agent",
    "a_timeout_shorter_than_the_boot",
    "a_vm_of_another_program",
    "a_snapshot_taken_behind_our_back",
    "a_damaged_state_file",
    "an_exec_runs_across_snapshots_of_its_machine",
    "an_exec_runs_across_hard_cuts",
    "a_mebibyte_through_cat",
    "a_hundred_execs",
    "the_workloads_output_is_whole",
    "a_terminal_in_a_machine",
    "a_disk_that_is_full",
    "a_checkpoint_has_a_verdict_in_each_machine",
    "hooks_run_around_a_snapshot",
    "three_clones_with_one_command",
    "a_vmm_that_somebody_else_started",
    "answers_are_lost_in_a_clone",
    "every_failpoint_has_a_case",
    "a_host_that_is_slow_everywhere",
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
    ]
    .concat();
    let is_quick = std::env::var("TEST_LAB_SET").as_deref() == Ok("quick");
    if is_quick {
        println!("skipped: lab cases outside the quick set; scripts/test.sh lab runs all");
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
            let is_left_out = (is_quick && !QUICK.contains(&name))
                || (no_network.is_some() && is_networked(name));
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
