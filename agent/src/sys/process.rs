//! Waiting for children, signals to process groups, and limits of this process.

#![expect(
    unsafe_code,
    reason = "wait4 has no safe wrapper, and prlimit takes raw structures"
)]

use std::io;

use super::check;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It exited with this code.
    Code(u8),
    Signal {
        number: i32,
        /// Whether the kernel dumped core.
        core: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    /// Its former process id, which the kernel may reuse.
    pub pid: i32,
    pub ending: Ending,
    pub user_us: u64,
    pub system_us: u64,
    /// Peak resident memory.
    pub rss_max_kib: u64,
}

/// Reaps one child that has ended, without blocking; `None` if none of the children has. ECHILD if
/// this process has no children at all.
///
/// This is the program's only wait. A second one would race it, and the later one would miss the
/// child.
pub(crate) fn reap() -> io::Result<Option<Reaped>> {
    let mut status: libc::c_int = 0;
    // SAFETY: an all-zero `rusage` is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types that the call fills.
    let pid =
        match check(unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) }) {
            Ok(0) => return Ok(None),
            Ok(pid) => pid,
            Err(err) => return Err(err),
        };
    let ending = if libc::WIFSIGNALED(status) {
        Ending::Signal {
            number: libc::WTERMSIG(status),
            core: libc::WCOREDUMP(status),
        }
    } else {
        // Without WUNTRACED and WCONTINUED the kernel reports no other kind. An exit status is one
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

/// Sends a signal to every process of a group, and to its leader even if that has moved to another
/// group. `ESRCH` if there is no such process.
pub(crate) fn kill_group(leader: i32, signal: i32) -> io::Result<()> {
    // Zero and negative ids mean other sets of processes to `kill`, among them "all".
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

/// Sends a signal to every process but this one and kernel threads. Only for process 1.
pub(crate) fn kill_all(signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two integers and no pointer.
    check(unsafe { libc::kill(-1, signal) })?;
    Ok(())
}

/// Makes this process the parent of its descendants' orphans, as process 1 always is.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: this option takes an integer and no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) })?;
    Ok(())
}

/// Limit on open descriptors (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileLimit {
    pub soft: libc::rlim_t,
    pub hard: libc::rlim_t,
}

/// Raises the soft limit on open descriptors to the hard one. Returns the earlier limit, for the
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

/// Raises the priority of this thread, the only one, so that an overloaded guest answers its host.
/// Returns whether it did: an agent that was started with a niceness keeps it.
pub(crate) fn raise_priority() -> bool {
    // SAFETY: integers only. -1 is an error or a niceness; both leave the priority unchanged.
    let found = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: integers only.
    found == 0 && unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } == 0
}

/// How willingly the kernel's OOM killer takes this process (`proc_pid_oom_score_adj(5)`).
const OOM_SCORE_PATH: &str = "/proc/self/oom_score_adj";

/// Has the kernel's OOM killer spare this process. Returns the earlier value, for the children, if
/// that was permitted.
pub(crate) fn avoid_oom_killer() -> Option<i32> {
    let found = std::fs::read_to_string(OOM_SCORE_PATH).ok()?;
    let found = found.trim().parse().ok()?;
    std::fs::write(OOM_SCORE_PATH, "-1000").ok()?;
    Some(found)
}

/// Whether this process is the init of its machine or container.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1
}
