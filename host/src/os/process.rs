//! Identifies a process across commands, by its pid and start time.
//!
//! The kernel reuses pids. The start time tells the recorded process from a later one that has the
//! same pid.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use shared::json::{JsonError, Object};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::deadline::Watch;
use crate::os::dir;
use crate::sys::pidfd;

/// How long a VMM may take to end after SIGKILL.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A process of this boot of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since the boot (`proc_pid_stat(5)`).
    pub(crate) start_time: u64,
}

impl ProcessId {
    /// Identifies the process that has `pid` now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let start_time = parse_start_time(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
        Ok(Self { pid, start_time })
    }

    /// Identifies a child that this process has not waited for yet, so that `pid` is still its own.
    pub(crate) fn of_child(pid: u32) -> io::Result<Self> {
        Self::of(i32::try_from(pid).map_err(io::Error::other)?)
    }

    /// Opens a pidfd of this process; `None` if it is gone. A zombie still has a pidfd, which polls
    /// readable.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd::open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The pid may have been reused before the open. If the process that has it now is the
        // recorded one, it also had it at the open.
        match Self::of(self.pid) {
            Ok(found) if found == self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As it stands in files and records.
    pub(crate) fn to_value(self) -> Value {
        json!({ "pid": self.pid, "start_time": self.start_time })
    }

    pub(crate) fn from_object(object: &Object) -> Result<Self, JsonError> {
        let pid: i32 = object.number("pid")?;
        if pid < 1 {
            return Err(object.error("pid", "more than zero"));
        }
        Ok(Self {
            pid,
            start_time: object.number("start_time")?,
        })
    }
}

/// A second descriptor of the same process.
pub(crate) fn copy_pidfd(pidfd: &OwnedFd) -> Result<OwnedFd, Failure> {
    let copy = pidfd.try_clone();
    copy.or_fail(Exit::Internal, || "cannot duplicate a pidfd".to_owned())
}

/// Pidfds of this user's processes that have `folder` as their working directory and `args` as
/// their last arguments. The folder alone is not enough: a user may have a shell in it.
///
/// Each pidfd is opened before its process is inspected. If the pid is reused in between, the wrong
/// process is inspected, but the pidfd refers to the one that has ended.
///
/// # Errors
///
/// If there is no such folder, or `/proc` cannot be listed.
pub(crate) fn find_in(folder: &Path, args: &[OsString]) -> io::Result<Vec<OwnedFd>> {
    let folder = fs::canonicalize(folder)?;
    let mut cmdline_end = Vec::new();
    for arg in args {
        cmdline_end.extend_from_slice(arg.as_bytes());
        cmdline_end.push(0);
    }
    if cmdline_end.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let proc = Path::new("/proc");
    for name in dir::names(proc)? {
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(Ok(pidfd)) = pid.map(pidfd::open)
            && is_started_in(&proc.join(name), &folder, &cmdline_end)
        {
            found.push(pidfd);
        }
    }
    Ok(found)
}

/// Whether the process at `process` in `/proc` is this user's, works in `folder`, and has a command
/// line that ends in `cmdline_end`. False for a process that ends meanwhile.
fn is_started_in(process: &Path, folder: &Path, cmdline_end: &[u8]) -> bool {
    let owner = fs::metadata(process).map(|found| found.uid());
    let cwd = fs::read_link(process.join("cwd"));
    let line = fs::read(process.join("cmdline"));
    // Only the end is compared: a script's command line starts with its interpreter.
    owner.is_ok_and(|owner| owner == geteuid().as_raw())
        && cwd.is_ok_and(|cwd| cwd == folder)
        && line.is_ok_and(|line| line.ends_with(cmdline_end))
}

/// Kills the VMM behind `process`, if it still runs, and waits until it has ended.
pub(crate) fn kill_process(process: &OwnedFd) -> Result<(), Failure> {
    send_signal(process, Signal::SIGKILL)?;
    if has_ended(process, KILL_TIMEOUT) {
        return Ok(());
    }
    let text = "the VMM does not end after SIGKILL";
    Err(Failure::new(Exit::Internal, text))
}

/// Sends a signal to the VMM behind `process`. A VMM that has ended is not an error.
pub(crate) fn send_signal(process: &OwnedFd, signal: Signal) -> Result<(), Failure> {
    match pidfd::send_signal(process.as_fd(), signal as i32) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.or_fail(Exit::Internal, || {
            format!("cannot send {signal} to the VMM")
        }),
    }
}

/// Whether the process ends within this time.
pub(crate) fn has_ended(process: &OwnedFd, timeout: Duration) -> bool {
    Watch::until(Instant::now() + timeout)
        .readable(process)
        .is_ok()
}

/// Field 22 of `proc_pid_stat(5)`. Field 2 is the program's name in parentheses, which may itself
/// contain parentheses and blanks: fields are counted from the last parenthesis.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn the_start_time_stands_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        for name in ["cat", "a b", ") S 1 (", "x\u{fffd}"] {
            let stat = format!("17 ({name}) {tail}");
            assert_eq!(parse_start_time(stat.as_bytes()), Some(4711), "{name}");
        }
        for bad in ["", "17 (cat", "17 (cat) S 1 2"] {
            assert_eq!(parse_start_time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn another_process_with_the_same_number_is_not_taken_for_it() {
        let ours = ProcessId::of_child(std::process::id()).unwrap();
        assert!(ours.open().unwrap().is_some());
        let earlier = ProcessId {
            start_time: ours.start_time - 1,
            ..ours
        };
        assert!(earlier.open().unwrap().is_none());
        let gone = ProcessId {
            pid: i32::MAX,
            start_time: 1,
        };
        assert!(gone.open().unwrap().is_none());
    }

    #[test]
    fn a_process_is_found_by_its_folder_and_its_arguments_together() {
        let (here, there) = (TempDir::new("find-here"), TempDir::new("find-there"));
        let start = |folder: &TempDir, args: &[&str]| {
            let mut command = Command::new("cat");
            command.args(args).current_dir(folder.path());
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            command.spawn().unwrap()
        };
        let args = ["-u", "-"].map(OsString::from);
        let mut left = start(&here, &["-u", "-"]);
        let others = [start(&there, &["-u", "-"]), start(&here, &["-"])];
        let found = find_in(here.path(), &args).unwrap();
        assert_eq!(found.len(), 1);
        kill_process(&found[0]).unwrap();
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert!(find_in(here.path(), &args).unwrap().is_empty());
        assert!(find_in(here.path(), &[]).unwrap().is_empty());
        for mut other in others {
            drop(other.stdin.take());
            assert!(other.wait().unwrap().success());
        }
        find_in(&here.path().join("gone"), &args).unwrap_err();
    }

    #[test]
    fn it_is_read_back_from_a_file() {
        let ours = ProcessId {
            pid: 17,
            start_time: 4711,
        };
        let bytes = ours.to_value().to_string();
        let object = Object::parse(bytes.as_bytes()).unwrap();
        assert_eq!(ProcessId::from_object(&object).unwrap(), ours);
        let object = Object::parse(br#"{"pid":0,"start_time":1}"#).unwrap();
        assert!(ProcessId::from_object(&object).is_err());
    }
}
