//! A million schedules, each from its own seed, with all invariants checked after each step.

use simulation::run::{self, Limit};
use simulation::schedule;

/// How many schedules are played, unless `SIMULATION_RUNS` says otherwise.
const RUNS: u64 = 1_000_000;

/// With fewer schedules, some marks may be missing.
const RUNS_COMPLETE: u64 = 20_000;

#[test]
fn a_million_schedules() {
    let runs = match std::env::var("SIMULATION_RUNS") {
        Ok(runs) => runs.parse().expect("SIMULATION_RUNS is a number"),
        Err(_) => RUNS,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = run::run(0, Limit::Runs(runs), threads);
    if let Some(seed) = report.failed {
        let trace = run::trace(seed).join("\n");
        panic!("seed {seed} fails:\n{trace}\nreplay with SEED={seed} scripts/simulate.sh");
    }
    assert_eq!(report.schedules, runs);
    let missing: Vec<_> = report.tally.missing().map(|mark| mark.name()).collect();
    let is_complete = runs < RUNS_COMPLETE || missing.is_empty();
    assert!(is_complete, "never met: {missing:?}");
    println!("{runs} schedules, {} steps", report.steps);
}

#[test]
fn the_same_seed_plays_the_same_schedule() {
    for seed in 0..20 {
        let play = || {
            let mut trace = Vec::new();
            let tally = schedule::play(seed, 0..schedule::length(seed), Some(&mut trace));
            (tally, trace)
        };
        assert_eq!(play(), play(), "seed {seed}");
    }
}

/// A schedule counts only if something can happen in it: at least eight steps and a client.
#[test]
fn no_schedule_is_empty() {
    let lengths: Vec<u32> = (0..10_000).map(schedule::length).collect();
    assert!(lengths.iter().all(|length| (8..=800).contains(length)));
    let long_count = lengths.iter().filter(|length| **length > 200).count();
    assert!(long_count > 10, "{long_count} of 10,000 are long");
}
