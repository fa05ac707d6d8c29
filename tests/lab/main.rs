//! Real microVMs: every case runs on every VMM that is here.
//!
//! Goal: the whole path, boot to stop, on real Firecracker and real QEMU. Method: the built
//! `host-tool`, an image with the release agent as its `/init`, and nothing in between. Run it
//! through `scripts/test.sh lab`, which makes the image and runs this program inside
//! `scripts/lab.sh`. A VMM that is not here has its cases listed as ignored, by name.
#![expect(clippy::unwrap_used, reason = "a test ends where its expectation does")]

mod bad_input;
mod clones;
mod lifecycle;
mod machine;
mod snapshots;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use machine::{Machine, Vmm};

/// One case: its name, and what it does on a VMM.
type Case = (&'static str, fn(&Machine));

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each case has two virtual machines or more, and the emulated lab has two processors.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let cases: Vec<Case> = [
        lifecycle::CASES,
        snapshots::CASES,
        clones::CASES,
        bad_input::CASES,
    ]
    .concat();
    let mut trials = Vec::new();
    for vmm in Vmm::ALL {
        let missing = vmm.missing();
        if let Some(reason) = &missing {
            println!("skipped: lab {vmm}: {reason}");
        }
        for &(name, case) in &cases {
            let trial = Trial::test(format!("{vmm}::{name}"), move || {
                case(&Machine::new(vmm));
                Ok(())
            });
            trials.push(trial.with_ignored_flag(missing.is_some()));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
