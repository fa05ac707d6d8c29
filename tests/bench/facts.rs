//! What a figure depends on: the machine, its kernel, and the versions of everything measured.

use std::fs;
use std::process::Command;

use tests::program;

use crate::peers::sbin;
use crate::results::Results;
use crate::{Failure, Options};

/// Programs and how to ask for their version: it is in the first line of output with a digit.
const VERSIONS: &[(&str, &[&str])] = &[
    ("socat", &["socat", "-V"]),
    ("dropbear", &["dropbear", "-V"]),
    ("qemu-ga", &["qemu-ga", "--version"]),
    ("busybox", &["busybox", "--help"]),
    ("firecracker", &["firecracker", "--version"]),
    ("qemu", &["qemu-system-x86_64", "--version"]),
    ("rustc", &["rustc", "--version"]),
    ("valgrind", &["valgrind", "--version"]),
];

/// Notes the running kernel under `name`.
pub(crate) fn note_kernel(name: &str, results: &mut Results) {
    let argv = ["uname", "--kernel-release", "--machine"];
    let kernel = first_line(&argv, |_| true).unwrap_or_else(|| "unknown".to_owned());
    results.facts.insert(name.to_owned(), kernel);
}

/// Notes the facts of this machine. The lab is another machine with its own facts.
pub(crate) fn note(options: &Options, results: &mut Results) -> Result<(), Failure> {
    note_kernel("kernel", results);
    let mut set = |name: &str, value: String| {
        results.facts.insert(name.to_owned(), value);
    };
    set("run", options.run().to_owned());
    let first_field = |file: &str, name: &str| -> Option<String> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let cpu = first_field("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    let cores = std::thread::available_parallelism()?;
    set("cpu", format!("{cpu}, {cores} cores"));
    set(
        "memory",
        first_field("/proc/meminfo", "MemTotal").unwrap_or_else(unknown),
    );
    for (name, argv) in [
        ("date", &["date", "--utc", "+%Y-%m-%d %H:%M UTC"][..]),
        ("commit", &["git", "describe", "--always", "--dirty"]),
    ] {
        set(name, first_line(argv, |_| true).unwrap_or_else(unknown));
    }
    let flags = first_field("/proc/cpuinfo", "flags").unwrap_or_default();
    let is_virtual = flags.split_whitespace().any(|flag| flag == "hypervisor");
    let kind = if is_virtual { "virtual" } else { "bare metal" };
    set("this machine", kind.to_owned());
    let load = fs::read_to_string("/proc/loadavg")?;
    let averages: Vec<&str> = load.split_whitespace().take(3).collect();
    set("load before the run", averages.join(" "));
    note_programs(results);
    Ok(())
}

/// The versions of the programs.
pub(crate) fn note_programs(results: &mut Results) {
    let mut set = |name: &str, value: Option<String>| {
        let known = value.map(|value| results.facts.insert(name.to_owned(), value));
        drop(known);
    };
    for name in ["guest-agent", "host-tool"] {
        let path = program(name);
        set(
            name,
            first_line(&[path.to_str().unwrap_or(name), "--version"], |_| true),
        );
    }
    for (name, argv) in VERSIONS {
        let has_digit = |line: &str| line.bytes().any(|byte| byte.is_ascii_digit());
        set(name, first_line(argv, has_digit));
    }
}

/// The first line that a program prints and that `is_wanted`.
fn first_line(argv: &[&str], is_wanted: fn(&str) -> bool) -> Option<String> {
    let (program, arguments) = argv.split_first()?;
    let output = Command::new(sbin(program)).args(arguments).output().ok()?;
    // Some programs print their version to standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text
        .lines()
        .find(|line| !line.is_empty() && is_wanted(line));
    line.map(|line| line.trim().replace('|', "\\|"))
}
