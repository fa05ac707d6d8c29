//! Every target without libFuzzer, on any toolchain.
//!
//! Goal: known defects are found again, and plain new ones at once. Method: the committed corpus,
//! and then a fixed number of changed inputs from a seed, which is printed; `SEED=n` sets another
//! one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::Instant;

use fuzz::mutator::mutated;
use fuzz::{TARGETS, Target};
use simulation::random::Random;

/// Most files of one target's corpus, and most bytes of all together, since they are replayed often
/// and are part of every checkout.
const FILES_MAX: usize = 80;
const CORPUS_LEN_MAX: usize = 200 * 1024;

/// Most memory, in KiB, that the inputs of one target may ask for, besides what the tests beside it
/// take. Believing a length in the input asks for gigabytes.
const MEMORY_KIB_MAX: u64 = 512 * 1024;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The names in a folder.
fn names(folder: &PathBuf) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    names.collect::<Result<_, _>>().expect("names in UTF-8")
}

/// The committed inputs of a target, with their names.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = folder("corpus").join(target.name);
    let read = |name: String| {
        let bytes = fs::read(folder.join(&name)).expect("a readable file");
        (name, bytes)
    };
    names(&folder).into_iter().map(read).collect()
}

/// Runs a target on an input. Prints the input if it fails.
fn holds(target: &Target, input: &[u8], what: fmt::Arguments<'_>) -> bool {
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    if result.is_err() {
        let name = target.name;
        println!("{name} fails on {what}: b\"{}\"", input.escape_ascii());
    }
    result.is_ok()
}

/// Runs a target on the committed inputs, and on changed ones.
fn replay(target: &Target, seed: u64, number: u32) -> bool {
    let (names, inputs): (Vec<_>, Vec<_>) = corpus(target).into_iter().unzip();
    assert!(!inputs.is_empty(), "{} has no corpus", target.name);
    let mut committed = names.iter().zip(&inputs);
    let mut random = Random::new(seed, number);
    committed.all(|(name, input)| holds(target, input, format_args!("{name}")))
        && (0..target.rounds).all(|round| {
            let input = mutated(&inputs, &mut random, target.len_max);
            holds(target, &input, format_args!("input {round} of SEED={seed}"))
        })
}

/// The most memory that this process has asked for so far, in KiB, used or not.
fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process knows itself");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let peak = peak.and_then(|text| text.trim().strip_suffix(" kB"));
    peak.and_then(|text| text.parse().ok())
        .expect("a number of kB")
}

#[test]
fn smoke() {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => 1,
    };
    println!("SEED={seed}");
    let mut failed = Vec::new();
    for (number, target) in (0..).zip(TARGETS) {
        let started_at = Instant::now();
        let memory_before = memory_kib();
        if !replay(target, seed, number) {
            failed.push(target.name);
        }
        let (name, memory) = (target.name, memory_kib() - memory_before);
        assert!(memory <= MEMORY_KIB_MAX, "{name} took {memory} KiB");
        println!(
            "{name}: {} inputs, {:.1?}",
            target.rounds,
            started_at.elapsed()
        );
    }
    assert!(failed.is_empty(), "these fail, as said above: {failed:?}");
}

/// A target that is missing in one of the lists would not be fuzzed, unnoticed.
#[test]
fn every_target_has_a_corpus_and_a_program() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|it| it.name.to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len(), "a name is used twice");
    assert_eq!(names(&folder("corpus")), targets);
    let programs = names(&folder("libfuzzer/targets")).into_iter();
    let programs = programs.map(|name| name.trim_end_matches(".rs").to_owned());
    assert_eq!(programs.collect::<BTreeSet<_>>(), targets);
    let manifest = fs::read_to_string(folder("libfuzzer/Cargo.toml")).expect("a manifest");
    for target in targets {
        let path = format!("path = \"targets/{target}.rs\"");
        assert!(manifest.contains(&path), "no program {target}");
    }
}

#[test]
fn the_corpus_is_small() {
    let mut len = 0;
    for target in TARGETS {
        let corpus = corpus(target);
        assert!(
            corpus.len() <= FILES_MAX,
            "{}: {}",
            target.name,
            corpus.len()
        );
        len += corpus.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    }
    assert!(len <= CORPUS_LEN_MAX, "{len} bytes");
}
