//! The process that stays with a VM: parent of the VMM, for as long as that lives.
//!
//! ```text
//! host-tool boot ──orders──▶ supervisor ──spawns, reaps──▶ VMM
//!                ◀─reports──
//! ```
//!
//! Until the command that started it has said [`Order::Keep`], the VM is provisional: when that
//! command ends, in whatever way, the VM goes with it and leaves nothing behind. Afterwards the
//! supervisor only waits, writes down how the VMM ended, and unlinks the sockets. A thread of it,
//! the [`scribe`], writes the workload's output down, and another runs the [`health`] check. It is
//! never in the way of `exec`, `probe` or `snapshot`, and the VMM survives its death: all that is
//! lost then is the record of the end.
//!
//! Invariants:
//! - `supervisor.lock` is held from before the VMM is spawned until its end is written down.
//! - Nothing here waits without the VMM's pidfd in the set.

pub(crate) mod client;
pub(crate) mod console;
pub(crate) mod follow;
pub(crate) mod health;
pub(crate) mod link;
pub(crate) mod scribe;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeSpec;
use nix::unistd::{dup2_stdin, dup2_stdout, read, setsid};

use self::console::Console;
use self::health::Nurse;
use self::link::{Order, Report};
use self::scribe::Scribe;
use crate::failpoint::{self, Point, reach};
use crate::os::clock::unix_ms;
use crate::os::files;
use crate::os::process::ProcessId;
use crate::report::log::start_log;
use crate::sys::child::with_empty_signal_mask;
use crate::sys::{inherited, pidfd};
use crate::vmdir::launch_file::LaunchFile;
use crate::vmdir::state::ExitRecord;
use crate::vmdir::{CONSOLE_LOG, Lock, VmDir};
use crate::vmm::VMM_LOG;

/// The command's name. It is not for users, and not in any help.
pub(crate) const COMMAND: &str = "supervise";

/// How long a VMM that was asked to end is given before it is killed.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// How long a thread may take to write its last word down, once the VMM has been reaped.
const THREAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the supervisor of the VM directory that is its one argument. Standard input is the stream
/// of orders, standard output that of reports, standard error the log.
#[must_use]
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    // Nothing was opened yet, so that what is open was inherited.
    let closed = inherited::close_inherited();
    start_log(false, 1);
    if let Err(error) = closed {
        log::warn!("cannot close inherited descriptors: {error}");
    }
    let [dir] = arguments else {
        log::error!("this command is for host-tool itself");
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
            report(&Report::Failed {
                text: error.to_string(),
            });
            ExitCode::FAILURE
        }
    }
}

/// What ties the VM to the command that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// The VM is not usable yet: it ends with the command, without a trace.
    Provisional,
    /// The VM is in use and ends with the command, which is its foreground.
    Attached,
    /// The command is done.
    Kept,
}

#[derive(Debug)]
struct Supervisor {
    dir: VmDir,
    /// Never dropped: the kernel releases it in the last steps of this process, so that whoever
    /// gets it knows that there is no supervisor any more.
    _lock: ManuallyDrop<Lock>,
    signals: SignalFd,
    vmm: Child,
    pidfd: OwnedFd,
    console: Console,
    tie: Tie,
    /// Writes the workload's output down, once the VM is in use.
    scribe: Option<Scribe>,
    /// Runs the health check, once the VM is in use.
    nurse: Option<Nurse>,
    /// Nobody will look at the directory: it goes with the VMM.
    removes_dir: bool,
    /// The VMM was asked to end and is killed then.
    kill_at: Option<Instant>,
}

impl Supervisor {
    fn start(path: PathBuf) -> io::Result<Self> {
        // A session of its own: neither a closed terminal nor a Ctrl-C there is for the VM. It
        // fails for a leader of a process group, which has that already.
        let _ = setsid();
        umask(Mode::from_bits_truncate(0o077));
        std::env::set_current_dir(&path)?;
        reach(Point::SupervisorStarted)?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|n| n.parse().ok());
        let name = name.ok_or_else(|| io::Error::other("the VM directory's name is no VM's"))?;
        let dir = VmDir::new(name, path);
        let lock = dir
            .supervisor_lock(Instant::now())
            .map_err(io::Error::other)?;
        let lock = lock.ok_or_else(|| io::Error::other("the VM has a supervisor already"))?;
        let lock = ManuallyDrop::new(lock);

        reach(Point::SupervisorLocked)?;

        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

