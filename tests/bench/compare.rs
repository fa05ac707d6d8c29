//! Compares two runs: what got slower by more than repeated runs differ. No I/O.
//!
//! A figure is worse when both its median and its best are worse, each by more than 5 % and by more
//! than three times the spread of either run. Where the case has a floor, the earlier figures are
//! first scaled by the change of the floor: a slower machine is not a slower program.

use crate::catalogue::{Case, is_ours};
use crate::results::{Measurement, Results};
use crate::stats::{Summary, rounded};

/// Least share by which a figure is worse.
const SHARE_MIN: f64 = 0.05;

/// Least multiple of the spread by which a figure is worse.
const SPREADS_MIN: f64 = 3.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Worse,
    Better,
    Within,
}

/// The comparison as text, one line for each figure.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) worse: Vec<String>,
    pub(crate) better: Vec<String>,
    /// How many figures both runs have.
    pub(crate) compared: usize,
}

pub(crate) fn compare(old: &Results, new: &Results) -> Comparison {
    let mut comparison = Comparison::default();
    for after in new.measurements.iter().filter(|it| is_ours(&it.subject)) {
        let Some(before) = old.find(&after.case, &after.subject, after.x) else {
            continue;
        };
        comparison.compared += 1;
        let (drift_p50, drift_best) = drift(old, new, after);
        let is_more_better = after.unit.is_more_better();
        let best = |summary: &Summary| {
            if is_more_better {
                summary.max
            } else {
                summary.min
            }
        };
        let spread = SPREADS_MIN * before.mad.max(after.summary.mad);
        let change = |before: f64, now: f64| change(before, now, spread, is_more_better);
        let p50 = change(before.p50 * drift_p50, after.summary.p50);
        let best = change(best(before) * drift_best, best(&after.summary));
        let line = || line(before, after, drift_p50);
        match (p50, best) {
            (Change::Worse, Change::Worse) => comparison.worse.push(line()),
            (Change::Better, Change::Better) => comparison.better.push(line()),
            (Change::Worse | Change::Better | Change::Within, _) => {}
        }
    }
    comparison
}

fn change(expected: f64, now: f64, spread: f64, is_more_better: bool) -> Change {
    let tolerance = (expected * SHARE_MIN).max(spread);
    let excess = if is_more_better {
        expected - now
    } else {
        now - expected
    };
    if excess > tolerance {
        Change::Worse
    } else if excess < -tolerance {
        Change::Better
    } else {
        Change::Within
    }
}

/// The factors by which median and best of the case's floor have changed.
fn drift(old: &Results, new: &Results, after: &Measurement) -> (f64, f64) {
    let floor = Case::of(&after.case).and_then(|case| case.floor);
    let both = floor.and_then(|floor| {
        let before = old.find(&after.case, floor, after.x)?;
        Some((before, new.find(&after.case, floor, after.x)?))
    });
    both.map_or((1.0, 1.0), |(before, now)| {
        let factor = |before: f64, now: f64| if before > 0.0 { now / before } else { 1.0 };
        let best = if after.unit.is_more_better() {
            factor(before.max, now.max)
        } else {
            factor(before.min, now.min)
        };
        (factor(before.p50, now.p50), best)
    })
}

fn line(before: &Summary, after: &Measurement, drift: f64) -> String {
    let Measurement {
        case,
        subject,
        x,
        unit,
        summary,
    } = after;
    let at = x.map(|x| format!(" at {x}")).unwrap_or_default();
    let percent = |factor: f64| format!("{:+.0} %", (factor - 1.0) * 100.0);
    let floor = if (drift - 1.0).abs() < 0.005 {
        String::new()
    } else {
        format!(", the floor {}", percent(drift))
    };
    let change = if before.p50 > 0.0 {
        percent(summary.p50 / before.p50)
    } else {
        "from nothing".to_owned()
    };
    let (was, is) = (rounded(before.p50), rounded(summary.p50));
    format!("{case}{at}: {subject} {was} -> {is} {unit} ({change}{floor})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Unit;

    const CASE: &str = "exec/round_trip";

    fn run(agent: &[f64], floor: &[f64]) -> Results {
        let mut results = Results::default();
        let us = Unit::Microseconds;
        results.add(CASE, "agent", Some(1.0), us, agent);
        results.add(CASE, "posix_spawn", Some(1.0), us, floor);
        results
    }

    #[track_caller]
    fn check(old: &Results, new: &Results, worse: usize, better: usize) {
        let comparison = compare(old, new);
        let counts = (comparison.worse.len(), comparison.better.len());
        assert_eq!(counts, (worse, better), "{comparison:?}");
    }

    #[test]
    fn worse_is_what_is_worse_in_the_median_and_at_best() {
        let old = run(&[100.0, 101.0, 102.0], &[50.0]);
        check(&old, &run(&[104.0, 105.0, 106.0], &[50.0]), 0, 0);
        check(&old, &run(&[110.0, 111.0, 112.0], &[50.0]), 1, 0);
        check(&old, &run(&[80.0, 81.0, 82.0], &[50.0]), 0, 1);
        // Only the median.
        check(&old, &run(&[100.0, 120.0, 121.0], &[50.0]), 0, 0);
        // Within the spread.
        check(&old, &run(&[108.0, 118.0, 138.0], &[50.0]), 0, 0);
        // The figures of others do not count.
        check(&old, &run(&[100.0, 101.0, 102.0], &[90.0]), 0, 1);
    }

    #[test]
    fn a_slower_machine_is_no_slower_program() {
        let old = run(&[100.0, 101.0, 102.0], &[50.0]);
        check(&old, &run(&[200.0, 202.0, 204.0], &[100.0]), 0, 0);
        check(&old, &run(&[220.0, 222.0, 224.0], &[100.0]), 1, 0);
    }

    #[test]
    fn of_throughput_more_is_better() {
        let run = |rate: f64| {
            let mut results = Results::default();
            let unit = Unit::MebibytesPerSecond;
            results.add("streams/stdout", "agent", Some(64.0), unit, &[rate]);
            results
        };
        check(&run(1000.0), &run(900.0), 1, 0);
        check(&run(1000.0), &run(1100.0), 0, 1);
        check(&run(1000.0), &run(960.0), 0, 0);
    }
}
