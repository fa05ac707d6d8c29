//! Plots as SVG: ranges of subjects below each other, and lines of a series. No I/O.
//!
//! Text is text, colours are readable on the white that is drawn below everything, and each line
//! carries its name at its end, so that no legend has to be looked up.

use std::fmt::Write;

use crate::catalogue::{Axis, Unit, label};
use crate::results::Measurement;
use crate::stats::rounded;

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
/// Left of the data: names, or figures of the vertical axis.
const NAMES_WIDTH: f64 = 220.0;
const FIGURES_WIDTH: f64 = 70.0;
/// Right of the data: figures, or names of lines.
const RIGHT_WIDTH: f64 = 190.0;
const ROW_HEIGHT: f64 = 28.0;
const SERIES_HEIGHT: f64 = 300.0;
const TITLE_HEIGHT: f64 = 34.0;
/// Least distance of two names at the ends of lines.
const NAME_HEIGHT: f64 = 15.0;

/// Values that span more than this are drawn by their magnitude.
const LINEAR_SPAN_MAX: f64 = 20.0;

/// Where values lie on a stretch of the picture.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    is_log: bool,
}

impl Scale {
    /// From `from` to `to` for `values`, with some room at the ends.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64, is_log: bool) -> Self {
        let (low, high) = values
            .filter(|value| !is_log || *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let high = if high > 0.0 { high } else { 1.0 };
        let (low, high) = if is_log {
            (low.min(high) / 1.3, high * 1.3)
        } else {
            (0.0, high * 1.05)
        };
        Self {
            low,
            high,
            from,
            to,
            is_log,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values to draw a line at: 1, 2, 5, 10, … or a handful of even steps.
    fn ticks(&self) -> Vec<f64> {
        let candidates = (-3..10).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10_f64.powi(power)));
        let is_within = |value: &f64| (self.low..=self.high).contains(value);
        if self.is_log {
            let all: Vec<f64> = candidates.filter(is_within).collect();
            let is_decade = |value: &f64| value.log10().fract().abs() < 1e-9;
            let is_long = all.len() > 7;
            return all
                .into_iter()
                .filter(|v| !is_long || is_decade(v))
                .collect();
        }
        let step = candidates.into_iter().find(|step| self.high / step <= 6.0);
        let step = step.unwrap_or(self.high);
        (0..7)
            .map(|n| f64::from(n) * step)
            .filter(is_within)
            .collect()
    }
}

/// A picture that is being drawn.
struct Picture {
    body: String,
    height: f64,
}

impl Picture {
    fn new(title: &str, height: f64) -> Self {
        let mut picture = Self {
            body: String::new(),
            height,
        };
        picture.text(
            MARGIN,
            22.0,
            "start",
            "font-weight=\"600\" font-size=\"14\"",
            title,
        );
        picture
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.body, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, attributes: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}>{text}</text>"
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), attributes: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {attributes}/>"
        ));
    }

    fn dot(&mut self, x: f64, y: f64, radius: f64, colour: &str) {
        self.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>"
        ));
    }

    fn finish(self) -> String {
        let Self { body, height } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" \
             font-size=\"12\" fill=\"#222\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n"
        )
    }
}

/// One row for each subject: a line from the least to the 99th percentile, a dot at the median.
pub(crate) fn ranges(title: &str, unit: Unit, rows: &[&Measurement]) -> String {
    let count = crate::stats::count(rows.len());
    let bottom = TITLE_HEIGHT + count * ROW_HEIGHT;
    let mut picture = Picture::new(&format!("{title}, {unit}"), bottom + 28.0);
    let values = || {
        rows.iter()
            .flat_map(|row| [row.summary.min, row.summary.p99])
    };
    let highest = values().fold(0.0, f64::max);
    let lowest = values().fold(f64::INFINITY, f64::min);
    let is_log = lowest > 0.0 && highest / lowest > LINEAR_SPAN_MAX;
    let scale = Scale::new(values(), NAMES_WIDTH, WIDTH - RIGHT_WIDTH, is_log);
    for tick in scale.ticks() {
        let x = scale.at(tick);
        picture.line((x, TITLE_HEIGHT), (x, bottom), "stroke=\"#ddd\"");
        picture.text(x, bottom + 16.0, "middle", "fill=\"#666\"", &figure(tick));
    }
    let mut y = TITLE_HEIGHT + ROW_HEIGHT / 2.0;
    for row in rows {
        let colour = colour(&row.subject);
        let summary = &row.summary;
        let ends = (scale.at(summary.min), scale.at(summary.p99));
        picture.text(NAMES_WIDTH - 12.0, y + 4.0, "end", "", label(&row.subject));
        let stroke = format!("stroke=\"{colour}\" stroke-width=\"4\" stroke-opacity=\"0.35\"");
        picture.line((ends.0, y), (ends.1, y), &stroke);
        picture.dot(scale.at(summary.p50), y, 5.0, colour);
        let text = if summary.n == 1 {
            figure(summary.p50)
        } else {
            format!("{}  (p99 {})", figure(summary.p50), figure(summary.p99))
        };
        picture.text(WIDTH - RIGHT_WIDTH + 12.0, y + 4.0, "start", "", &text);
        y += ROW_HEIGHT;
    }
    picture.finish()
}

