//! Many schedules, on every processor; and the shortest that still fails, of one that does.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::schedule;
use crate::tally::Tally;

/// Steps of the story of a failure that are shown, the last ones.
const STORY_LEN_MAX: usize = 60;

/// Attempts to make a failing schedule shorter.
const SHRINKS_MAX: usize = 2_000;

/// Bounds of the lengths that are counted apart: up to and with each.
pub const LENGTHS: [u32; 5] = [16, 32, 64, 200, 800];

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many schedules.
    Runs(u64),
    /// After so long.
    Time(Duration),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Schedules that were played.
    pub schedules: u64,
    /// Steps that they had.
    pub steps: u64,
    /// Schedules by their lengths; see [`LENGTHS`].
    pub lengths: [u64; LENGTHS.len()],
    /// What they met.
    pub tally: Tally,
    /// The seed of one that failed.
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
///
/// # Panics
///
/// When a thread cannot be started.
#[must_use]
pub fn run(first: u64, limit: Limit, thread_count: usize) -> Report {
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let started_at = Instant::now();
    let work = || {
        let mut report = Report::default();
        loop {
            // Ordering: they only share out numbers; what they find is joined at the end.
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

/// Whether these steps fail.
fn fails(seed: u64, steps: &[u32]) -> bool {
    let played = AssertUnwindSafe(|| schedule::play(seed, steps.iter().copied(), None));
    panic::catch_unwind(played).is_err()
}

/// The fewest steps of a failing schedule that still fail: pieces are left out, ever smaller ones,
/// as long as it goes on failing.
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

/// Plays a failing schedule again, as short as it gets, and tells what happened; its panic is
/// printed by the way. Returns the last steps.
#[must_use]
pub fn tell(seed: u64) -> Vec<String> {
    let steps = shrink(seed);
    let mut story = Vec::new();
    let played = AssertUnwindSafe(|| schedule::play(seed, steps, Some(&mut story)));
    if panic::catch_unwind(played).is_ok() {
        story.push("(this time it did not fail)".to_owned());
    }
    let start = story.len().saturating_sub(STORY_LEN_MAX);
    story.split_off(start)
}
