//! Documents and mutation patches name settings and tests that exist.

use std::collections::BTreeSet;
use std::process::Command;

use tests::top;

use super::{Source, check, read, rust_sources, sources};

#[test]
fn the_agents_settings_are_documented_as_they_are() {
    let code = read("agent/src/config.rs");
    let document = read("docs/agent.md");
    let rows: Vec<&str> = code
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .collect();
    assert!(rows.len() > 3, "no table in config.rs");
    let missing = rows
        .iter()
        .filter(|row| !document.contains(**row))
        .map(|row| (*row).to_owned());
    check(
        "docs/agent.md has the table of config.rs",
        missing.collect(),
    );
}

/// Names of all tests: functions with the attribute, and the lab's cases.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in rust_sources() {
        let is_lab = source.is_in("tests/lab/");
        let mut is_attributed = false;
        for line in source.text.lines().map(str::trim) {
            if let (true, Some(rest)) = (is_attributed, line.strip_prefix("fn ")) {
                names.extend(rest.split('(').next().map(str::to_owned));
            }
            is_attributed = line == "#[test]" || (is_attributed && line.starts_with('#'));
            // A case is `("its_name", …)`, which rustfmt breaks where it is long.
            let case = line.trim_start_matches('(');
            if is_lab && case.starts_with('"') {
                names.extend(case.split('"').nth(1).map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn promises_name_tests_that_exist() {
    let document = read("docs/testing.md");
    let (_, promises) = document.split_once("\n## Promises\n").expect("a section");
    let promises = promises.split("\n## ").next().unwrap_or_default();
    let known = test_names();
    let mut found = Vec::new();
    let rows = promises.lines().filter(|line| line.starts_with("| "));
    for row in rows.filter(|row| !row.ends_with("| Tests |")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let named: Vec<_> = cells[1].split('`').skip(1).step_by(2).collect();
        let unknown = named.iter().filter(|name| !known.contains(**name));
        found.extend(unknown.map(|name| format!("{}: no test {name}", cells[0].trim())));
        if named.is_empty() {
            found.push(format!("{}: no test", cells[0].trim()));
        }
    }
    assert!(promises.lines().count() > 30, "the tables are there");
    check("docs/testing.md names tests that exist", found);
}

/// The patches of `tests/mutations`: the name, and the text before the first file.
fn mutations() -> Vec<(String, String)> {
    let folder = "tests/mutations/";
    let patches = sources(&[".patch"]).into_iter();
    let patches: Vec<_> = patches
        .filter_map(|patch| {
            let name = patch.path.strip_prefix(folder)?.strip_suffix(".patch")?;
            let (preamble, _) = patch.text.split_once("\ndiff --git ")?;
            Some((name.to_owned(), preamble.to_owned()))
        })
        .collect();
    assert!(patches.len() > 12, "the patches are there");
    patches
}

/// The value of a line of a preamble; empty if there is none.
fn field<'a>(preamble: &'a str, name: &str) -> &'a str {
    let mut lines = preamble.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_default()
}

/// The file of a test of the process tier or the model, from its name in `caught-by`.
fn file_of(item: &str) -> Option<String> {
    let (tier, path) = item.split_once(' ')?;
    match (tier, path.rsplit_once("::")) {
        ("it", Some((module, _))) => Some(format!("tests/it/{}.rs", module.replace("::", "/"))),
        ("model", None) => Some("tests/model/tests/exploration.rs".to_owned()),
        _ => None,
    }
}

#[test]
fn mutations_apply() {
    let mut found = Vec::new();
    for (name, _) in mutations() {
        let output = Command::new("git")
            .args(["apply", "--check"])
            .arg(format!("tests/mutations/{name}.patch"))
            .current_dir(top())
            .output()
            .expect("git runs");
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            found.push(format!("{name}: {}", text.trim()));
        }
    }
    check("each mutation applies to the sources as they are", found);
}

#[test]
fn mutations_name_tests_that_exist() {
    let sources = rust_sources();
    let known = test_names();
    let has = |item: &str| {
        let test = item.rsplit([' ', ':']).next().unwrap_or_default();
        let Some(path) = file_of(item) else {
            return item == "simulation" || (item.starts_with("unit ") && known.contains(test));
        };
        let of_test = format!("fn {test}()");
        let is_there = |it: &&Source| it.path == path && it.text.contains(&of_test);
        known.contains(test) && sources.iter().any(|it| is_there(&it))
    };
    let mut found = Vec::new();
    for (name, preamble) in mutations() {
        let items: Vec<_> = field(&preamble, "caught-by").split(", ").collect();
        let unknown = items.iter().filter(|item| !has(item));
        found.extend(unknown.map(|item| format!("{name}: there is no {item:?}")));
        let counts = |tier: &str| {
            items
                .iter()
                .any(|item| item.split(' ').next() == Some(tier))
        };
        let in_model = counts("model") || !field(&preamble, "model").is_empty();
        let tiers = [in_model, counts("simulation"), counts("it")];
        if tiers.iter().filter(|is_named| **is_named).count() < 2 {
            found.push(format!("{name}: fewer than two tiers"));
        }
        if field(&preamble, "breaks").is_empty() {
            found.push(format!("{name}: no promise"));
        }
    }
    check("mutations name tests of two tiers", found);
}

#[test]
fn mutations_are_those_of_the_model_and_of_their_document() {
    let model = read("tests/model/src/mutation.rs");
    let document = read("docs/mutations.md");
    let (_, list) = model.split_once("pub const ALL:").expect("a list");
    let list = list.split("];").next().unwrap_or_default();
    let names = list.split("Self::").skip(1);
    let names: BTreeSet<_> = names.filter_map(|rest| rest.split(',').next()).collect();
    let mutations = mutations();
    let beside = mutations.iter().map(|(_, it)| field(it, "model"));
    let beside: BTreeSet<_> = beside.filter(|name| !name.is_empty()).collect();
    assert_eq!(beside, names, "each defect of the model is a patch, too");
    let rows = document.lines().filter(|line| line.starts_with("| ["));
    let rows: Vec<_> = rows.filter_map(|row| row[3..].split(']').next()).collect();
    let patches: Vec<_> = mutations.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(rows, patches, "scripts/mutations.sh --write is to be run");
}
