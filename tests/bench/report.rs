//! The report, `benchmarks.md`: the text of `page.md` with the record's figures put in.
//!
//! Markers in the text are `{{facts}}`, `{{budgets}}`, `{{quick}}`, `{{skipped}}`,
//! `{{table GROUP}}`, `{{CASE SUBJECT [X]}}` for a median with its unit, and
//! `{{CASE SUBJECT/OTHER [X]}}` for a ratio.

use std::fs;
use std::path::Path;

use crate::Failure;
use crate::budgets;
use crate::catalogue::{CASES, Case, VMMS, label, rank};
use crate::results::{Measurement, Results};
use crate::stats::{figure, ratio};

const PAGE: &str = include_str!("page.md");

/// What stands in a sentence for a figure that the record lacks.
const MISSING: &str = "(not measured)";

/// Writes the page into `folder`.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<(), Failure> {
    Ok(fs::write(folder.join("benchmarks.md"), page(results)?)?)
}

fn page(results: &Results) -> Result<String, Failure> {
    let mut page = String::new();
    let mut rest = PAGE;
    while let Some((before, behind)) = rest.split_once("{{") {
        let (marker, behind) = behind.split_once("}}").ok_or("a marker has no end")?;
        page.push_str(before);
        page.push_str(&filled(results, marker)?);
        rest = behind;
    }
    Ok(page + rest)
}

/// What the page has in place of a marker.
fn filled(results: &Results, marker: &str) -> Result<String, Failure> {
    let words: Vec<&str> = marker.split(' ').collect();
    Ok(match words[..] {
        ["facts"] => facts(results),
        ["budgets"] => budgets::table(results),
        ["quick"] if results.facts.values().any(|value| value == crate::QUICK) => {
            "\n**A quick run: too few repetitions to quote.**\n".to_owned()
        }
        ["quick"] => String::new(),
        ["skipped"] => skipped(results),
        ["table", "lab"] => table_by_vmm(results, "lab"),
        ["table", group] => table_by_subject(results, group),
        [case, subjects] => median(results, case, subjects, None),
        [case, subjects, x] => median(results, case, subjects, Some(x.parse()?)),
        _ => return Err(format!("unknown marker {marker:?}").into()),
    })
}

fn median(results: &Results, case: &str, subjects: &str, x: Option<f64>) -> String {
    let find = |subject| Some(results.find(case, subject, x)?.p50);
    let text = match subjects.split_once('/') {
        Some((ours, floor)) => find(ours)
            .zip(find(floor))
            .map(|(ours, floor)| ratio(ours, floor)),
        None => find(subjects)
            .zip(results.case(case).next())
            .map(|(ours, it)| format!("{} {}", figure(ours), it.unit)),
    };
    text.unwrap_or_else(|| MISSING.to_owned())
}

/// Two facts to a row.
fn facts(results: &Results) -> String {
    let mut text = head(["", "", ""]);
    let facts: Vec<_> = results.facts.iter().collect();
    for pair in facts.chunks(2) {
        let cells = pair.iter().flat_map(|(name, value)| [*name, *value]);
        text.push_str(&format!(
            "| {} |\n",
            cells.cloned().collect::<Vec<_>>().join(" | ")
        ));
    }
    text
}

fn skipped(results: &Results) -> String {
    let mut text = String::new();
    for (what, why) in &results.skipped {
        let why = why.lines().next().unwrap_or_default();
        text.push_str(&format!("\nNot measured: `{what}`, {why}\n"));
    }
    text
}

/// A column for each subject of a group, and a row for each value of each case.
fn table_by_subject(results: &Results, group: &str) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for subject in shown(group).flat_map(|case| subjects(results, case)) {
        if !columns.contains(&subject) {
            columns.push(subject);
        }
    }
    columns.sort_by_key(|subject| rank(subject));
    let mut text = head(columns.iter().map(|subject| label(subject)));
    for case in shown(group) {
        for x in case.shown() {
            let find = |subject| results.find(case.name, subject, x);
            let floor = case.floor.and_then(find);
            let cells = columns.iter().map(|&subject| {
                let median = find(subject)?.p50;
                let floor = floor.filter(|_| case.floor != Some(subject));
                let ratio = floor.map(|floor| format!(" ({})", ratio(median, floor.p50)));
                Some(figure(median) + &ratio.unwrap_or_default())
            });
            text.push_str(&row(&title(results, case, x, None), cells));
        }
    }
    text
}

/// A column for each VMM, and a row for each subject of each value of each case. A floor has no
/// row: it stands behind the ratio to it.
fn table_by_vmm(results: &Results, group: &str) -> String {
    let mut text = head(VMMS);
    for case in shown(group) {
        for x in case.shown() {
            let all = subjects(results, case);
            for subject in all.into_iter().filter(|it| case.floor != Some(it)) {
                let cells = VMMS.map(|vmm| {
                    let name = format!("{}/{vmm}", case.name);
                    // The image is the same for both.
                    let find = |subject| {
                        let found = results.find(&name, subject, x);
                        found.or_else(|| results.find(case.name, subject, x))
                    };
                    let median = find(subject)?.p50;
                    let floor = case.floor.and_then(find).map(|floor| floor.p50);
                    let ratio =
                        floor.map(|floor| format!(" ({} {})", ratio(median, floor), figure(floor)));
                    Some(figure(median) + &ratio.unwrap_or_default())
                });
                text.push_str(&row(&title(results, case, x, Some(subject)), cells));
            }
        }
    }
    text
}

