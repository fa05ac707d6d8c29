//! The timeline as a picture: one self-contained SVG file, for a bug report.
//!
//! Each row is a span with its duration and notes, by beginning; the tooltip holds the rest. The
//! picture is readable on light and dark backgrounds and has no script. Texts of guests and VMMs
//! are escaped.

use std::fmt::Write as _;

use crate::report::timeline::{Outcome, Side, Span, Track};

// Widths and heights in pixels.
const NAME_WIDTH: u64 = 190;
const TIME_WIDTH: u64 = 100;
const BAR_WIDTH: u64 = 480;
const NOTE_WIDTH: u64 = 330;
const MARGIN: u64 = 16;
const ROW_HEIGHT: u64 = 20;
const HEAD_HEIGHT: u64 = 34;

const BAR_LEFT: u64 = MARGIN + NAME_WIDTH + TIME_WIDTH;

/// Longest note of a row, in characters; the tooltip has all of it.
const NOTE_LEN_MAX: usize = 46;

/// Longest title of a track, in characters.
const TITLE_LEN_MAX: usize = 120;

const TICKS_MAX: u64 = 6;

const STYLE: &str = "
  :root { color-scheme: light dark; }
  svg { background: #fff; font: 12px ui-monospace, Menlo, Consolas, monospace; }
  text { fill: #1f2328; }
  .dim { fill: #656d76; }
  .title { font-weight: bold; }
  .bad { fill: #cf222e; }
  .grid { stroke: #d0d7de; }
  .host { fill: #2f6fd0; }
  .attempt { fill: #9cbcf0; }
  .guest { fill: #1a7f37; }
  .step { fill: #7fce95; }
  .retried { fill: #d29922; }
  .failed { fill: #cf222e; }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117; }
    text { fill: #e6edf3; }
    .dim { fill: #8d96a0; }
    .bad { fill: #ff7b72; }
    .grid { stroke: #30363d; }
    .attempt { fill: #24508f; }
    .step { fill: #196c2e; }
  }
";

/// The picture of these machines, which share one axis.
pub(crate) fn render(title: &str, tracks: &[Track]) -> String {
    let total_us = tracks.iter().map(Track::end_us).max().unwrap_or(0).max(1);
    let mut page = Page {
        rows: String::new(),
        y: MARGIN,
        total_us,
    };
    page.heading(title, "title");
    for track in tracks {
        page.heading(&track.title, "title");
        for span in &track.spans {
            page.row(span);
        }
        if let Some((at_us, text)) = &track.failure {
            let text = format!("failed after {}: {text}", milliseconds(*at_us));
            page.heading(&text, "bad");
        }
        page.y += ROW_HEIGHT / 2;
    }
    page.finish()
}

/// A page that grows downwards.
struct Page {
    rows: String,
    y: u64,
    total_us: u64,
}

impl Page {
    /// A line of text over the whole width.
    fn heading(&mut self, text: &str, class: &str) {
        let y = self.y + ROW_HEIGHT - 6;
        let (full, shown) = (escape(text), escape(&clip(text, TITLE_LEN_MAX)));
        self.line(&format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" class=\"{class}\">{shown}<title>{full}</title></text>"
        ));
        self.y += ROW_HEIGHT;
    }

    /// A span: its name, duration, bar and notes.
    fn row(&mut self, span: &Span) {
        let depth = u64::try_from(span.depth).unwrap_or(0);
        let guest = u64::from(span.side == Side::Guest);
        let name_x = MARGIN + 14 * (depth + guest);
        let (time_x, note_x) = (BAR_LEFT - 12, BAR_LEFT + BAR_WIDTH + 12);
        let (text_y, bar_y) = (self.y + ROW_HEIGHT - 6, self.y + 4);
        let (left, right) = (self.x(span.begin_us), self.x(span.end_us));
        let width = right.saturating_sub(left).max(1);
        let class = class(span);
        let name = match span.side {
            Side::Guest if span.depth == 0 => format!("guest: {}", span.name),
            Side::Guest | Side::Host => span.name.clone(),
        };
        let took = milliseconds(span.end_us - span.begin_us);
        let notes = notes(span);
        let tooltip = format!(
            "{name}: {} to {}, {took}{}{notes}",
            milliseconds(span.begin_us),
            milliseconds(span.end_us),
            if notes.is_empty() { "" } else { "; " }
        );
        let (name, tooltip) = (escape(&name), escape(&tooltip));
        let note = escape(&clip(&notes, NOTE_LEN_MAX));
        self.line(&format!("<g><title>{tooltip}</title>"));
        self.line(&format!(
            "<text x=\"{name_x}\" y=\"{text_y}\">{name}</text>"
        ));
        self.line(&format!(
            "<text x=\"{time_x}\" y=\"{text_y}\" class=\"dim\" text-anchor=\"end\">{took}</text>"
        ));
        self.line(&format!(
            "<rect x=\"{left}\" y=\"{bar_y}\" width=\"{width}\" height=\"12\" class=\"{class}\"/>"
        ));
        if !note.is_empty() {
            self.line(&format!(
                "<text x=\"{note_x}\" y=\"{text_y}\" class=\"dim\">{note}</text>"
            ));
        }
        self.line("</g>");
        self.y += ROW_HEIGHT;
    }

    /// The place of a point in time on the axis.
    fn x(&self, us: u64) -> u64 {
        let scaled = u128::from(us) * u128::from(BAR_WIDTH) / u128::from(self.total_us);
        BAR_LEFT + u64::try_from(scaled).unwrap_or(BAR_WIDTH).min(BAR_WIDTH)
    }

    fn line(&mut self, text: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.rows, "{text}");
    }

    /// The whole file. The axis is drawn first, so that the rows cover it.
    fn finish(mut self) -> String {
        let bottom = self.y;
        let rows = std::mem::take(&mut self.rows);
        let step = tick_step(self.total_us);
        for tick in 0..=self.total_us / step {
            let us = tick * step;
            let (x, top) = (self.x(us), MARGIN + ROW_HEIGHT);
            let label = tick_label(us);
            self.line(&format!(
                "<line x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{bottom}\" class=\"grid\"/>"
            ));
            let label_y = bottom + ROW_HEIGHT - 6;
            self.line(&format!(
                "<text x=\"{x}\" y=\"{label_y}\" class=\"dim\" text-anchor=\"middle\">{label}</text>"
            ));
        }
        let width = BAR_LEFT + BAR_WIDTH + NOTE_WIDTH + MARGIN;
        let height = bottom + HEAD_HEIGHT;
        let grid = self.rows;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">\n<style>{STYLE}</style>\n{grid}{rows}</svg>\n"
        )
    }
}

/// The smallest round number of µs that divides the axis into [`TICKS_MAX`] parts or fewer.
fn tick_step(total_us: u64) -> u64 {
    let powers = (0..19).map(|exponent| 10u64.pow(exponent));
    let mut steps = powers.flat_map(|power| [1, 2, 5].map(|digit| power * digit));
    let step = steps.find(|step| total_us / step <= TICKS_MAX);
    step.unwrap_or(total_us)
}

/// `us` in the largest unit that leaves it whole.
fn tick_label(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        us if us % 1_000_000 == 0 => format!("{} s", us / 1_000_000),
        us if us % 1000 == 0 => format!("{} ms", us / 1000),
        us => format!("{us} µs"),
    }
}

const fn class(span: &Span) -> &'static str {
    match (span.outcome, span.side, span.depth) {
        (Outcome::Failed, _, _) => "failed",
        (Outcome::Retried, _, _) => "retried",
        (Outcome::Done, Side::Host, 0) => "host",
        (Outcome::Done, Side::Host, _) => "attempt",
        (Outcome::Done, Side::Guest, 0) => "guest",
        (Outcome::Done, Side::Guest, _) => "step",
    }
}

/// The notes that a reader would not expect anyway.
fn notes(span: &Span) -> String {
    let is_unusual = |(_, value): &&(&str, String)| value != "done" && value != "answered";
    let notes = span.notes.iter().filter(is_unusual);
    let texts: Vec<_> = notes
        .map(|(name, value)| match *name {
            "end" | "cause" | "result" => value.clone(),
            name => format!("{name} {value}"),
        })
        .collect();
    texts.join(": ")
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

fn clip(text: &str, len_max: usize) -> String {
    if text.chars().count() <= len_max {
        return text.to_owned();
    }
    let head: String = text.chars().take(len_max - 1).collect();
    format!("{head}…")
}

/// `text` as XML, which forbids control characters even when they are escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::report::timeline::tests::timeline;

    fn picture(is_failed: bool) -> String {
        let origin = Instant::now();
        let track = timeline(origin, is_failed).track("a<b".to_owned(), origin);
        render("restore of x & y", &[track])
    }

    #[test]
    fn every_span_has_its_row() {
        let svg = picture(false);
        assert!(svg.starts_with("<svg xmlns="), "{svg}");
        assert!(svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches("<rect ").count(), 12, "{svg}");
        for row in [
            ">rebind<",
            ">attempt 3<",
            ">guest: probe<",
            ">spawn and reap<",
        ] {
            assert!(svg.contains(row), "no {row} in {svg}");
        }
        assert!(svg.contains("0.300 ms"), "{svg}");
        assert!(svg.contains("prefers-color-scheme: dark"), "{svg}");
    }

    #[test]
    fn texts_of_guests_and_vmms_are_escaped() {
        let svg = picture(true);
        assert!(svg.contains("restore of x &amp; y"), "{svg}");
        assert!(svg.contains("connection closed: &lt;refused&gt; &amp; &quot;gone&quot;"));
        assert!(svg.contains("probe failed: \u{fffd}&lt;b&gt;"), "{svg}");
        assert!(!svg.contains('\u{1b}') && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("class=\"failed\""), "{svg}");
        // No text of others has opened or closed a tag.
        let count = |text: &str| svg.matches(text).count();
        for tag in ["g", "text", "title", "style", "svg"] {
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn bars_stay_on_the_page() {
        let page = Page {
            rows: String::new(),
            y: 0,
            total_us: 1000,
        };
        assert_eq!(page.x(0), BAR_LEFT);
        assert_eq!(page.x(500), BAR_LEFT + BAR_WIDTH / 2);
        assert_eq!(page.x(u64::MAX), BAR_LEFT + BAR_WIDTH);
        assert!(render("empty", &[]).contains("</svg>"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (total_us, step) in [(1, 1), (6, 1), (7, 2), (14, 5), (2_105_771, 500_000)] {
            assert_eq!(tick_step(total_us), step, "{total_us}");
        }
        assert!(u64::MAX / tick_step(u64::MAX) <= TICKS_MAX);
        let labels = [0, 500, 1500, 20_000, 1_500_000, 2_000_000].map(tick_label);
        assert_eq!(
            labels,
            ["0", "500 µs", "1500 µs", "20 ms", "1500 ms", "2 s"]
        );
    }

    #[test]
    fn long_notes_are_cut_and_kept_in_the_tooltip() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("abcd", 3), "ab…");
    }
}
