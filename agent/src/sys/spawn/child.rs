//! The child between the clone and the program: system calls only.
//!
//! ```text
//! cgroup ─▶ group or session ─▶ record ─▶ limits, priority ─▶ 0 1 2 ─▶ terminal ─▶ umask ─▶ close
//! ─▶ user ─▶ cwd ─▶ mask ─▶ exec
//! ```
//!
//! The user comes after everything that only the agent may do, and before the working directory, so
//! that a directory which the user may not enter is an error.
//!
//! The child runs in its parent's memory, on a stack of its own. It makes system calls, reads what
//! was prepared for it, and writes one value: where it failed. It changes its user by raw system
//! calls, because the C library's functions change every thread that they believe to be in the
//! process, and those are the parent's.
//!
//! After the change of user the child is still in the agent's memory. Other programs of that user
//! cannot trace it, because the change makes the memory not dumpable (`prctl(2)`, PR_SET_DUMPABLE),
//! unless the machine's owner has set `fs.suid_dumpable` to 1.

#![expect(unsafe_code, reason = "the system calls between clone and execve")]

use std::ptr;

use super::{Slot, Stage};
use crate::record::{TICKS_PER_SECOND, line};

/// Exit code of a child whose program could not be executed.
const EXIT_EXEC_FAILED: libc::c_int = 127;

/// The umask of commands, whatever the agent's own is: only the owner may write their files.
const UMASK: libc::mode_t = 0o022;

/// What parent and child share while the parent is suspended.
pub(super) struct Shared {
    pub(super) candidates: *const *const libc::c_char,
    pub(super) argv: *const *const libc::c_char,
    pub(super) env: *const *const libc::c_char,
    pub(super) cwd: *const libc::c_char,
    pub(super) descriptors: [libc::c_int; 3],
    /// Whether the descriptors are those of a terminal.
    pub(super) is_terminal: bool,
    pub(super) user: Option<User>,
    pub(super) limit: libc::rlimit,
    /// Whether the agent's priority was raised, so that the child resets its own.
    pub(super) is_preferred: bool,
    /// `cgroup.procs` of the cgroup to move into; negative: none.
    pub(super) entrance: libc::c_int,
    /// Where to record itself.
    pub(super) slot: Option<Slot>,
    /// The value of its `oom_score_adj`; null: the agent's.
    pub(super) oom_score_adj: *const libc::c_char,
    /// Written by the child if it fails, and read by the parent after the child's end.
    pub(super) failure: Option<(Stage, libc::c_int)>,
}

/// The user to become.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: *const libc::gid_t,
    pub(super) groups_count: usize,
}

// On 64-bit architectures the calls below are not their predecessors with 16-bit ids.
const _: () = assert!(usize::BITS >= 64);

/// Executes the program, or writes why that failed and exits.
pub(super) extern "C" fn run(shared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the pointer is the `Shared` that `clone_child` passed. The parent is suspended and
    // does not access it until this child has executed or exited.
    let shared = unsafe { &mut *shared.cast::<Shared>() };
    // SAFETY: all that `shared` points to lives while the parent is suspended.
    let failure = unsafe { prepare(shared) };
    let failure = match failure {
        // SAFETY: as above.
        Ok(()) => unsafe { execute_first(shared) },
        Err(failure) => failure,
    };
    shared.failure = Some(failure);
    // SAFETY: `_exit` runs no destructors and no handlers, which belong to the parent.
    unsafe { libc::_exit(EXIT_EXEC_FAILED) }
}

/// Every step before the exec.
///
/// # Safety
///
/// The pointers in `shared` are to live, null-terminated arrays of C strings. The caller is a child
/// in its parent's memory, so nothing here may allocate, lock or unwind.
unsafe fn prepare(shared: &Shared) -> Result<(), (Stage, libc::c_int)> {
    let set_up = |result| check(Stage::SetUp, result);
    if shared.entrance >= 0 {
        // "0" is the writing process. SAFETY: the pointer is to a live constant of one byte.
        let len = unsafe { libc::write(shared.entrance, c"0".as_ptr().cast(), 1) };
        set_up(len as libc::c_long)?;
    }
    if shared.is_terminal {
        // SAFETY: no argument. It is permitted, because a new child does not lead a group.
        set_up(unsafe { libc::setsid() }.into())?;
    } else {
        // SAFETY: integers only.
        set_up(unsafe { libc::setpgid(0, 0) }.into())?;
    }
    if let Some(slot) = shared.slot {
        // SAFETY: the caller's contract; the slot's descriptor is open.
        unsafe { record(slot) };
    }
    // SAFETY: the pointer is to a live `rlimit`.
    set_up(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const shared.limit) }.into())?;
    if shared.is_preferred {
        // SAFETY: integers only. Every process may lower its priority.
        set_up(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) }.into())?;
    }
    if !shared.oom_score_adj.is_null() {
        // SAFETY: the caller's contract.
        set_up(unsafe { write_oom_score_adj(shared.oom_score_adj) })?;
    }
    for (target, &descriptor) in (0..).zip(&shared.descriptors) {
        // SAFETY: integers only. Every source is 3 or above (invariant of the parent module), so no
        // target overwrites a source, and the copy is not close-on-exec.
        set_up(unsafe { libc::dup2(descriptor, target) }.into())?;
    }
    if shared.is_terminal {
        // SAFETY: the request takes an integer and no pointer.
        set_up(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into())?;
    }
    // SAFETY: an integer only; this call cannot fail.
    unsafe { libc::umask(UMASK) };
    // All others are close-on-exec already; this is a second safeguard. Kernels before 5.9 do not
    // have the call, so its failure is ignored. SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if let Some(user) = shared.user {
        // SAFETY: the caller's contract.
        unsafe { become_user(user) }?;
    }
    // SAFETY: `cwd` is a live C string.
    check(Stage::Chdir, unsafe { libc::chdir(shared.cwd) }.into())?;
    // SAFETY: the set is a live local, filled before it is used.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
    Ok(())
}

