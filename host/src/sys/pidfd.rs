//! Pidfds: descriptors that refer to a process and never to a later one with the same pid.
#![expect(unsafe_code, reason = "neither std nor nix has a stable pidfd_open")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens a descriptor that polls readable once process `pid` has ended.
///
/// A pid read from a file may have been reused since. The caller compares the start time after this
/// call, not before it.
pub(crate) fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor (with close-on-exec set), and nothing
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind `pidfd`. Fails with ESRCH once it has ended.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_raw_fd();
    // SAFETY: the descriptor is open for the length of the borrow, and a null pointer for the
    // information makes pidfd_send_signal act like kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::os::deadline::{WaitError, Watch};

    #[test]
    fn polls_readable_when_the_process_has_ended() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("cat starts");
        let pidfd = open(i32::try_from(child.id()).unwrap()).unwrap();
        let wait = Watch::until(Instant::now()).readable(&pidfd);
        assert!(matches!(wait, Err(WaitError::Deadline)), "{wait:?}");

        drop(child.stdin.take());
        Watch::until(Instant::now() + Duration::from_secs(30))
            .readable(&pidfd)
            .unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn signals_reach_the_process_and_an_ended_one_is_an_error() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let pidfd = open(i32::try_from(child.id()).unwrap()).unwrap();
        send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        Watch::until(Instant::now() + Duration::from_secs(30))
            .readable(&pidfd)
            .unwrap();
        child.wait().unwrap();
        let err = send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_pid_without_a_process_is_an_error() {
        // The kernel's largest pid is far below this one.
        let err = open(i32::MAX).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ESRCH));
    }
}
