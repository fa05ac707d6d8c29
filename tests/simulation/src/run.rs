//! Runs many schedules on all processors, and shortens one that fails.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::schedule;
use crate::tally::Tally;

/// How many of the last steps of a failure are shown.
const TRACE_LEN_MAX: usize = 60;

/// Attempts to make a failing schedule shorter.
const SHRINKS_MAX: usize = 2_000;

/// Upper bounds of the lengths that are counted separately.
pub const LENGTHS: [u32; 5] = [16, 32, 64, 200, 800];

#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many schedules.
    Runs(u64),
    /// After so long.
    Time(Duration),
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub schedules: u64,
    pub steps: u64,
    /// Schedules by length; see [`LENGTHS`].
    pub lengths: [u64; LENGTHS.len()],
    pub tally: Tally,
    /// The seed of the first schedule that failed.
    pub failed: Option<u64>,
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.steps += other.steps;
        for (count, more) in self.lengths.iter_mut().zip(other.lengths) {
            *count += more;
        }
        self.tally.add(&other.tally);
        self.failed = self.failed.or(other.failed);
    }
}

/// Plays the schedules of the seeds from `first` on.
#[must_use]
pub fn run(first: u64, limit: Limit, thread_count: usize) -> Report {
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let started_at = Instant::now();
    let work = || {
        let mut report = Report::default();
        loop {
            // Relaxed: it only hands out numbers; the results are joined at the end.
            let number = next.fetch_add(1, Ordering::Relaxed);
            let is_last = match limit {
                Limit::Runs(count) => number >= count,
                Limit::Time(most) => started_at.elapsed() >= most,
            };
            if is_last || is_over.load(Ordering::Relaxed) {
                return report;
            }
            let seed = first.wrapping_add(number);
            let length = schedule::length(seed);
            let played = AssertUnwindSafe(|| schedule::play(seed, 0..length, None));
            match panic::catch_unwind(played) {
                Ok(tally) => report.tally.add(&tally),
                Err(_) => {
                    is_over.store(true, Ordering::Relaxed);
                    report.failed = Some(seed);
                    return report;
                }
            }
            report.schedules += 1;
            report.steps += u64::from(length);
            let class = LENGTHS.iter().position(|most| length <= *most);
            report.lengths[class.unwrap_or(LENGTHS.len() - 1)] += 1;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..thread_count).map(|_| scope.spawn(work)).collect();
        let mut report = Report::default();
        for thread in threads {
            report.add(&thread.join().expect("panics are caught"));
        }
        report
    })
}

fn fails(seed: u64, steps: &[u32]) -> bool {
    let played = AssertUnwindSafe(|| schedule::play(seed, steps.iter().copied(), None));
    panic::catch_unwind(played).is_err()
}

/// The fewest steps of a failing schedule that still fail. Leaves out ever smaller pieces as long
/// as the rest fails.
#[must_use]
pub fn shrink(seed: u64) -> Vec<u32> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let mut steps: Vec<u32> = (0..schedule::length(seed)).collect();
    let mut piece = steps.len().div_ceil(2);
    let mut attempts = 0;
    while piece > 0 && attempts < SHRINKS_MAX {
        let mut start = 0;
        while start < steps.len() && attempts < SHRINKS_MAX {
            let end = (start + piece).min(steps.len());
            let mut fewer = steps.clone();
            fewer.drain(start..end);
            attempts += 1;
            if fails(seed, &fewer) {
                steps = fewer;
            } else {
                start = end;
            }
        }
        piece /= 2;
    }
    panic::set_hook(hook);
    steps
}

/// Plays a failing schedule again, as short as possible, and returns the last steps. Its panic is
/// printed.
#[must_use]
pub fn trace(seed: u64) -> Vec<String> {
    let steps = shrink(seed);
    let mut trace = Vec::new();
    let played = AssertUnwindSafe(|| schedule::play(seed, steps, Some(&mut trace)));
    if panic::catch_unwind(played).is_ok() {
        trace.push("(this time it did not fail)".to_owned());
    }
    let start = trace.len().saturating_sub(TRACE_LEN_MAX);
    trace.split_off(start)
}