/// Writes this process into the record. A failure does no harm while the agent lives. If the agent
/// is killed, its successor does not know the command.
///
/// # Safety
///
/// As for [`prepare`]; the slot's descriptor is open.
unsafe fn record(slot: Slot) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live `timespec`. A failure leaves zero, which is not the time of
    // a command.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let seconds = now.tv_sec.unsigned_abs();
    let ticks = now.tv_nsec.unsigned_abs() * TICKS_PER_SECOND / 1_000_000_000;
    let at = seconds.saturating_mul(TICKS_PER_SECOND) + ticks + 1;
    // SAFETY: no argument.
    let pid = unsafe { libc::getpid() };
    let line = line(u64::from(pid.unsigned_abs()), at);
    // SAFETY: the pointer is to a live array of that length.
    unsafe { libc::pwrite(slot.file, line.as_ptr().cast(), line.len(), slot.offset) };
}

/// Sets how willingly the OOM killer takes this process. That of the agent, whose memory it shares,
/// stays as it is (`__set_oom_adj` of the kernel's fs/proc/base.c). Returns -1 on failure.
///
/// # Safety
///
/// `value` is a live C string.
unsafe fn write_oom_score_adj(value: *const libc::c_char) -> libc::c_long {
    let path = c"/proc/self/oom_score_adj";
    // SAFETY: the path is a C string constant.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd == -1 {
        return -1;
    }
    // The descriptor is closed with all others. SAFETY: the caller's contract; the string has as
    // many bytes as `strlen` says.
    unsafe { libc::write(fd, value.cast(), libc::strlen(value)) as libc::c_long }
}

/// Becomes the user, groups first: afterwards it has no right to change them. An agent without
/// that right is the user already, or cannot become it.
///
/// # Safety
///
/// As for [`prepare`]; `groups` points to `groups_count` live numbers.
unsafe fn become_user(user: User) -> Result<(), (Stage, libc::c_int)> {
    let step = |result| check(Stage::User, result);
    let gid = libc::c_ulong::from(user.gid);
    let uid = libc::c_ulong::from(user.uid);
    // SAFETY: the pointer is to as many live numbers as the count says.
    let groups =
        step(unsafe { libc::syscall(libc::SYS_setgroups, user.groups_count, user.groups) });
    if groups == Err((Stage::User, libc::EPERM)) && is_already(user) {
        return Ok(());
    }
    groups?;
    // SAFETY: integers only.
    step(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: integers only.
    step(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// Whether this process is the user in every respect but the groups.
fn is_already(user: User) -> bool {
    let (mut uids, mut gids) = ([0; 3], [0; 3]);
    for (call, ids) in [
        (libc::SYS_getresuid, &mut uids),
        (libc::SYS_getresgid, &mut gids),
    ] {
        let [real, effective, saved]: &mut [u32; 3] = ids;
        // SAFETY: the pointers are to live numbers.
        unsafe { libc::syscall(call, &raw mut *real, &raw mut *effective, &raw mut *saved) };
    }
    uids == [user.uid; 3] && gids == [user.gid; 3]
}

/// Tries each candidate as a shell does: skips a missing one, remembers the first one that exists
/// and cannot be executed, and stops at an error that is not about the file.
///
/// # Safety
///
/// As for [`prepare`].
unsafe fn execute_first(shared: &Shared) -> (Stage, libc::c_int) {
    let mut verdict = None;
    let mut next = shared.candidates;
    loop {
        // SAFETY: `next` has not passed the terminating null of the array.
        let candidate = unsafe { *next };
        if candidate.is_null() {
            return verdict.unwrap_or((Stage::Exec, libc::ENOENT));
        }
        // SAFETY: the candidate is a live C string.
        if unsafe { is_missing(candidate) } {
            // SAFETY: the entry just read was not the terminator, so there is a next one.
            next = unsafe { next.add(1) };
            continue;
        }
        // SAFETY: the candidate is a live C string, the arrays are null-terminated.
        unsafe { libc::execve(candidate, shared.argv, shared.env) };
        let failure = match errno() {
            // The file exists, so its interpreter is missing.
            libc::ENOENT | libc::ENOTDIR => (Stage::Interpreter, libc::ENOENT),
            libc::EACCES => (Stage::Exec, libc::EACCES),
            other => return (Stage::Exec, other),
        };
        verdict = verdict.or(Some(failure));
        // SAFETY: as above.
        next = unsafe { next.add(1) };
    }
}

/// Whether a file is missing. `execve` would cost more: before Linux 6.8 it even makes an address
/// space first (`alloc_bprm` in `fs/exec.c`).
///
/// # Safety
///
/// `candidate` is a live C string.
unsafe fn is_missing(candidate: *const libc::c_char) -> bool {
    // SAFETY: the caller's contract.
    let found = unsafe { libc::access(candidate, libc::F_OK) };
    found == -1 && matches!(errno(), libc::ENOENT | libc::ENOTDIR)
}

fn check(stage: Stage, result: libc::c_long) -> Result<(), (Stage, libc::c_int)> {
    if result == -1 {
        Err((stage, errno()))
    } else {
        Ok(())
    }
}

fn errno() -> libc::c_int {
    // SAFETY: the location is valid for the calling thread, whose storage the child uses too.
    unsafe { *libc::__errno_location() }
}