        let console_log = append(&dir.file(CONSOLE_LOG))?;
        let console = Console::watch(&dir.file(CONSOLE_LOG))?;
        let mut vmm = spawn(&dir, console_log)?;
        let pidfd = hold(&vmm).inspect_err(|_| {
            // Nobody else would: the command may not know of it.
            let _ = vmm.kill().and_then(|()| vmm.wait());
        })?;
        Ok(Self {
            dir,
            _lock: lock,
            signals,
            vmm,
            pidfd,
            console,
            tie: Tie::Provisional,
            scribe: None,
            nurse: None,
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
        if let Some(scribe) = self.scribe.take() {
            scribe.join(THREAD_TIMEOUT);
        }
        if let Some(nurse) = self.nurse.take() {
            nurse.join(THREAD_TIMEOUT);
        }
        let written = self.dir.write_exit(&exit).map_err(io::Error::other);
        reach(Point::SupervisorRecorded)?;
        if self.removes_dir {
            reach(Point::SupervisorRemove)?;
            return self.dir.remove().map_err(io::Error::other);
        }
        if self.tie != Tie::Kept {
            report(&Report::Ended { exit });
        }
        written
    }

    /// Waits for the next event and handles it. `true` once the VMM has ended.
    fn wait(&mut self) -> io::Result<bool> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        // A descriptor that is not wanted now is replaced by one that is there anyway.
        let spare = self.pidfd.as_fd();
        let has_command = self.tie != Tie::Kept;
        let orders: BorrowedFd<'_> = if has_command { stdin.as_fd() } else { spare };
        fds.push(PollFd::new(orders, PollFlags::POLLIN));
        let now = Instant::now();
        let console = self.console.wanted(now);
        fds.push(PollFd::new(console.unwrap_or(spare), PollFlags::POLLIN));

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
        let is_ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let has_output = console.is_some() && is_ready[3];
        drop(fds);
        if is_ready[0] {
            return Ok(true);
        }
        if is_ready[1] {
            self.handle_signals()?;
        }
        if is_ready[2] && has_command {
            self.handle_order()?;
        }
        if has_output {
            self.console.handle_output(Instant::now());
        }
        if self
            .kill_at
            .is_some_and(|kill_at| Instant::now() >= kill_at)
        {
            log::warn!("the VMM did not end by itself");
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
                Some(Order::Keep) => {
                    self.tie = Tie::Kept;
                    reach(Point::SupervisorKept)?;
                    self.start_threads();
                    if let Err(error) = close_link() {
                        log::warn!("cannot let go of the command's pipes: {error}");
                    }
                }
                Some(Order::Attach) => {
                    self.tie = Tie::Attached;
                    reach(Point::SupervisorKept)?;
                    self.start_threads();
                }
                Some(Order::End) => self.kill(),
                None => log::warn!("unknown order {}", byte[0]),
            },
            Err(Errno::EINTR) => {}
            // The command is gone, and with it the pipe's other end.
            Ok(_) | Err(_) => match self.tie {
                Tie::Provisional => {
                    log::info!("the command ended before the VM was of use");
                    self.removes_dir = true;
                    self.tie = Tie::Kept;
                    self.kill();
                }
                Tie::Attached | Tie::Kept => {
                    self.tie = Tie::Kept;
                    self.terminate();
                }
            },
        }
        Ok(())
    }

    fn start_threads(&mut self) {
        let dir = &self.dir;
        self.scribe.get_or_insert_with(|| Scribe::start(dir));
        self.nurse = self.nurse.take().or_else(|| Nurse::start(dir));
    }

    /// Asks the VMM to end, and sets the time when it is killed.
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
        // Not waited for yet, so that the process is still the one that was spawned.
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
        .stderr(append(&dir.file(VMM_LOG))?);
    with_empty_signal_mask(&mut command)
        .spawn()
        .map_err(|error| {
            let text = format!("cannot start {}: {error}", launch.program.display());
            io::Error::new(error.kind(), text)
        })
}

/// Takes hold of the VMM, and tells the command of it.
fn hold(vmm: &Child) -> io::Result<OwnedFd> {
    reach(Point::SupervisorSpawned)?;
    let id = ProcessId::of_child(vmm.id())?;
    let pidfd = pidfd::open(id.pid)?;
    report(&Report::Spawned { process: id });
    log::info!("the VMM is process {}", id.pid);
    reach(Point::SupervisorReported)?;
    Ok(pidfd)
}

fn append(path: &std::path::Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    files::open_regular(path, &mut options)
}

/// Tells the command something. A command that is gone needs no report.
fn report(report: &Report) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", report.to_value()).and_then(|()| stdout.flush());
}

/// Lets go of the two pipes to the command, which may be waiting for their end.
fn close_link() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}
