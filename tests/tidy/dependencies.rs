//! The crates that the programs may need.

use std::process::Command;

use tests::top;

use super::read;

/// Most crates in the agent's tree, direct and transitive, proc-macros included.
const AGENT_CRATES_MAX: usize = 25;

/// `cargo tree` for one package, one crate to a line.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}", "--package", package])
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
    let count = crates.len() - 1;
    assert!(count <= AGENT_CRATES_MAX, "{count} crates: {crates:#?}");
}

#[test]
fn shared_needs_json_and_log_only() {
    let manifest = read("shared/Cargo.toml");
    let (_, section) = manifest.split_once("[dependencies]\n").expect("a section");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ']).next());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    assert_eq!(names, ["serde_json", "log"]);
}
