//! Style as a test: the rules of CONTRIBUTING.md that a program can check, read off the sources.
//!
//! Each rule lists its violations as `file:line: text` and passes when there are none. Code behind
//! `#[cfg(test)]`, files named `tests.rs` and folders named `tests` count as tests, for which only
//! the rules that name them hold.

#[path = "tidy/modules.rs"]
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use self::modules::{circles, modules};

/// Most lines of a file outside its tests. 400 is what we aim at; this is where it ends.
const FILE_LINES_MAX: usize = 600;

/// Most lines of a function, signature and braces included.
const FUNCTION_LINES_MAX: usize = 70;

/// Widest line, as rustfmt has it for code; this also holds for comments.
const LINE_WIDTH_MAX: usize = 100;

/// Most crates in the agent's tree, direct and transitive, proc-macros included.
const AGENT_CRATES_MAX: usize = 25;

/// The layers of the host from the ground up.
const HOST_LAYERS: [&str; 15] = [
    "sys",
    "exit",
    "error",
    "os",
    "values",
    "failpoint",
    "guest",
    "vmm",
    "vmdir",
    "artifact",
    "report",
    "supervisor",
    "lifecycle",
    "cli",
    "commands",
];

/// The crates that have no circles of imports in them.
const WITHOUT_CIRCLES: [&str; 3] = ["agent/src/", "host/src/", "shared/src/"];

/// One file of the project.
struct Source {
    /// Path from the top of the project.
    path: String,
    text: String,
}

impl Source {
    /// Lines in front of the file's own tests, with their numbers from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.is_test();
        let numbered = self
            .text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line));
        let mut is_over = is_test;
        numbered.take_while(move |(_, line)| {
            is_over |= line.trim_start().starts_with("#[cfg(test)]");
            !is_over
        })
    }

    /// Like [`Source::code`], without comments.
    fn statements(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// Modules that do no I/O and read no clock.
    fn is_pure(&self) -> bool {
        self.is_in("shared/src/") || self.is_in("agent/src/agent")
    }

    /// Modules that may hold `unsafe`.
    fn is_sys(&self) -> bool {
        ["agent/src/sys", "host/src/sys"]
            .iter()
            .any(|sys| self.is_in(sys))
    }
}

fn top() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("the tests are a folder of the project")
        .to_path_buf()
}