fn shown(group: &str) -> impl Iterator<Item = &'static Case> {
    CASES
        .iter()
        .filter(move |case| case.group() == group && !case.title.is_empty())
}

/// The subjects of a case, in the order in which they were measured.
fn subjects<'a>(results: &'a Results, case: &Case) -> Vec<&'a str> {
    let mut subjects: Vec<&str> = Vec::new();
    for it in measurements(results, case) {
        if !subjects.contains(&it.subject.as_str()) {
            subjects.push(&it.subject);
        }
    }
    subjects.sort_by_key(|subject| rank(subject));
    subjects
}

/// Of all VMMs.
fn measurements<'a>(results: &'a Results, case: &Case) -> impl Iterator<Item = &'a Measurement> {
    let is_its = |it: &&Measurement| Case::of(&it.case).is_some_and(|its| its.name == case.name);
    results.measurements.iter().filter(is_its)
}

/// What a row is: the case, its value, the subject where no column has it, and the unit.
fn title(results: &Results, case: &Case, x: Option<f64>, subject: Option<&str>) -> String {
    let mut text = case.title.to_owned();
    if let Some((axis, x)) = case.axis.zip(x) {
        text.push_str(&format!(", {} {}", binary(x), axis.label));
    }
    if let Some(subject) = subject.filter(|subject| *subject != "agent") {
        text.push_str(&format!(": {}", label(subject)));
    }
    let unit = measurements(results, case).next().map(|it| it.unit);
    text + &unit.map(|unit| format!(" ({unit})")).unwrap_or_default()
}

/// The first two lines of a table whose first column has no name.
fn head<'a>(columns: impl IntoIterator<Item = &'a str>) -> String {
    let (mut names, mut rule) = ("| |".to_owned(), "|---|".to_owned());
    for column in columns {
        names.push_str(&format!(" {column} |"));
        rule.push_str("---|");
    }
    format!("{names}\n{rule}\n")
}

/// A line of a table, or nothing where no cell was measured.
fn row(title: &str, cells: impl IntoIterator<Item = Option<String>>) -> String {
    let cells: Vec<_> = cells.into_iter().collect();
    if cells.iter().all(Option::is_none) {
        return String::new();
    }
    let cells = cells.into_iter().map(Option::unwrap_or_default);
    format!("| {title} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// A value of a series, in powers of 1024 where it is one.
fn binary(value: f64) -> String {
    const KIB: f64 = 1024.0;
    let is_whole = |value: f64| value >= 1.0 && value.fract() == 0.0;
    if is_whole(value / KIB) {
        format!("{} Ki", value / KIB)
    } else {
        figure(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Unit;

    /// Most lines of the page: what a person reads to its end.
    const PAGE_LINES_MAX: usize = 200;

    #[test]
    fn the_page_is_what_the_record_makes() {
        let docs = ::tests::top().join("docs");
        let results = Results::read(&docs.join("benchmarks.json")).unwrap();
        let page = page(&results).unwrap();
        let kept = fs::read_to_string(docs.join("benchmarks.md")).unwrap();
        assert!(
            page == kept,
            "make it again: cargo run -p tests --bin bench -- report docs/benchmarks.json docs"
        );
        assert!(!page.contains(MISSING), "{page}");
        assert!(page.lines().count() <= PAGE_LINES_MAX);
    }

    #[test]
    fn every_group_has_its_table() {
        for case in CASES {
            let marker = format!("{{{{table {}}}}}", case.group());
            assert!(PAGE.contains(&marker), "{marker}");
        }
        assert!(filled(&Results::default(), "nothing").is_err());
    }

    #[test]
    fn a_figure_stands_beside_its_floor_or_is_said_to_be_missing() {
        let mut results = Results::default();
        let us = Unit::Microseconds;
        results.add("exec/round_trip", "agent", Some(1.0), us, &[12.0]);
        let figure = |results: &Results, subjects: &str| {
            filled(results, &format!("exec/round_trip {subjects} 1")).unwrap()
        };
        assert_eq!(figure(&results, "agent"), "12 µs");
        assert_eq!(figure(&results, "agent/posix_spawn"), MISSING);
        results.add("exec/round_trip", "posix_spawn", Some(1.0), us, &[10.0]);
        assert_eq!(figure(&results, "agent/posix_spawn"), "1.20 ×");
        let table = table_by_subject(&results, "exec");
        let expected = "| Exec, 1 at once (µs) | 12 (1.20 ×) | 10 |\n";
        assert!(table.ends_with(expected), "{table}");

        let ms = Unit::Milliseconds;
        results.add("lab/ready/qemu", "agent", None, ms, &[30.0]);
        results.add("lab/ready/qemu", "echo", None, ms, &[20.0]);
        results.add("lab/phases/qemu", "load", None, ms, &[5.0]);
        let table = table_by_vmm(&results, "lab");
        let expected = "| Load answered to READY (ms) |  | 30 (1.50 × 20) |\n\
                        | Phase: load (ms) |  | 5 |\n";
        assert!(table.ends_with(expected), "{table}");
        assert_eq!(binary(65_536.0), "64 Ki");
    }
}
