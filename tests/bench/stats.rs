//! Figures of a set of samples. No I/O.

use serde_json::{Value, json};

/// The figures that are kept of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// Number of samples.
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// Median of the distances from the median: the spread without the tails.
    pub(crate) mad: f64,
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let p50 = at(&sorted, 0.50);
        let mut distances: Vec<f64> = sorted.iter().map(|value| (value - p50).abs()).collect();
        distances.sort_by(f64::total_cmp);
        Some(Self {
            n: sorted.len(),
            min,
            p50,
            p90: at(&sorted, 0.90),
            p99: at(&sorted, 0.99),
            max,
            mad: at(&distances, 0.50),
        })
    }

    pub(crate) fn to_value(self) -> Value {
        let Self {
            n,
            min,
            p50,
            p90,
            p99,
            max,
            mad,
        } = self;
        let [min, p50, p90, p99, max, mad] = [min, p50, p90, p99, max, mad].map(rounded);
        json!({ "n": n, "min": min, "p50": p50, "p90": p90, "p99": p99, "max": max, "mad": mad })
    }

    pub(crate) fn from_value(value: &Value) -> Option<Self> {
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        Some(Self {
            n: usize::try_from(value.get("n")?.as_u64()?).ok()?,
            min: number("min")?,
            p50: number("p50")?,
            p90: number("p90")?,
            p99: number("p99")?,
            max: number("max")?,
            mad: number("mad")?,
        })
    }
}

/// The percentile of a sorted list that is not empty, by the nearest rank.
fn at(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * count(sorted.len())).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank within the list"
    )]
    let index = (rank as usize).saturating_sub(1);
    sorted[index.min(sorted.len() - 1)]
}

pub(crate) fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Rounds to four significant digits. Repeated measurements differ in the others.
pub(crate) fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 3.0 - value.abs().log10().floor();
    // A factor above 1 is exact as a divisor. Its inverse is not, and would add digits.
    if digits >= 0.0 {
        let factor = 10_f64.powf(digits);
        (value * factor).round() / factor
    } else {
        value.round()
    }
}

/// A figure with its thousands set apart.
pub(crate) fn figure(value: f64) -> String {
    let text = rounded(value).to_string();
    let (whole, rest) = match text.split_once('.') {
        Some((whole, rest)) => (whole, format!(".{rest}")),
        None => (text.as_str(), String::new()),
    };
    let mut grouped = String::new();
    for (index, digit) in whole.char_indices() {
        let is_thousand = index > 0 && (whole.len() - index).is_multiple_of(3);
        if is_thousand && digit.is_ascii_digit() && whole.len() > 4 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &rest
}

/// A ratio, empty where there is nothing to divide by.
pub(crate) fn ratio(value: f64, floor: f64) -> String {
    if floor > 0.0 {
        format!("{:.2} ×", value / floor)
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&samples).unwrap();
        let figures = [
            summary.min,
            summary.p50,
            summary.p90,
            summary.p99,
            summary.max,
            summary.mad,
        ];
        assert_eq!(figures, [1.0, 50.0, 90.0, 99.0, 100.0, 25.0]);
        assert_eq!(Summary::of(&[]), None);
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.n, one.min, one.p99, one.mad), (1, 7.0, 7.0, 0.0));
    }

    #[test]
    fn a_summary_survives_its_json() {
        let summary = Summary::of(&[0.25, 1.5, 3.0]).unwrap();
        assert_eq!(Summary::from_value(&summary.to_value()), Some(summary));
        assert_eq!(Summary::from_value(&json!({ "n": 3 })), None);
    }

    #[test]
    fn four_digits_are_kept() {
        let pairs = [
            (0.0, 0.0),
            (1.0, 1.0),
            (1234.56, 1235.0),
            (1_457_880.0, 1_457_880.0),
            (0.000_123_456, 0.000_123_5),
        ];
        for (value, expected) in pairs {
            assert_eq!(rounded(value), expected);
        }
    }

    #[test]
    fn figures_are_grouped() {
        let pairs = [
            (0.0, "0"),
            (1234.0, "1234"),
            (12_345.0, "12,345"),
            (0.5, "0.5"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, text) in pairs {
            assert_eq!(figure(value), text);
        }
    }
}