/// All files that git would take, with one of these endings.
fn sources(endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![top()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a folder entry").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, ".git" | "target" | "corpus" | "artifacts") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(top()).expect("below the top");
                let path_text = relative.to_str().expect("a UTF-8 path").to_owned();
                let text = fs::read_to_string(&path).expect("a UTF-8 file");
                found.push(Source {
                    path: path_text,
                    text,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_sources() -> Vec<Source> {
    sources(&[".rs"])
}

/// Fails with the violations, one to a line.
#[track_caller]
fn check(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n{}", violations.join("\n"));
}

/// Statements of the files that `files` picks which hold one of `words`.
fn mentions(files: impl Fn(&Source) -> bool, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in rust_sources().iter().filter(|source| files(source)) {
        for (number, line) in source.statements() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

#[test]
fn pure_modules_name_no_system() {
    let words = [
        "mio::",
        "nix::",
        "libc::",
        "std::fs",
        "std::net",
        "std::os",
        "std::process",
        "std::thread",
        "std::env",
        "Instant::now",
        "SystemTime",
        "std::io::",
    ];
    check(
        "pure modules do no I/O and read no clock",
        mentions(Source::is_pure, &words),
    );
}

#[test]
fn sys_knows_nothing_of_the_machines() {
    let found = mentions(|source| source.is_in("agent/src/sys"), &["crate::agent"]);
    check("sys deals in descriptors, pids, statuses and bytes", found);
}

#[test]
fn the_host_is_built_in_layers() {
    let rank = |layer: &String| HOST_LAYERS.iter().position(|known| known == layer);
    let mut found = Vec::new();
    for module in &modules("host/src/") {
        // `lib.rs` wires the layers together, and `testing` is for tests alone.
        let Some(own) = module.path.first().and_then(rank) else {
            continue;
        };
        for (number, path) in &module.named {
            let layer = path.first().and_then(rank);
            if layer.is_none_or(|layer| layer > own) {
                let named = path.join("::");
                found.push(format!("{}:{number}: names crate::{named}", module.file));
            }
        }
    }
    check("a module names its own layer and those below it", found);
}

#[test]
fn no_files_of_a_folder_import_each_other_in_a_circle() {
    let found = WITHOUT_CIRCLES.into_iter().flat_map(circles).collect();
    check("a parent and its children apart, imports go one way", found);
}

#[test]
fn the_loop_alone_polls() {
    let allowed = [
        "agent/src/event_loop.rs",
        "agent/src/shell",
        "agent/src/sys/",
        "agent/src/lib.rs",
    ];
    let outside = |source: &Source| {
        source.is_in("agent/src/") && !allowed.iter().any(|path| source.is_in(path))
    };
    check(
        "mio is named by the loop, the shell and its sources only",
        mentions(outside, &["mio::"]),
    );
}

#[test]
fn one_function_waits_for_children() {
    let agent = |source: &Source| source.is_in("agent/src/");
    let outside = |source: &Source| agent(source) && !source.is_in("agent/src/sys/process.rs");
    let found = mentions(outside, &["waitpid", "wait4", "Child::wait", ".wait()"]);
    check("one reaper owns every wait of the agent", found);
}

#[test]
fn the_agent_has_one_thread() {
    let words = [
        "std::thread",
        "Mutex",
        "RwLock",
        "async fn",
        ".await",
        "Condvar",
    ];
    let found = mentions(|source| source.is_in("agent/src/"), &words);
    check("no threads, no locks, no async in the agent", found);
}

#[test]
fn unsafe_stays_in_sys_and_says_why_it_is_safe() {
    let mut found = Vec::new();
    for source in rust_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form));
            if !is_unsafe || source.path == "tests/tidy.rs" {
                continue;
            }
            let above = &lines[number.saturating_sub(8)..number];
            let says_why = above
                .iter()
                .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            if !source.is_sys() || !says_why {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    check("unsafe is in sys, under a `SAFETY:` sentence", found);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = |source: &Source| !source.text.starts_with("//!");
    let found = rust_sources()
        .into_iter()
        .filter(silent)
        .map(|source| source.path)
        .collect();
    check("every module opens with `//!`", found);
}

#[test]
fn files_and_lines_have_a_limit() {
    let mut found = Vec::new();
    for source in rust_sources() {
        let count = source.code().count();
        if count > FILE_LINES_MAX {
            found.push(format!("{}: {count} lines", source.path));
        }
        for (number, line) in source.text.lines().enumerate() {
            let width = line.chars().count();
            // A long literal cannot be broken; rustfmt leaves it alone too.
            if width > LINE_WIDTH_MAX && !line.contains('"') && !line.contains("http") {
                found.push(format!("{}:{}: {width} columns", source.path, number + 1));
            }
        }
    }
    check("files and lines have a limit", found);
}

/// Relies on rustfmt: a function ends with the first line that is its indentation and a brace.
#[test]
fn functions_have_a_limit() {
    let mut found = Vec::new();
    for source in rust_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indentation = line.len() - line.trim_start().len();
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_head = words
                .iter()
                .take_while(|word| !word.contains('('))
                .any(|&w| w == "fn")
                || words
                    .windows(2)
                    .any(|pair| pair[0] == "fn" && line.trim_end().ends_with('{'));
            if !is_head || line.trim_start().starts_with("//") {
                continue;
            }
            let end = format!("{}}}", " ".repeat(indentation));
            let is_end = |line: &&str| **line == *end;
            let one_liner = line.trim_end().ends_with('}') || line.trim_end().ends_with(';');
            let length = lines[start..]
                .iter()
                .position(is_end)
                .map_or(0, |index| index + 1);
            if !one_liner && length > FUNCTION_LINES_MAX {
                found.push(format!("{}:{}: {length} lines", source.path, start + 1));
            }
        }
    }
    check("functions have a limit", found);
}

#[test]
fn nothing_is_left_for_later_and_nothing_names_this_machine() {
    // Put together here, so that this file does not accuse itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/."),
    ];
    let mut found = Vec::new();
    for source in sources(&[".rs", ".sh", ".md", ".toml", ".yml"]) {
        for (number, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    check("no unfinished marks and no machine paths", found);
}

#[test]
fn tests_wait_for_events_and_not_for_time() {
    let word = concat!("slee", "p(");
    let mut found = Vec::new();
    for source in rust_sources() {
        for (number, line) in source.text.lines().enumerate() {
            if line.contains(word) && !line.trim_start().starts_with("//") {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    check("nothing waits for time to pass", found);
}

#[test]
fn scripts_stop_at_the_first_error() {
    let lax = |source: &Source| !source.text.contains("set -euo pipefail");
    let shebang = |source: &Source| source.text.starts_with("#!/usr/bin/env bash");
    let scripts = sources(&[".sh"]).into_iter().filter(shebang);
    let found = scripts.filter(lax).map(|source| source.path).collect();
    check("scripts stop at the first error", found);
}

#[test]
fn the_agents_settings_are_documented_as_they_are() {
    let code = fs::read_to_string(top().join("agent/src/config.rs")).expect("the settings");
    let document = fs::read_to_string(top().join("docs/agent.md")).expect("their document");
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

/// `cargo tree` for one package, one crate to a line.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--package",
            package,
            "--edges",
            "normal,build",
        ])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(top())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let name = |line: &str| {
        line.split(" (")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let mut names: Vec<String> = text.lines().map(name).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_agent_stays_small() {
    let crates = dependencies("agent");
    assert!(crates.len() > 5, "cargo tree printed {crates:?}");
    assert!(
        crates.len() - 1 <= AGENT_CRATES_MAX,
        "{} crates: {crates:#?}",
        crates.len() - 1
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
    let document = fs::read_to_string(top().join("docs/testing.md")).expect("the document");
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

/// A patch of `tests/mutations`: its name, and the text in front of its first file.
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

/// What a line of a preamble says, or nothing.
fn field<'a>(preamble: &'a str, name: &str) -> &'a str {
    let mut lines = preamble.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_default()
}

/// The file that has a test of the process tier or the model, by what `caught-by` says of it.
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
    let read = |path: &str| fs::read_to_string(top().join(path)).expect("a UTF-8 file");
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

#[test]
fn shared_needs_json_and_log_only() {
    let manifest = fs::read_to_string(top().join("shared/Cargo.toml")).expect("a manifest");
    let section = manifest
        .split("[dependencies]\n")
        .nth(1)
        .unwrap_or_default();
    let names: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| {
            line.split(['.', ' '])
                .next()
                .filter(|name| !name.is_empty())
        })
        .collect();
    assert_eq!(names, ["serde_json", "log"]);
}
