//! Child processes, with a deadline and their output.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::DEADLINE;

#[derive(Debug, Clone)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Finished {
    /// The exit code, or 128 plus the signal, as a shell reports it.
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().unwrap_or(0);
        self.status.code().unwrap_or(128 + signal)
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as one JSON object on one line.
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

    /// Fails unless the exit code is `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Fails unless standard error contains `text`.
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

/// Runs `command` to its end; at the deadline, kills it and fails.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_with_input(command, b"")
}

/// Runs a program that may be missing; gives its output if it is there.
pub fn try_run(program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(program).args(arguments).output();
    output.ok().map(|output| output.stdout)
}

/// The same command with other descriptors: `redirections` is what a shell takes, such as `<&-`.
#[must_use]
pub fn redirected(command: &Command, redirections: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("exec \"$@\" {redirections}"), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

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

/// Writes `input` to a child, collects its output, and waits for its end, at most for `limit`.
#[track_caller]
pub fn finish(mut child: Child, input: Vec<u8>, text: &str, limit: Duration) -> Finished {
    // The caller may have closed the child's input already.
    let stdin = child.stdin.take();
    // A child may end without reading its input.
    let feed = move || stdin.map(|mut stdin| stdin.write_all(&input));
    let feeder = thread::spawn(feed);
    // Standard output need not be a pipe.
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

/// A process that runs beside the test, with a pipe for each stream. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    /// `None` after [`Running::finish`].
    child: Option<Child>,
    /// `None` once it was closed.
    stdin: Option<ChildStdin>,
    text: String,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::start_as_it_is(command)
    }

    /// Starts it with pipes for its output, and the standard input that `command` has.
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

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not finished").id()
    }

    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    #[track_caller]
    pub fn say(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("an open standard input");
        stdin.write_all(bytes).expect("it reads its input");
    }

    /// Gives the pipe of its standard input away, for another thread to write to.
    #[track_caller]
    pub const fn take_input(&mut self) -> ChildStdin {
        self.stdin.take().expect("an open standard input")
    }

    /// Closes its standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// At least one and at most `len` bytes of its standard output; none at its end.
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

    /// The next `len` bytes of its standard output, fewer at its end.
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

    /// The next line of its standard output, without the newline.
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

    /// Closes the reading end of its standard output.
    pub fn close_output(&mut self) {
        self.child().stdout = None;
    }

    /// A number from its `/proc/PID/status`.
    pub fn status(&self, name: &str) -> u64 {
        status_number(self.pid(), name)
    }

    pub fn is_over(&mut self) -> bool {
        self.child().try_wait().expect("a child").is_some()
    }

    /// Closes its standard input and waits for its end. Gives the output that was not read before.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(DEADLINE * 3)
    }

    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Finished {
        let child = self.child.take().expect("not finished");
        self.stdin = None;
        finish(child, Vec::new(), &self.text, limit)
    }

    /// The same, with its standard input left open.
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
    // ESRCH: the process is gone, as most callers want it to be.
    let _ = nix::sys::signal::kill(pid, signal);
}

/// The lines of a pipe as they come, until it is closed or the receiver is dropped.
pub fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(pipe).lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
    });
    receiver
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