/// One line for each subject, through its medians.
pub(crate) fn series(title: &str, unit: Unit, axis: Axis, points: &[&Measurement]) -> String {
    let bottom = TITLE_HEIGHT + SERIES_HEIGHT;
    let mut picture = Picture::new(&format!("{title}, {unit}"), bottom + 44.0);
    let left = FIGURES_WIDTH;
    let right = WIDTH - RIGHT_WIDTH;
    let places = || points.iter().filter_map(|point| point.x);
    let x_scale = Scale::new(places(), left, right, axis.is_log);
    let values = || points.iter().map(|point| point.summary.p50);
    let span = values().fold(0.0, f64::max) / values().fold(f64::INFINITY, f64::min);
    let is_log = axis.is_log && span > LINEAR_SPAN_MAX;
    let y_scale = Scale::new(values(), bottom, TITLE_HEIGHT + 6.0, is_log);
    for tick in y_scale.ticks() {
        let y = y_scale.at(tick);
        picture.line((left, y), (right, y), "stroke=\"#ddd\"");
        picture.text(left - 8.0, y + 4.0, "end", "fill=\"#666\"", &figure(tick));
    }
    draw_places(&mut picture, &x_scale, axis, places().collect(), bottom);
    let mut ends = Vec::new();
    for subject in subjects(points) {
        let of_subject = points.iter().filter(|point| point.subject == subject);
        let path: Vec<(f64, f64)> = of_subject
            .filter_map(|point| Some((x_scale.at(point.x?), y_scale.at(point.summary.p50))))
            .collect();
        let colour = colour(subject);
        let text: Vec<String> = path.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        picture.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            text.join(" ")
        ));
        for &(x, y) in &path {
            picture.dot(x, y, 3.0, colour);
        }
        ends.extend(path.last().map(|&(_, y)| (y, subject)));
    }
    draw_names(&mut picture, ends, right, bottom);
    picture.finish()
}

/// The horizontal axis: the places themselves where they lie apart by factors.
fn draw_places(
    picture: &mut Picture,
    scale: &Scale,
    axis: Axis,
    mut places: Vec<f64>,
    bottom: f64,
) {
    places.sort_by(f64::total_cmp);
    places.dedup();
    let ticks = if axis.is_log { places } else { scale.ticks() };
    for tick in ticks {
        let x = scale.at(tick);
        picture.line((x, bottom), (x, bottom + 4.0), "stroke=\"#999\"");
        picture.text(x, bottom + 18.0, "middle", "fill=\"#666\"", &binary(tick));
    }
    let middle = f64::midpoint(scale.from, scale.to);
    picture.text(middle, bottom + 36.0, "middle", "fill=\"#666\"", axis.label);
}

/// The names at the ends of their lines, pushed apart where they would cover each other.
fn draw_names(picture: &mut Picture, mut ends: Vec<(f64, &str)>, right: f64, bottom: f64) {
    ends.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut lowest = bottom + NAME_HEIGHT;
    for (y, subject) in ends {
        let y = y.min(lowest - NAME_HEIGHT);
        lowest = y;
        let fill = format!("fill=\"{}\"", colour(subject));
        picture.text(right + 10.0, y + 4.0, "start", &fill, label(subject));
    }
}

/// Every subject once, in the order in which they come.
pub(crate) fn subjects<'a>(points: &[&'a Measurement]) -> Vec<&'a str> {
    let mut subjects: Vec<&str> = Vec::new();
    for point in points {
        if !subjects.contains(&point.subject.as_str()) {
            subjects.push(&point.subject);
        }
    }
    subjects
}

fn colour(subject: &str) -> &'static str {
    match subject {
        "agent" => "#0b6e4f",
        "agent_kept" => "#5aa36f",
        "host_tool" => "#1f5fa8",
        "socat" => "#b03a2e",
        "qemu_ga" => "#b9770e",
        "dropbear" => "#6c3483",
        "posix_spawn" | "socketpair" | "empty" | "echo" => "#777",
        _ => "#34495e",
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
        if index > 0 && (whole.len() - index) % 3 == 0 && digit.is_ascii_digit() && whole.len() > 4
        {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &rest
}

/// A place of a series, in powers of 1024 where it is one.
pub(crate) fn binary(value: f64) -> String {
    const KIB: f64 = 1024.0;
    let is_whole = |value: f64| value >= 1.0 && value.fract() == 0.0;
    if is_whole(value / KIB / KIB) {
        format!("{} Mi", value / KIB / KIB)
    } else if is_whole(value / KIB) {
        format!("{} Ki", value / KIB)
    } else {
        figure(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Results;

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
        assert_eq!(
            (binary(64.0), binary(65_536.0)),
            ("64".into(), "64 Ki".into())
        );
    }

    #[test]
    fn every_subject_is_drawn_within_the_picture() {
        let mut results = Results::default();
        let us = Unit::Microseconds;
        for x in [1.0, 10.0, 100.0] {
            results.add("exec/round_trip", "agent", Some(x), us, &[x, 2.0 * x]);
            results.add("exec/round_trip", "so<cat", Some(x), us, &[0.0, 3.0 * x]);
        }
        let all: Vec<_> = results.measurements.iter().collect();
        let axis = Axis {
            label: "clients",
            is_log: true,
        };
        for svg in [
            ranges("Title", us, &all[..2]),
            series("Title", us, axis, &all),
        ] {
            assert!(
                svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
                "{svg}"
            );
            assert!(
                svg.contains("guest-agent") && svg.contains("so&lt;cat"),
                "{svg}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
