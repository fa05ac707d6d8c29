//! The process that stays with a VM: the parent of its VMM, until the VMM ends.
//!
//! ```text
//! host-tool boot ──orders──▶ supervisor ──spawns, reaps──▶ VMM
//!                ◀─reports──
//! ```
//!
//! Until the command that started it sends [`Order::Keep`] or [`Order::Attach`], the VM is
//! provisional: if that command ends, even by a signal, the supervisor removes the VM and its
//! directory. Afterwards the supervisor waits, records how the VMM ended, and unlinks the sockets.
//! One thread logs the workload's output ([`output_writer`]), another runs the [`health`] check.
//! `exec`, `probe` and `snapshot` do not need the supervisor, and the VMM survives its death; only
//! the record of the VMM's end, the log and the health check are lost then.
//!
//! Invariants:
//! - `supervisor.lock` is held from before the VMM is spawned until its end is recorded.
//! - The VMM's pidfd is part of every wait.

pub(crate) mod client;
pub(crate) mod console;
pub(crate) mod follow;
pub(crate) mod health;
pub(crate) mod link;
pub(crate) mod output_writer;
pub(crate) mod worker;
pub(crate) mod workload;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeSpec;
use nix::unistd::{read, setsid};

use self::console::Console;
use self::link::{Order, Report};
use self::worker::Worker;
use crate::failpoint::{self, Point, reach};
use crate::os::clock::unix_ms;
use crate::os::process::ProcessId;
use crate::os::signals::take_stop_signals;
use crate::report::log::start_log;
use crate::sys::child::with_empty_signal_mask;
use crate::sys::{inherited, pidfd};
use crate::vmdir::launch_file::LaunchFile;
use crate::vmdir::state::ExitRecord;
use crate::vmdir::{CONSOLE_LOG, Lock, VmDir};
use crate::vmm::VMM_LOG;

/// The name of the internal command. `--help` does not show it.
pub(crate) const COMMAND: &str = "supervise";

/// How long after SIGTERM the VMM is killed.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// How long the threads may take to write their last files, once the VMM was reaped.
const THREAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the supervisor of the VM directory that is the only argument. Standard input carries
/// orders, standard output reports, standard error the log.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    // We have opened nothing yet, so all open descriptors are inherited.
    let closed = inherited::close_inherited();
    start_log(false, 1);
    if let Err(error) = closed {
        log::warn!("cannot close inherited descriptors: {error}");
    }
    let [dir] = arguments else {
        log::error!("'{COMMAND}' is an internal command of host-tool");
        return ExitCode::from(2);
    };
    if let Err(failure) = failpoint::arm() {
        log::error!("{failure}");
        return ExitCode::from(2);
    }
    match Supervisor::start(PathBuf::from(dir)) {
        Ok(supervisor) => match supervisor.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::error!("{error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            log::error!("{error}");
            link::report(&Report::Failed {
                text: error.to_string(),
            });
            ExitCode::FAILURE
        }
    }
}

/// How the VM depends on the command that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownership {
    /// The VM is not released yet. It ends with the command, and its directory is removed.
    Provisional,
    /// The command runs the VM in the foreground. The VM ends with it.
    Attached,
    /// The VM outlives the command.
    Kept,
}

#[derive(Debug)]
struct Supervisor {
    dir: VmDir,
    /// Never dropped: the kernel releases it when this process exits, so a process that gets the
    /// lock knows that the supervisor is gone.
    _lock: ManuallyDrop<Lock>,
    signals: SignalFd,
    vmm: Child,
    pidfd: OwnedFd,
    console: Console,
    ownership: Ownership,
    /// Started when the VM is released.
    workers: Vec<Worker>,
    /// Remove the directory once the VMM has ended.
    removes_dir: bool,
    /// When to kill the VMM, which was sent SIGTERM.
    kill_at: Option<Instant>,
}

