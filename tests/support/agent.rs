//! The agent as an ordinary process on a Unix socket.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use shared::message::{Fail, FailCode, Message};
use tempfile::TempDir;

use crate::DEADLINE;
use crate::client::Client;
use crate::process::{Finished, Running, run, signal, status_number};
use crate::{program, raise_descriptor_limit};

/// A running agent. It is killed when dropped, and its log is printed when the test has failed.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    child: Child,
}

impl Agent {
    /// Starts an agent and waits until it answers a probe.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts an agent with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// Starts an agent with more arguments and variables.
    pub fn start_in(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program("guest-agent"));
        command.envs(variables.iter().copied());
        Self::start_through(command, arguments)
    }

    /// Starts an agent that has had no child when it answers.
    pub fn start_unproven(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program("guest-agent"));
        command.envs(variables.iter().copied());
        let agent = Self::spawn(command, arguments);
        let probe = ["probe", "--depth", "listener", "--timeout", "30s"];
        let probe = agent.host_tool(probe, []);
        assert_eq!(probe.code(), 0, "the agent does not answer: {probe}");
        agent
    }

    /// Starts an agent through a program that executes it: its last arguments are the agent and the
    /// agent's arguments.
    pub fn start_through(command: Command, arguments: &[&str]) -> Self {
        let agent = Self::spawn(command, arguments);
        agent.await_answer();
        agent
    }

    fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        raise_descriptor_limit();
        let folder = TempDir::new().expect("a temporary folder");
        command.arg("--listen").arg(listen_at(folder.path()));
        command.arg("--unprivileged").args(arguments);
        let child = start(&mut command, folder.path());
        Self { folder, child }
    }

    /// Kills the agent, and starts another one at the same address.
    pub fn replace(&mut self) {
        self.kill();
        let mut command = Command::new(program("guest-agent"));
        command.arg("--listen").arg(listen_at(self.folder.path()));
        command.arg("--unprivileged");
        self.child = start(&mut command, self.folder.path());
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("the agent can be killed");
        self.wait();
    }

    /// The probe itself retries until the socket is there.
    pub fn await_answer(&self) {
        let probe = self.host_tool(["probe", "--timeout", "30s"], []);
        assert_eq!(probe.code(), 0, "the agent does not answer: {probe}");
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// A folder that lasts as long as the agent.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// A raw connection that has said HELLO and heard the answer.
    pub fn greet(&self) -> Client {
        let mut client = self.connect();
        client.greet();
        client
    }

    /// Sends a request over a connection of its own, and expects a FAIL with this code.
    #[track_caller]
    pub fn refuses(&self, message: &Message, code: FailCode) -> Fail {
        self.greet().ask_in_vain(message, code)
    }

    /// Runs `host-tool COMMAND… --unix SOCKET [-- ARGV…]` to its end.
    #[track_caller]
    pub fn host_tool<const N: usize, const M: usize>(
        &self,
        command: [&str; N],
        argv: [&str; M],
    ) -> Finished {
        run(&mut self.host_tool_command(command, argv))
    }

    /// The same command, for tests that start it themselves.
    pub fn host_tool_command<A: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = A>,
        argv: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut tool = Command::new(program("host-tool"));
        tool.args(command).arg("--unix").arg(self.socket());
        let mut argv = argv.into_iter().peekable();
        if argv.peek().is_some() {
            tool.arg("--").args(argv);
        }
        tool
    }

    /// The same command, started.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = A>,
        argv: impl IntoIterator<Item = A>,
    ) -> Running {
        Running::start(&mut self.host_tool_command(command, argv))
    }

    /// Runs `host-tool exec -- ARGV…` to its end.
    #[track_caller]
    pub fn exec<const N: usize>(&self, argv: [&str; N]) -> Finished {
        self.host_tool(["exec", "--timeout", "60s"], argv)
    }

    /// Open descriptors of the agent while no other connection than the asking one is open.
    pub fn settled_fd_count(&self) -> u32 {
        let started = Instant::now();
        let mut client = self.greet();
        loop {
            // With each answer the agent's loop completes a turn, in which it notices closed
            // connections.
            let Message::Info(info) = client.ask(&Message::InfoRequest) else {
                panic!("no INFO");
            };
            if info.connections == 1 {
                return info.fds;
            }
            assert!(
                started.elapsed() < DEADLINE,
                "connections stay open: {info:?}"
            );
        }
    }

    /// The same, when no session runs either.
    pub fn idle_fd_count(&self) -> u32 {
        let started = Instant::now();
        let mut client = self.greet();
        while client.info().sessions > 0 {
            let (sessions, _) = client.sessions();
            assert!(
                started.elapsed() < DEADLINE,
                "sessions still run: {sessions:?}"
            );
        }
        drop(client);
        self.settled_fd_count()
    }

    /// A number from `/proc/PID/status`.
    pub fn status(&self, name: &str) -> u64 {
        status_number(self.pid(), name)
    }

    /// Children of the agent that have ended and were not reaped.
    pub fn zombie_count(&self) -> usize {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(path).expect("the agent runs");
        let is_zombie = |pid: &&str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains("State:\tZ")
        };
        children.split_whitespace().filter(is_zombie).count()
    }

    /// Waits until all ended children are reaped.
    pub fn reaps_all(&self) {
        let started = Instant::now();
        let mut client = self.greet();
        while self.zombie_count() > 0 {
            // With each answer the agent's loop completes a turn, in which it reaps ended children.
            client.info();
            assert!(started.elapsed() < DEADLINE, "a zombie is left");
        }
    }

    /// Waits until the agent sleeps. After an answer was read, this means that the turn of that
    /// answer is over, and that the next input has to wake the agent.
    pub fn await_idle(&self) {
        let path = format!("/proc/{}/status", self.pid());
        crate::await_true("the agent sleeps", || {
            let status = fs::read_to_string(&path).expect("the agent runs");
            status.contains("State:\tS")
        });
    }

    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("the agent can be waited for")
    }
}

fn listen_at(folder: &Path) -> String {
    format!("unix:{}", folder.join("agent.sock").display())
}

fn start(command: &mut Command, folder: &Path) -> Child {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("a log file");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .expect("the agent starts")
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("log of the agent:\n{log}");
        }
    }
}
