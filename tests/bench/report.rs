//! The report: `benchmarks.md` and its plots, from the record of a run alone. No measuring here.

use std::fs;
use std::path::Path;

use crate::Failure;
use crate::budgets;
use crate::catalogue::{CASES, Case, Unit, label, rank};
use crate::prose;
use crate::results::{Measurement, Results};
use crate::stats::Summary;
use crate::svg::{self, binary, figure};

/// Where the plots lie beside the report.
const PLOTS: &str = "benchmarks";

const OPENING: &str = "Every figure here comes from one run of `scripts/bench.sh`, is kept in \
[benchmarks.json](benchmarks.json), and is never edited: this page, its plots and its sentences \
are made from that file.";

const METHOD: &str = "\
- What is compared took turns within the run (A B C, B C A, …), so that whatever else the machine \
did, it did to all of them. So the *ratios* mean more than the figures.
- The first round of each comparison warms up caches and is not counted.
- Of each figure the median is given first, and with it the least, the 90th and the 99th \
percentile, and n. Percentiles are values that occurred: of fewer than a hundred samples, the \
99th is the worst.
- A *floor* is what the machine can do without any of the programs compared: a process without an \
agent, a socket without a relay, a guest that gives back one byte.
- Alternatives are Debian's, with the options that suit them best; what was chosen is said with \
each comparison.
- What needs no virtual machine was measured on this machine, over Unix sockets. What needs one \
ran where `scripts/lab.sh` runs it, on real VMMs with real snapshots.
";

const GROUPS: &[(&str, &str, &str)] = &[
    (
        "lab",
        "Ready, and what else takes a virtual machine",
        "From an artifact to a guest that is proven ready: how long, where the time goes, what it \
         costs the host, and many at once. Then commands over real vsock.",
    ),
    (
        "exec",
        "Exec",
        "How long it takes until a client knows that a command has ended. Most of it is the \
         kernel's time for a new process, which the floor shows; what a relay adds is what is to \
         be compared.",
    ),
    (
        "streams",
        "Streams",
        "Bytes a second between a command and its client, and the CPU time that moving a gibibyte \
         costs on both sides.",
    ),
    (
        "footprint",
        "Footprint",
        "What each costs an image and a guest that does nothing.",
    ),
    (
        "growth",
        "Growth",
        "Time and memory as there is more of something. Each should be flat or a straight line. \
         Clones are among the virtual machines above.",
    ),
    (
        "instructions",
        "Instructions",
        "What noise hides: the number of instructions that fixed scenarios take.",
    ),
];

