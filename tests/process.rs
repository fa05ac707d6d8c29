//! Child processes with a deadline and their output kept.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::DEADLINE;

/// A finished process.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// The exit code, or 128 and the signal as a shell says it.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().unwrap_or(0);
        self.status.code().unwrap_or(128 + signal)
    }

    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The one JSON object on standard output.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let lines: Vec<&str> = std::str::from_utf8(&self.stdout)
            .expect("UTF-8")
            .lines()
            .collect();
        let [line] = lines[..] else {
            panic!("not one line of JSON: {self}")
        };
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Fails unless the exit code is `code`; gives the process back for more.
    #[track_caller]
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Fails unless standard error holds `text`; gives the process back for more.
    #[track_caller]
    #[must_use]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.err().contains(text), "no {text:?} in: {self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clip = |text: String| text.chars().take(4000).collect::<String>();
        let (out, err) = (clip(self.out()), clip(self.err()));
        write!(f, "{}\nstdout: {out}\nstderr: {err}", self.status)
    }
}

/// Runs `command` to its end, or kills it after [`DEADLINE`] and fails.
///
/// # Panics
///
/// When it cannot be started or does not end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_with_input(command, b"")
}

/// Runs `command` with `input` as its standard input.
///
/// # Panics
///
/// When it cannot be started or does not end.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Finished {
    let text = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
    finish(child, input.to_vec(), &text, DEADLINE * 3)
}

/// Feeds `input` to a child with three pipes, collects what it writes, and waits for its end.
///
/// # Panics
///
/// When it has not ended after `limit`.
#[track_caller]
pub fn finish(mut child: Child, input: Vec<u8>, text: &str, limit: Duration) -> Finished {
    let mut stdin = child.stdin.take().expect("a piped stdin");
    // A child that does not read its input is no failure of the test.
    let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("a piped stdout"));
    let stderr = collect(child.stderr.take().expect("a piped stderr"));
    let pid = child.id();
    let (ended, end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait()));
    let status = end.recv_timeout(limit).unwrap_or_else(|_| {
        signal(pid, nix::sys::signal::Signal::SIGKILL);
        let err = String::from_utf8_lossy(&stderr.recv().unwrap_or_default()).into_owned();
        panic!("{text} did not end within {limit:?}; stderr: {err}");
    });
    drop((feeder, waiter));
    Finished {
        status: status.expect("a child that can be waited for"),
        stdout: stdout.recv().unwrap_or_default(),
        stderr: stderr.recv().unwrap_or_default(),
    }
}

/// Sends a signal to a process that may have ended.
pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    // ESRCH is no failure: that the process is gone is what most callers want.
    let _ = nix::sys::signal::kill(pid, signal);
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        drop(sender.send(bytes));
    });
    receiver
}