impl Supervisor {
    fn start(path: PathBuf) -> io::Result<Self> {
        // A session of its own: a closed terminal or a Ctrl-C there must not reach the VM. The call
        // fails for a leader of a process group, which does not share its parent's group anyway.
        let _ = setsid();
        umask(Mode::from_bits_truncate(0o077));
        std::env::set_current_dir(&path)?;
        reach(Point::SupervisorStarted)?;
        let dir = VmDir::open(&path).map_err(io::Error::other)?;
        let lock = dir
            .supervisor_lock(Instant::now())
            .map_err(io::Error::other)?;
        let lock = lock.ok_or_else(|| io::Error::other("the VM already has a supervisor"))?;
        let lock = ManuallyDrop::new(lock);
        reach(Point::SupervisorLocked)?;

        let signals = take_stop_signals()?;
        let console_log = dir.append_to(CONSOLE_LOG)?;
        let console = Console::watch(&dir.file(CONSOLE_LOG))?;
        let mut vmm = spawn(&dir, console_log)?;
        let pidfd = open_and_report(&vmm).inspect_err(|_| {
            // The command may not know of the VMM yet, so it could not kill it.
            let _ = vmm.kill().and_then(|()| vmm.wait());
        })?;
        Ok(Self {
            dir,
            _lock: lock,
            signals,
            vmm,
            pidfd,
            console,
            ownership: Ownership::Provisional,
            workers: Vec::new(),
            removes_dir: false,
            kill_at: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        while !self.wait()? {}
        let status = self.vmm.wait()?;
        let exit = ExitRecord {
            code: status.code(),
            signal: status.signal(),
            ended_ms: unix_ms(),
        };
        log::info!("the VMM ended: {exit}");
        reach(Point::SupervisorReaped)?;
        self.dir.remove_sockets();
        for worker in self.workers.drain(..) {
            worker.join(THREAD_TIMEOUT);
        }
        let written = self.dir.write_exit(&exit).map_err(io::Error::other);
        reach(Point::SupervisorRecorded)?;
        if self.removes_dir {
            reach(Point::SupervisorRemove)?;
            return self.dir.remove().map_err(io::Error::other);
        }
        if self.ownership != Ownership::Kept {
            link::report(&Report::Ended { exit });
        }
        written
    }

    /// Waits for the next event and handles it. `true` once the VMM has ended.
    fn wait(&mut self) -> io::Result<bool> {
        let stdin = io::stdin();
        let now = Instant::now();
        let pidfd = self.pidfd.as_fd();
        // The pidfd stands in for a descriptor that is not wanted now, so that indices are fixed.
        let has_command = self.ownership != Ownership::Kept;
        let orders: BorrowedFd<'_> = if has_command { stdin.as_fd() } else { pidfd };
        let console = self.console.wanted(now);
        let mut fds = [
            pidfd,
            self.signals.as_fd(),
            orders,
            console.unwrap_or(pidfd),
        ]
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN));

        let until = [self.kill_at, self.console.due(now)]
            .into_iter()
            .flatten()
            .min();
        let left = until.map(|until| until.saturating_duration_since(now));
        match ppoll(&mut fds, left.map(TimeSpec::from), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        // `None` stands for events that nix does not know; the reads below look for themselves.
        let [has_ended, has_signal, has_order, has_output] = fds.map(|fd| fd.any().unwrap_or(true));
        let has_output = console.is_some() && has_output;
        if has_ended {
            return Ok(true);
        }
        if has_signal {
            self.handle_signals()?;
        }
        if has_command && has_order {
            self.handle_order()?;
        }
        if has_output {
            self.console.handle_output(Instant::now());
        }
        if self
            .kill_at
            .is_some_and(|kill_at| Instant::now() >= kill_at)
        {
            log::warn!("killing the VMM: it has not ended after SIGTERM");
            self.kill();
        }
        Ok(false)
    }

    fn handle_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            log::info!("stopping the VMM: signal {}", signal.ssi_signo);
            self.terminate();
        }
        Ok(())
    }

    fn handle_order(&mut self) -> io::Result<()> {
        let mut byte = [0];
        // Not through the buffer of `Stdin`, in which poll(2) would not see a second order.
        match read(io::stdin(), &mut byte) {
            Ok(1) => match Order::from_byte(byte[0]) {
                Some(Order::Keep) => self.release(Ownership::Kept)?,
                Some(Order::Attach) => self.release(Ownership::Attached)?,
                Some(Order::End) => self.kill(),
                None => log::warn!("unknown order {}", byte[0]),
            },
            Err(Errno::EINTR) => {}
            // The command has ended, which closed its end of the pipe. Without orders the VM would
            // have no owner either.
            ended => {
                if let Err(errno) = ended {
                    log::warn!("cannot read the command's orders: {errno}");
                }
                if self.ownership == Ownership::Provisional {
                    log::info!("the command ended before it released the VM");
                    self.removes_dir = true;
                    self.kill();
                } else {
                    self.terminate();
                }
                self.ownership = Ownership::Kept;
            }
        }
        Ok(())
    }

    /// Publishes the state that the command has written, after which the VM is in use. When the
    /// command ends before that, the VM is one whose start was interrupted: its name is free for
    /// the next command, however late this process removes it.
    fn release(&mut self, ownership: Ownership) -> io::Result<()> {
        if let Err(error) = self.dir.publish_state() {
            let text = error.to_string();
            link::report(&Report::Failed { text });
            return Ok(());
        }
        self.ownership = ownership;
        link::report(&Report::Published);
        reach(Point::SupervisorKept)?;
        if self.workers.is_empty() {
            self.workers.push(output_writer::start(&self.dir));
            self.workers.extend(health::start(&self.dir));
        }
        if ownership == Ownership::Kept
            && let Err(error) = link::close()
        {
            log::warn!("cannot close the command's pipes: {error}");
        }
        Ok(())
    }

    /// Sends SIGTERM, and SIGKILL after a grace time.
    fn terminate(&mut self) {
        if self.kill_at.is_none() {
            self.kill_at = Some(Instant::now() + TERM_GRACE);
            self.signal(Signal::SIGTERM);
        }
    }

    fn kill(&mut self) {
        self.kill_at = None;
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd::send_signal(self.pidfd.as_fd(), signal as i32) {
            log::warn!("cannot send {signal} to the VMM: {error}");
        }
    }
}

/// Spawns the VMM that the directory's launch file describes.
fn spawn(dir: &VmDir, console_log: File) -> io::Result<Child> {
    let launch = LaunchFile::read(dir).map_err(io::Error::other)?.0;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.args)
        .stdin(Stdio::null())
        .stdout(console_log)
        .stderr(dir.append_to(VMM_LOG)?);
    with_empty_signal_mask(&mut command)
        .spawn()
        .map_err(|error| {
            let text = format!("cannot start {}: {error}", launch.program.display());
            io::Error::new(error.kind(), text)
        })
}

/// Opens the VMM's pidfd, and reports the VMM to the command.
fn open_and_report(vmm: &Child) -> io::Result<OwnedFd> {
    reach(Point::SupervisorSpawned)?;
    // The VMM was not waited for yet, so its pid cannot have been reused.
    let id = ProcessId::of_child(vmm.id())?;
    let pidfd = pidfd::open(id.pid)?;
    link::report(&Report::Spawned { process: id });
    log::info!("the VMM is process {}", id.pid);
    reach(Point::SupervisorReported)?;
    Ok(pidfd)
}