const REPRODUCE: &str = "\
```console
$ scripts/bench.sh                        # everything, into target/bench
$ scripts/bench.sh --quick exec streams   # a few repetitions of some groups
$ scripts/bench.sh --out docs             # this page
$ scripts/bench.sh --compare docs/benchmarks.json
```

The last one measures and prints what got slower beyond noise: what is worse in the median and \
at its best, each by more than 5 % and three times the spread, after the floor's own change has \
been taken out.";

/// Writes the page and the plots into `folder`.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<(), Failure> {
    let plots = folder.join(PLOTS);
    fs::create_dir_all(&plots)?;
    let mut page = String::from("# Benchmarks\n\n");
    if results.facts.values().any(|value| value == crate::QUICK) {
        page.push_str("**A quick run: too few repetitions to quote.**\n\n");
    }
    page.push_str(OPENING);
    page.push_str("\n\n## In short\n\n");
    page.push_str(&prose::summary(results));
    page.push_str("\n## How it was measured\n\n");
    page.push_str(METHOD);
    page.push_str("\n## The machine and the programs\n\n");
    page.push_str(&facts(results));
    page.push_str("\n## Budgets\n\n");
    page.push_str("What the design promises, as ratios within the run where it can be one.\n\n");
    page.push_str(&budgets::table(results));
    for (group, title, text) in GROUPS {
        let sections = sections(results, group, &plots)?;
        if !sections.is_empty() {
            page.push_str(&format!("\n## {title}\n\n{text}\n{sections}"));
        }
    }
    page.push_str("\n## What limits us now\n\n");
    page.push_str(&prose::limits(results));
    page.push_str("\n## What to expect on hardware\n\n");
    page.push_str(&prose::hardware(results));
    if !results.skipped.is_empty() {
        page.push_str("\n## Not measured\n\n");
        for (what, why) in &results.skipped {
            let why = why.lines().next().unwrap_or_default();
            page.push_str(&format!("- `{what}`: {why}\n"));
        }
    }
    page.push_str("\n## How to repeat it\n\n");
    page.push_str(REPRODUCE);
    page.push('\n');
    fs::write(folder.join("benchmarks.md"), page)?;
    Ok(())
}

fn facts(results: &Results) -> String {
    let mut table = String::from("| | |\n|---|---|\n");
    for (name, value) in &results.facts {
        table.push_str(&format!("| {name} | {value} |\n"));
    }
    table
}

/// Every case of a group that was measured.
fn sections(results: &Results, group: &str, plots: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    for case in CASES.iter().filter(|case| case.group() == group) {
        for name in variants(results, case) {
            let all = ordered(results.case(&name));
            text.push_str(&section(&name, case, &all, plots)?);
        }
    }
    Ok(text)
}

/// The names under which a case was measured: its own, or one for each VMM.
fn variants(results: &Results, case: &Case) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for it in &results.measurements {
        let is_its = Case::of(&it.case).is_some_and(|its| its.name == case.name);
        if is_its && !names.contains(&it.case) {
            names.push(it.case.clone());
        }
    }
    names
}

fn section(name: &str, case: &Case, all: &[&Measurement], plots: &Path) -> Result<String, Failure> {
    let Some(unit) = all.first().map(|it| it.unit) else {
        return Ok(String::new());
    };
    let variant = name.strip_prefix(case.name).unwrap_or_default();
    let variant = variant.trim_start_matches('/');
    let title = if variant.is_empty() {
        case.title.to_owned()
    } else {
        format!("{}, {variant}", case.title)
    };
    let svg = match case.axis {
        Some(axis) => svg::series(&title, unit, axis, all),
        None => svg::ranges(&title, unit, all),
    };
    let file = format!("{}.svg", name.replace('/', "-"));
    fs::write(plots.join(&file), svg)?;
    let mut text = format!("\n### {title}\n\n");
    if !case.text.is_empty() {
        text.push_str(&format!("{}\n\n", case.text));
    }
    text.push_str(&format!("![{title}]({PLOTS}/{file})\n\n"));
    text.push_str(&table(case, unit, all));
    Ok(text)
}

fn table(case: &Case, unit: Unit, all: &[&Measurement]) -> String {
    let is_once = all.iter().all(|it| it.summary.n == 1);
    let mut head = vec![];
    head.extend(case.axis.map(|axis| axis.label.to_owned()));
    head.extend([String::new(), format!("median, {unit}")]);
    if !is_once {
        head.extend(["least", "p90", "p99", "n"].map(str::to_owned));
    }
    if let Some(floor) = case.floor {
        head.push(format!("× {}", label(floor)));
    }
    let rule = "---|".repeat(head.len());
    let mut text = format!("| {} |\n|{rule}\n", head.join(" | "));
    for it in all {
        let mut cells = vec![];
        cells.extend(it.x.filter(|_| case.axis.is_some()).map(binary));
        cells.push(label(&it.subject).to_owned());
        let Summary {
            n,
            min,
            p50,
            p90,
            p99,
            ..
        } = it.summary;
        cells.push(figure(p50));
        if !is_once {
            cells.extend([figure(min), figure(p90), figure(p99), n.to_string()]);
        }
        if let Some(floor) = case.floor {
            let floor = all
                .iter()
                .find(|other| other.subject == floor && other.x == it.x);
            let ratio = floor.map(|floor| ratio(p50, floor.summary.p50));
            cells.push(ratio.unwrap_or_default());
        }
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// By place, and at each place in the catalogue's order of names: ours first.
fn ordered<'a>(all: impl Iterator<Item = &'a Measurement>) -> Vec<&'a Measurement> {
    let mut rows: Vec<_> = all.collect();
    rows.sort_by(|a, b| {
        let place = |it: &Measurement| it.x.unwrap_or(0.0);
        let by_place = place(a).total_cmp(&place(b));
        by_place.then(rank(&a.subject).cmp(&rank(&b.subject)))
    });
    rows
}

/// A ratio as people read it.
pub(crate) fn ratio(value: f64, floor: f64) -> String {
    if floor > 0.0 {
        format!("{:.2} ×", value / floor)
    } else {
        String::new()
    }
}
