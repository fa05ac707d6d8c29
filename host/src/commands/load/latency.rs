//! Percentiles of durations. No I/O, no clock.

use std::time::Duration;

use serde_json::{Value, json};

use crate::os::clock::to_us;

/// The spread of a set of durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) min: Duration,
    /// The median.
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Summary {
    /// `None` if `durations` is empty.
    pub(crate) fn of(mut durations: Vec<Duration>) -> Option<Self> {
        durations.sort_unstable();
        Some(Self {
            min: *durations.first()?,
            p50: percentile(&durations, 50)?,
            p90: percentile(&durations, 90)?,
            p99: percentile(&durations, 99)?,
            max: *durations.last()?,
        })
    }

    /// JSON, in whole microseconds.
    pub(crate) fn to_value(self) -> Value {
        json!({
            "min": to_us(self.min),
            "p50": to_us(self.p50),
            "p90": to_us(self.p90),
            "p99": to_us(self.p99),
            "max": to_us(self.max),
        })
    }

    /// Two lines: headings, then milliseconds.
    pub(crate) fn to_table(self) -> String {
        let columns = [
            ("min", self.min),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("max", self.max),
        ];
        let heads: String = columns.map(|(name, _)| format!("{name:>10}")).concat();
        let cell = |(_, value): (&str, Duration)| format!("{:>10.3}", value.as_secs_f64() * 1000.0);
        let cells: String = columns.map(cell).concat();
        format!("latency, ms{heads}\n{:11}{cells}", "")
    }
}

/// The percentile by the nearest-rank method: always a duration that occurred, never interpolated.
/// Of fewer than 100, the 99th percentile is the longest.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ms: impl IntoIterator<Item = u64>, expected: [u64; 5]) {
        let summary = Summary::of(ms.into_iter().map(Duration::from_millis).collect()).unwrap();
        let found = [
            summary.min,
            summary.p50,
            summary.p90,
            summary.p99,
            summary.max,
        ];
        assert_eq!(found, expected.map(Duration::from_millis));
    }

    #[test]
    fn percentiles_are_durations_that_occurred() {
        check([7], [7, 7, 7, 7, 7]);
        check([9, 1], [1, 1, 9, 9, 9]);
        check([3, 1, 2], [1, 2, 3, 3, 3]);
        check((1..=10).rev(), [1, 5, 9, 10, 10]);
        check(1..=100, [1, 50, 90, 99, 100]);
        check(1..=101, [1, 51, 91, 100, 101]);
        assert_eq!(Summary::of(Vec::new()), None);
    }

    #[test]
    fn equal_durations_give_equal_percentiles() {
        check([5; 100], [5; 5]);
        check(std::iter::repeat_n(5, 99).chain([6]), [5, 5, 5, 5, 6]);
        check(std::iter::repeat_n(5, 98).chain([6, 6]), [5, 5, 5, 6, 6]);
    }

    #[test]
    fn figures_are_aligned_with_their_headings() {
        let summary = Summary::of(vec![Duration::from_micros(1500)]).unwrap();
        let expected = "latency, ms       min       p50       p90       p99       max\n                \
                        1.500     1.500     1.500     1.500     1.500";
        assert_eq!(summary.to_table(), expected);
        assert_eq!(summary.to_value()["p99"], 1500);
    }
}
