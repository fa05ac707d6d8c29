//! What may name what: purity, layers, one loop, one reaper, one thread, and where `unsafe` may be.

use super::modules::{circles, modules};
use super::{Source, check, rust_sources};

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

/// Crates without circles of imports.
const WITHOUT_CIRCLES: [&str; 3] = ["agent/src/", "host/src/", "shared/src/"];

/// The statements of these files that contain one of `words`.
fn mentions(files: impl Fn(&Source) -> bool, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in rust_sources().iter().filter(|source| files(source)) {
        for (number, line) in source.statements() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(source.at(number, line));
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

/// `nix::fcntl::Flock` and `std::fs::ReadDir` panic in their drop when the kernel refuses to unlock
/// or to close, which network file systems do. In process 1 that is a kernel panic.
#[test]
fn nothing_panics_when_it_is_dropped() {
    let programs = |source: &Source| source.is_in("agent/src/") || source.is_in("host/src/");
    let found = mentions(programs, &["Flock::", "Flock<", "read_dir("]);
    check("locks and folders are those of sys and os", found);
}

#[test]
fn unsafe_stays_in_sys_and_says_why_it_is_safe() {
    let mut found = Vec::new();
    for source in rust_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form));
            if !is_unsafe || source.is_in("tests/tidy/") {
                continue;
            }
            let above = &lines[number.saturating_sub(9)..number - 1];
            let says_why = above
                .iter()
                .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            if !source.is_sys() || !says_why {
                found.push(source.at(number, line));
            }
        }
    }
    check("unsafe is in sys, under a `SAFETY:` sentence", found);
}
