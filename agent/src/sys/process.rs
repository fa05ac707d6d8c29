//! Children and limits: the one place that waits, signals to process groups, and this process's own
//! limits.

#![expect(
    unsafe_code,
    reason = "wait4 has no safe wrapper, and prlimit takes raw structures"
)]

use std::io;

use super::check;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It returned or called exit.
    Code(u8),
    /// A signal killed it.
    Signal {
        /// Number of the signal.
        number: i32,
        /// Whether a core was dumped.
        core: bool,
    },
}

/// A child that has been waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    /// Its process id, free for reuse from now on.
    pub pid: i32,
    /// How it ended.
    pub ending: Ending,
    /// User time in µs.
    pub user_us: u64,
    /// System time in µs.
    pub system_us: u64,
    /// Peak resident memory in KiB.
    pub rss_max_kib: u64,
}

/// Waits for one child that has ended, without blocking. `None`: no other has.
///
/// This is the only wait in the program. A second one would race it: whoever came late would find
/// the child gone.
pub(crate) fn reap() -> io::Result<Option<Reaped>> {
    let mut status: libc::c_int = 0;
    // SAFETY: an all-zero `rusage` is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types that the call fills.
    let pid =
        match check(unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) }) {
            Ok(0) => return Ok(None),
            Ok(pid) => pid,
            // No child at all is the common end of the loop, not a failure.
            Err(err) if err.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(err) => return Err(err),
        };
    let ending = if libc::WIFSIGNALED(status) {
        Ending::Signal {
            number: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        }
    } else {
        // Without WUNTRACED and WCONTINUED the kernel reports no third kind. An exit status is one
        // byte.
        Ending::Code(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    };
    Ok(Some(Reaped {
        pid,
        ending,
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        rss_max_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    }))
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// Sends a signal to every process of a group, and to its leader wherever that is: one that has
/// joined another group must not be out of reach for it. `ESRCH`: there is nobody.
pub(crate) fn kill_group(leader: i32, signal: i32) -> io::Result<()> {
    // Zero and negative ids mean other sets of processes to `kill`, down to "everybody".
    if leader <= 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: `getpgid` takes an integer and no pointer.
    let group_of_leader = check(unsafe { libc::getpgid(leader) });
    // SAFETY: `kill` takes two integers and no pointer.
    let sent = check(unsafe { libc::kill(-leader, signal) });
    if group_of_leader.is_ok_and(|group| group != leader) {
        // SAFETY: as above.
        check(unsafe { libc::kill(leader, signal) })?;
        return Ok(());
    }
    sent.map(|_| ())
}

/// Sends a signal to every process but this one and the kernel's own. Only process 1 may ask for
/// that.
pub(crate) fn kill_all(signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two integers and no pointer.
    check(unsafe { libc::kill(-1, signal) })?;
    Ok(())
}

/// Makes this process the one that inherits orphans, as process 1 is by nature.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: this option takes an integer and no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) })?;
    Ok(())
}

/// Soft and hard limit on open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimit {
    /// What the kernel enforces.
    pub soft: libc::rlim_t,
    /// Up to where the soft limit may be raised.
    pub hard: libc::rlim_t,
}

/// Raises the limit on open descriptors to what is allowed and returns the limit found, for the
/// children.
pub(crate) fn raise_file_limit() -> io::Result<FileLimit> {
    let mut found = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live `rlimit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut found) })?;
    let raised = libc::rlimit {
        rlim_cur: found.rlim_max,
        rlim_max: found.rlim_max,
    };
    // SAFETY: the pointer is to a live `rlimit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
    Ok(FileLimit {
        soft: found.rlim_cur,
        hard: found.rlim_max,
    })
}

/// Niceness of the agent, whose share of a processor is nine times that of a process at 0
/// (kernel/sched/core.c, `sched_prio_to_weight`: 9548 and 1024).
const NICENESS: libc::c_int = -10;

/// Has the scheduler prefer this thread, the only one, and tells whether that worked: a guest with
/// more to do than its processors can is to answer all the same. A niceness that somebody chose is
/// kept.
pub(crate) fn raise_priority() -> bool {
    // SAFETY: integers only. -1 may be an error or a niceness, and neither is changed.
    let found = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: integers only.
    found == 0 && unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } == 0
}

/// Whether this process is the init of its machine or container.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1
}
