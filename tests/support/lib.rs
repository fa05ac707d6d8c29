//! What the black-box tests share: the built programs as processes, a raw client that speaks the
//! protocol frame by frame, and stand-ins for what lies between the programs: a vsock device
//! ([`muxer`]), a proxy that cuts connections, and a fake VMM ([`host`]).
//!
//! Nothing here waits for time to pass: every wait is for an event, with [`DEADLINE`] as its end.
//! Whatever cannot be done, or does not happen before the deadline, panics: the test has failed.
#![expect(missing_docs, reason = "names say what most of these functions do")]

pub mod acceptor;
pub mod agent;
pub mod client;
pub mod fifo;
pub mod host;
pub mod muxer;
pub mod process;
pub mod proxy;
pub mod terminal;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How long any single event may take before the test that waits for it has failed. The emulated
/// lab is slow, so it is long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks `is_so` again and again, each time without a pause, until it is. For what reports no event.
#[track_caller]
pub fn await_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come: {what}");
        thread::yield_now();
    }
}

/// Path of a built program: the one that `TEST_HOST_TOOL` or `TEST_GUEST_AGENT` names, or else the
/// one in the folder above the test's own.
pub fn program(name: &str) -> PathBuf {
    let variable = format!("TEST_{}", name.to_uppercase().replace('-', "_"));
    if let Some(path) = std::env::var_os(&variable) {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/test");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace`",
        path.display()
    );
    path
}

/// Says that something cannot be tested here, so that the summary of `scripts/test.sh` lists it.
///
/// Written around libtest's capture, which hides the output of a test that passes.
pub fn skip(what: &str, why: &str) {
    let line = format!("\nskipped: process {what}: {why}\n");
    drop(std::io::stdout().write_all(line.as_bytes()));
}

/// Raises this process' limit of open files, and that of its children, as far as is allowed: some
/// tests hold a thousand connections on both sides.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If this fails, the tests that need more say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The top of the project.
pub fn top() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parent = manifest.parent();
    parent
        .expect("the tests are a folder of the project")
        .to_path_buf()
}

/// The release agent as `scripts/build-agent.sh` makes it, built if need be.
#[track_caller]
pub fn release_agent() -> PathBuf {
    let mut build = Command::new(top().join("scripts/build-agent.sh"));
    let built = process::run(build.current_dir(top()));
    PathBuf::from(built.exits(0).out().trim())
}

/// Fails with what was found, if anything was.
#[track_caller]
pub fn assert_none(what: &str, found: &[String]) {
    let (count, list) = (found.len(), found.join("\n"));
    assert!(found.is_empty(), "{count} {what}:\n{list}");
}

/// Runs `blocking` on a thread of its own, and fails unless it returns before [`DEADLINE`].
#[track_caller]
pub fn within_deadline<T: Send + 'static>(
    what: &str,
    blocking: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    // At the deadline the thread is left behind: the test has failed then.
    thread::spawn(move || drop(sender.send(blocking())));
    match receiver.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(error) => panic!("waited for {what} in vain: {error}"),
    }
}
