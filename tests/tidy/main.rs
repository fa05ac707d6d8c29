//! Style as a test: the rules of CONTRIBUTING.md that a program can check, read from the sources.
//!
//! Each rule lists its violations as `file:line: text` and passes when there are none. Code behind
//! `#[cfg(test)]`, files named `tests.rs` and folders named `tests` count as tests, to which only
//! rules about tests apply.

mod dependencies;
mod documents;
mod modules;
mod structure;
mod style;

use std::fs;

use tests::top;

struct Source {
    /// Path from the top of the project.
    path: String,
    text: String,
}

impl Source {
    /// All lines, with their numbers from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.text.lines().enumerate();
        numbered.map(|(index, line)| (index + 1, line))
    }

    /// The lines before the file's own tests; none if it is a test.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut is_over = self.is_test();
        self.lines().take_while(move |(_, line)| {
            is_over |= line.trim_start().starts_with("#[cfg(test)]");
            !is_over
        })
    }

    /// Like [`Source::code`], without comments.
    fn statements(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// How a violation on this line is listed.
    fn at(&self, number: usize, line: &str) -> String {
        format!("{}:{number}: {}", self.path, line.trim())
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// Whether the module must do no I/O and read no clock.
    fn is_pure(&self) -> bool {
        self.is_in("shared/src/") || self.is_in("agent/src/agent")
    }

    /// Whether the module may contain `unsafe`.
    fn is_sys(&self) -> bool {
        self.is_in("agent/src/sys") || self.is_in("host/src/sys")
    }
}

/// All files of the project with one of these endings.
fn sources(endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![top()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a folder entry").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or_default();
            if path.is_dir() {
                if !matches!(name, ".git" | "target" | "corpus" | "artifacts") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(top()).expect("below the top");
                found.push(Source {
                    path: relative.to_str().expect("a UTF-8 path").to_owned(),
                    text: fs::read_to_string(&path).expect("a UTF-8 file"),
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

/// Fails with the violations of a rule, one to a line.
#[track_caller]
fn check(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n{}", violations.join("\n"));
}

/// The text of a file of the project.
fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).expect("a UTF-8 file")
}
