//! Lists for people: aligned columns, sizes and ages in one unit.

use crate::values::MIB;

/// Lays out lines of cells. Each column is as wide as its widest cell.
pub(crate) fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A duration in its largest unit, rounded down.
pub(crate) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// A number of bytes in MiB, rounded up, or from 10 GiB on in GiB.
pub(crate) fn size(bytes: u64) -> String {
    match bytes.div_ceil(MIB) {
        mib @ 0..10_240 => format!("{mib}M"),
        mib => format!("{}G", mib / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let line = |cells: [&str; 3]| cells.map(str::to_owned);
        let lines = [
            line(["NAME", "AGE", ""]),
            line(["grün", "1s", "x"]),
            line(["b", "", ""]),
        ];
        assert_eq!(columns(&lines), "NAME  AGE\ngrün  1s   x\nb\n");
        assert_eq!(columns::<2>(&[]), "");
    }

    #[test]
    fn ages_have_one_unit() {
        let ages = [
            0,
            59_999,
            60_000,
            3_599_999,
            3_600_000,
            86_400_000,
            864_000_000,
        ]
        .map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "1d", "10d"]);
    }

    #[test]
    fn sizes_have_one_unit() {
        let sizes = [0, 1, MIB, 10_239 * MIB, 10_240 * MIB, u64::MAX].map(size);
        let expected = ["0M", "1M", "1M", "10239M", "10G", "17179869184G"];
        assert_eq!(sizes, expected);
    }
}
