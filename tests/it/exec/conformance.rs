//! Goal: `host-tool exec` behaves in every corner as a user expects of running a command, and each
//! difference from `podman exec` is stated. Method: a table of cases as data. Each case runs
//! through the built programs on a Unix socket, in groups that share an agent. The same data make
//! `docs/conformance.md`, which a test here compares; this writes it anew:
//!
//! ```console
//! $ TEST_WRITE_DOCUMENTS=1 cargo test --package tests --test it the_document_lists
//! ```
//!
//! What podman does was measured once, with the version that the document names. The tests do not
//! use podman.

mod case;
mod endings;
mod processes;
mod request;
mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tests::agent::Agent;

use case::Case;

/// Cases that share an agent, and a table of the document.
struct Group {
    title: &'static str,
    cases: fn() -> Vec<Case>,
}

/// Defines the groups in their order, and a test for each.
macro_rules! groups {
    ($($test:ident = $title:literal, $cases:path;)*) => {
        const GROUPS: &[Group] = &[$(Group { title: $title, cases: $cases },)*];

        $(
            #[test]
            fn $test() {
                check($cases);
            }
        )*
    };
}

groups! {
    exit_codes = "Exit codes", endings::exit_codes;
    signals_and_accounts = "Signals and accounts", endings::signals;
    programs_that_cannot_be_run = "Programs that cannot be run", endings::programs;
    search_and_place = "Where programs are looked for and run", endings::search;
    arguments = "Arguments", request::arguments;
    environment = "Environment", request::environment;
    folder_and_inheritance = "Working directory and inheritance", request::inheritance;
    users = "Users", request::users;
    input_as_it_is = "Standard input", streams::input_as_it_is;
    unread_input = "Standard input that is not read to its end", streams::unread_input;
    output_as_it_is = "Output", streams::output_as_it_is;
    output_and_its_readers = "Output, its writers and its readers", streams::output_and_its_readers;
    processes = "Processes", processes::processes;
    time_limits = "Time limits", processes::time_limits;
    signals_and_clients = "Signals and clients", processes::signals;
    detached_commands = "Detached commands", processes::detached_commands;
    terminals = "Terminals", processes::terminals;
}

/// Runs the cases of a group on one agent, and fails with the names of those that are wrong.
#[track_caller]
fn check(cases: fn() -> Vec<Case>) {
    let agent = Agent::start();
    let fds = agent.idle_fd_count();
    let mut wrong = Vec::new();
    for (number, case) in (1..).zip(cases()) {
        if let Some(reason) = case.missing() {
            tests::skip(&format!("conformance {:?}", case.name), reason);
            continue;
        }
        let checked = catch_unwind(AssertUnwindSafe(|| case.check(&agent, number)));
        // The panic's message is printed above.
        match checked.unwrap_or_else(|_| Err("it panicked".to_owned())) {
            Ok(()) => {}
            Err(why) => wrong.push(format!("== {}: {why}", case.name)),
        }
    }
    tests::assert_none("wrong", &wrong);
    assert_eq!(agent.idle_fd_count(), fds);
    agent.reaps_all();
}

#[test]
fn the_table_is_as_long_as_promised_and_names_each_case_once() {
    let mut names: Vec<_> = GROUPS.iter().flat_map(|group| (group.cases)()).collect();
    names.sort_by_key(|case| case.name);
    assert!(names.len() >= 80, "only {} cases", names.len());
    for two in names.windows(2) {
        assert_ne!(two[0].name, two[1].name);
    }
}

/// The generated part of the document.
fn tables() -> String {
    let mut text = String::new();
    for group in GROUPS {
        text += &format!("\n## {}\n\n", group.title);
        text += "| What | `host-tool exec …` | Exit code | `podman exec` |\n|---|---|---|---|\n";
        for case in (group.cases)() {
            text += &case.row();
        }
    }
    text
}

#[test]
fn the_document_lists_exactly_these_cases() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (introduction, listed) = document.split_at(document.find("\n## ").unwrap());
    let expected = tables();
    if std::env::var_os("TEST_WRITE_DOCUMENTS").is_some() {
        std::fs::write(&path, format!("{introduction}{expected}")).unwrap();
        return;
    }
    let is_listed = |line: &&str| listed.contains(*line);
    let missing: Vec<_> = expected.lines().filter(|line| !is_listed(line)).collect();
    assert!(missing.is_empty(), "not in the document: {missing:#?}");
    assert!(
        listed == expected,
        "the document lists more than there is, or in another order"
    );
}
