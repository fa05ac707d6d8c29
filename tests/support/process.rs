//! Child processes with a deadline and their output kept.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

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
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().unwrap_or(0);
        self.status.code().unwrap_or(128 + signal)
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The one JSON object on standard output.
    #[track_caller]
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
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Fails unless standard error holds `text`; gives the process back for more.
    #[track_caller]
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
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_with_input(command, b"")
}

/// Runs a program that may not be there, and gives its output if it is.
pub fn try_run(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(program).args(arguments).output();
    output.ok().map(|output| output.stdout)
}

/// Runs `command` with `input` as its standard input.
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

/// Feeds `input` to a child with pipes for its output, collects what it writes, and waits for its
/// end.
#[track_caller]
pub fn finish(mut child: Child, input: Vec<u8>, text: &str, limit: Duration) -> Finished {
    // Whoever started the child may have closed its input already.
    let stdin = child.stdin.take();
    // A child that does not read its input is no failure of the test.
    let feed = move || stdin.map(|mut stdin| stdin.write_all(&input));
    let feeder = thread::spawn(feed);
    // And its output too.
    let stdout = child.stdout.take().map(collect);
    let stderr = collect(child.stderr.take().expect("a piped stderr"));
    let pid = child.id();
    let (ended, end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait()));
    let status = end.recv_timeout(limit).unwrap_or_else(|_| {
        signal(pid, Signal::SIGKILL);
        let err = String::from_utf8_lossy(&stderr.recv().unwrap_or_default()).into_owned();
        panic!("{text} did not end within {limit:?}; stderr: {err}");
    });
    drop((feeder, waiter));
    Finished {
        status: status.expect("a child that can be waited for"),
        stdout: stdout
            .and_then(|stdout| stdout.recv().ok())
            .unwrap_or_default(),
        stderr: stderr.recv().unwrap_or_default(),
    }
}

/// A process that runs beside the test, with a pipe for each stream. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    /// Taken by [`Running::finish`].
    child: Option<Child>,
    /// None once its end was reached for.
    stdin: Option<ChildStdin>,
    text: String,
}

impl Running {
    /// Starts it.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::start_as_it_is(command)
    }

    /// Starts it with the standard input that it was given, and pipes for its output.
    #[track_caller]
    pub fn start_as_it_is(command: &mut Command) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
        Self {
            stdin: child.stdin.take(),
            child: Some(child),
            text,
        }
    }

    const fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("not finished")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not finished").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Writes to its standard input.
    #[track_caller]
    pub fn say(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("an open standard input");
        stdin.write_all(bytes).expect("it reads its input");
    }

    /// Gives its standard input away, to be written by another thread.
    #[track_caller]
    pub const fn take_input(&mut self) -> ChildStdin {
        self.stdin.take().expect("an open standard input")
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next bytes of its standard output, at most `len`; none at its end.
    #[track_caller]
    pub fn read_some(&mut self, bytes: &mut [u8]) -> usize {
        let text = self.text.clone();
        let stdout = self.child().stdout.as_mut().expect("a piped stdout");
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(DEADLINE).expect("a short deadline");
        let count = poll(&mut fds, limit).expect("poll");
        assert_eq!(count, 1, "{text} writes nothing");
        stdout.read(bytes).expect("readable")
    }

    /// The next `len` bytes of its standard output, or what comes before its end.
    #[track_caller]
    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.read_some(&mut bytes[filled..]) {
                0 => break,
                count => filled += count,
            }
        }
        bytes.truncate(filled);
        bytes
    }

    /// The next line of its standard output, without its end.
    #[track_caller]
    pub fn read_line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.read(1)[..] {
                [] | [b'\n'] => return String::from_utf8_lossy(&line).into_owned(),
                [byte] => line.push(byte),
                _ => unreachable!("one byte was asked for"),
            }
        }
    }

    /// Goes away as the reader of its standard output.
    pub fn close_output(&mut self) {
        self.child().stdout = None;
    }

    /// A number from its `/proc/PID/status`.
    pub fn status(&self, name: &str) -> u64 {
        status_number(self.pid(), name)
    }

    /// Ends its standard input and waits for its end; what was read before is not repeated.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let child = self.child.take().expect("not finished");
        self.stdin = None;
        finish(child, Vec::new(), &self.text, DEADLINE * 3)
    }

    /// Waits for its end while its standard input stays open.
    #[track_caller]
    pub fn finish_with_open_input(mut self) -> Finished {
        let child = self.child.take().expect("not finished");
        finish(child, Vec::new(), &self.text, DEADLINE * 3)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A number from `/proc/PID/status`.
pub fn status_number(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .expect("a known line");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// Sends a signal to a process that may have ended.
pub fn signal(pid: u32, signal: Signal) {
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
