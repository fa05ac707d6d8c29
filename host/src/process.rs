//! Naming a process for longer than one command runs.
//!
//! A process id alone is given to somebody else some time after its process has ended. With the
//! start time beside it, it is not taken for the other one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};

use crate::json::{JsonError, Object};
use crate::sys::pidfd;

/// A process of this boot of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// When it was started, in clock ticks since the boot (`proc_pid_stat(5)`).
    pub start_time: u64,
}

impl ProcessId {
    /// Names the process that has `pid` now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let start_time = parse_start_time(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
        Ok(Self { pid, start_time })
    }

    /// Names a child that this process has not waited for.
    pub fn of_child(pid: u32) -> io::Result<Self> {
        Self::of(i32::try_from(pid).map_err(io::Error::other)?)
    }

    /// A pidfd of this very process; `None` when it is gone. A process that has ended but was not
    /// yet waited for still has one, which polls readable.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match pidfd::open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The number may have been given away before the open. Now that it is held it cannot be.
        match Self::of(self.pid) {
            Ok(found) if found == self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For files and records.
    #[must_use]
    pub fn to_value(self) -> Value {
        json!({ "pid": self.pid, "start_time": self.start_time })
    }

    /// Reads what [`to_value`](Self::to_value) wrote.
    pub fn from_object(object: &Object) -> Result<Self, JsonError> {
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

/// The 22nd field. The second one is the program's name in parentheses, which may hold anything,
/// parentheses and blanks included.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let nobody = ProcessId {
            pid: i32::MAX,
            start_time: 1,
        };
        assert!(nobody.open().unwrap().is_none());
    }

    #[test]
    fn it_is_read_back_from_a_file() {
        let ours = ProcessId {
            pid: 17,
            start_time: 4711,
        };
        let bytes = ours.to_value().to_string();
        let object = Object::parse("f".as_ref(), bytes.as_bytes()).unwrap();
        assert_eq!(ProcessId::from_object(&object).unwrap(), ours);
        let object = Object::parse("f".as_ref(), br#"{"pid":0,"start_time":1}"#).unwrap();
        assert!(ProcessId::from_object(&object).is_err());
    }
}
