//! Heads, lengths and forbidden marks of files.

use super::{Source, check, rust_sources, sources};

/// Most lines of a file outside its tests. Aim at 400.
const FILE_LINES_MAX: usize = 600;

/// Most lines of a function, signature and braces included.
const FUNCTION_LINES_MAX: usize = 70;

/// Widest line, as rustfmt has it for code; this also holds for comments.
const LINE_WIDTH_MAX: usize = 100;

/// The lines of these files that contain one of `marks`.
fn lines_with(files: Vec<Source>, marks: &[&str], in_comments: bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in files {
        let lines = source.lines();
        let lines = lines.filter(|(_, line)| in_comments || !line.trim_start().starts_with("//"));
        let marked = lines.filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)));
        found.extend(marked.map(|(number, line)| source.at(number, line)));
    }
    found
}

#[test]
fn every_module_says_what_it_is() {
    let silent = |source: &Source| !source.text.starts_with("//!");
    let found = rust_sources().into_iter().filter(silent);
    let found = found.map(|source| source.path).collect();
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
        for (number, line) in source.lines() {
            let width = line.chars().count();
            // A long literal cannot be broken; rustfmt leaves it alone too.
            if width > LINE_WIDTH_MAX && !line.contains('"') && !line.contains("http") {
                found.push(format!("{}:{number}: {width} columns", source.path));
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
    // In two parts, so that this file does not contain them.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/."),
    ];
    let files = sources(&[".rs", ".sh", ".md", ".toml", ".yml"]);
    let found = lines_with(files, &words, true);
    check("no unfinished marks and no machine paths", found);
}

#[test]
fn tests_wait_for_events_and_not_for_time() {
    let found = lines_with(rust_sources(), &[concat!("slee", "p(")], false);
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
