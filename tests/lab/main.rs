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
                soak::run(vmm, plan, is_lost);
                Ok(())
            };
            Trial::test(format!("{vmm}::soak"), soak).with_ignored_flag(vmm.missing().is_some())
        });
        return libtest_mimic::run(&arguments, soaks.into()).exit_code();
    }
    for vmm in Vmm::ALL {
        let missing = vmm.missing();
        if let Some(reason) = &missing {
            println!("skipped: lab {vmm}: {reason}");
        }
        for &(name, case) in &cases {
            let full_name = format!("{vmm}::{name}");
            let trial = Trial::test(full_name.clone(), move || {
                run(&full_name, vmm, case);
                Ok(())
            });
            let is_left_out = (is_quick && !QUICK.contains(&name))
                || (no_network.is_some() && is_networked(name));
            trials.push(trial.with_ignored_flag(missing.is_some() || is_left_out));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// How often a case is begun anew after a fault of the emulator.
const REPEATS_MAX: u32 = 2;

/// Runs a case. In the emulated lab it is begun anew, and that is said, when a guest's processor
/// was shut down under it: QEMU's emulation of SVM now and then makes a guest triple-fault in the
/// midst of plain work (with two processors about once in fifty cases, on Firecracker and QEMU
/// alike), which no program in the guest can cause or prevent. Any other failure is one.
fn run(name: &str, vmm: Vmm, case: fn(&Machine)) {
    for repeats_left in (0..=REPEATS_MAX).rev() {
        let machine = Machine::new(vmm);
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&machine))) else {
            return;
        };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let logs = machine.logs();
        if repeats_left > 0 && is_lost(&format!("{text}{logs}")) {
            println!("note: the emulator shut a processor down in {name}, which is begun anew");
            continue;
        }
        eprintln!("{logs}{}", machine.look_at_processors());
        resume_unwind(panic);
    }
}

/// Whether these texts of a case tell of a fault of the emulator.
fn is_lost(text: &str) -> bool {
    std::env::var("LAB").as_deref() == Ok("emulated") && is_triple_fault(text)
}

/// Whether a VMM says that its guest's processor was shut down. Firecracker says it in words; QEMU,
/// told not to reboot, ends well, and the guest's kernel has not said that it powers off.
fn is_triple_fault(text: &str) -> bool {
    let ended_well = text.contains("the VMM ended with exit code 0")
        || text.contains("the VMM ended: exit code 0");
    text.contains("Unexpected exit reason on vcpu run: Shutdown")
        || (ended_well && !text.contains("reboot: "))
}
