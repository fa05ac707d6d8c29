//! Starting a program: one `clone` that shares memory until the exec.
//!
//! ```text
//! parent   clone ────────── suspended ──────────▶ reads the outcome
//! child      └▶ system calls only, execve ─▶ the program
//!                                   └ failed ─▶ note stage and errno, _exit
//! ```
//!
//! `CLONE_VM | CLONE_VFORK` copies no page tables, so its cost does not grow with the agent, and a
//! failed exec is reported through the shared memory instead of another pipe. In return the child
//! runs in the parent's memory: its code in `child` only makes system calls, on its own stack, and
//! never returns into Rust code of the parent. So everything that has to be looked up or allocated,
//! such as a user's groups, is prepared before the clone.
//!
//! A child that belongs into a cgroup is cloned into it (`clone3`, Linux 5.7). Where that cannot
//! be, it moves there itself as its first step. So a program and all its descendants are in it.
//!
//! Invariants:
//! - The agent's descriptors 0, 1 and 2 are open, so every descriptor passed here is 3 or above.
//! - Every signal that could run a handler is blocked in the parent, so none can run in the child
//!   before its mask is cleared, as its last step; see [`super::signals`].

#![expect(unsafe_code, reason = "clone, and descriptors that only may be open")]

mod child;
mod clone;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use super::cgroup::Cgroup;
use super::check;
use super::process::FileLimit;
use super::stdio::{self, AgentEnds, Wiring};

/// Stack of a child until its exec, in bytes. The deepest call is a libc wrapper with a `sigset_t`.
const STACK_LEN: usize = 32 * 1024;

/// The entrance of a child that need not move into a cgroup.
const NO_ENTRANCE: libc::c_int = -1;

/// A program to start, in the form that the kernel needs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Paths to try, in order, until one can be executed.
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    /// `NAME=value` each.
    pub env: Vec<CString>,
    pub cwd: CString,
    pub wiring: Wiring,
    /// The user to run as; `None` is the agent's.
    pub user: Option<User>,
    /// The cgroup to run in; `None` is the agent's.
    pub cgroup: Option<Cgroup>,
    /// Where the child records itself.
    pub slot: Option<Slot>,
}

/// A line of the record of running commands; see [`crate::record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// An open descriptor.
    pub file: RawFd,
    pub offset: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its process and process group id.
    pub pid: i32,
    pub stdio: AgentEnds,
}

/// A step of starting a program, to say which one failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Making a terminal, before the clone.
    Terminal,
    /// Making pipes, and the clone: out of memory, processes or descriptors.
    Clone,
    /// Process group, limits and standard descriptors of the child.
    SetUp,
    /// Becoming the user.
    User,
    /// Entering the working directory.
    Chdir,
    /// Executing a candidate.
    Exec,
    /// Executing an existing file whose interpreter is missing.
    Interpreter,
}

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub stage: Stage,
    /// The error; for [`Stage::Exec`] that of the most informative candidate.
    pub source: io::Error,
    /// The child, if it was cloned, which still has to be reaped.
    pub stillborn: Option<i32>,
}

/// Starts programs, one at a time.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Box<[u8]>,
    null: File,
    limit: FileLimit,
    is_preferred: bool,
    /// For `/proc/self/oom_score_adj` of a child.
    oom_score_adj: Option<CString>,
    /// Whether the kernel has not refused to clone into a cgroup.
    clones_into_cgroups: bool,
}

impl Spawner {
    /// Children get `limit` back, because the agent raised its own. If the agent's priority was
    /// raised (`is_preferred`), theirs is reset.
    pub(crate) fn new(limit: FileLimit, is_preferred: bool) -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        Ok(Self {
            stack: vec![0; STACK_LEN].into_boxed_slice(),
            null,
            limit,
            is_preferred,
            oom_score_adj: None,
            clones_into_cgroups: true,
        })
    }

    /// Children get this value back, because the agent lowered its own.
    pub(crate) fn set_oom_score_adj(&mut self, score: i32) -> io::Result<()> {
        self.oom_score_adj = Some(c_string(score.to_string().as_bytes())?);
        Ok(())
    }

    /// Starts a program in its own process group, or with a terminal in its own session. Returns
    /// when it has been executed or that has failed, which takes well under a millisecond.
    pub(crate) fn spawn(&mut self, program: &Program) -> Result<Started, SpawnError> {
        let no_child = |stage| {
            move |source| SpawnError {
                stage,
                source,
                stillborn: None,
            }
        };
        let (stage, is_terminal) = match program.wiring {
            Wiring::Output | Wiring::InputAndOutput => (Stage::Clone, false),
            Wiring::Terminal(_) => (Stage::Terminal, true),
        };
        let (child_ends, agent_ends) = stdio::open(program.wiring).map_err(no_child(stage))?;
        let user = program.user.as_ref();
        if let Some(user) = user {
            child_ends.give_to(user.uid);
        }
        let candidates = pointers(&program.candidates);
        let argv = pointers(&program.argv);
        let env = pointers(&program.env);
        let mut shared = child::Shared {
            candidates: candidates.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: program.cwd.as_ptr(),
            descriptors: child_ends.descriptors(&self.null),
            is_terminal,
            user: user.map(|user| child::User {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.as_ptr(),
                groups_count: user.groups.len(),
            }),
            limit: libc::rlimit {
                rlim_cur: self.limit.soft,
                rlim_max: self.limit.hard,
            },
            is_preferred: self.is_preferred,
            entrance: NO_ENTRANCE,
            slot: program.slot,
            oom_score_adj: match &self.oom_score_adj {
                Some(score) => score.as_ptr(),
                None => ptr::null(),
            },
            failure: None,
        };
        let pid = match &program.cgroup {
            Some(cgroup) => self.clone_into(cgroup, &mut shared),
            None => self.clone_child(&mut shared),
        };
        let pid = pid.map_err(no_child(Stage::Clone))?;
        match shared.failure {
            None => Ok(Started {
                pid,
                stdio: agent_ends,
            }),
            Some((stage, errno)) => Err(SpawnError {
                stage,
                source: io::Error::from_raw_os_error(errno),
                stillborn: Some(pid),
            }),
        }
    }

    /// Clones a child that begins in a cgroup, or moves there.
    fn clone_into(&mut self, cgroup: &Cgroup, shared: &mut child::Shared) -> io::Result<i32> {
        if self.clones_into_cgroups {
            let fd = cgroup.as_fd().as_raw_fd();
            // SAFETY: as in `clone_child`; the descriptor is open.
            match unsafe { clone::clone_into(fd, &mut self.stack, child::run, shared) } {
                Err(err) if is_unsupported(&err) => self.clones_into_cgroups = false,
                result => return result,
            }
        }
        let entrance: OwnedFd = cgroup.entrance()?;
        shared.entrance = entrance.as_raw_fd();
        self.clone_child(shared)
    }

    fn clone_child(&mut self, shared: &mut child::Shared) -> io::Result<i32> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = stack_top(&mut self.stack);
        // SAFETY: `top` is the end of a live buffer that nothing else uses, because the parent is
        // suspended (CLONE_VFORK) until the child has executed or exited. For the same reason
        // `shared` and all it points to outlive the child's use. `run` never returns into the
        // parent's frames.
        check(unsafe { libc::clone(child::run, top.cast(), flags, ptr::from_mut(shared).cast()) })
    }
}

/// The highest address of a stack. The ABIs require a multiple of 16.
fn stack_top(stack: &mut [u8]) -> *mut u8 {
    let top = stack.as_mut_ptr_range().end;
    top.wrapping_sub(top.addr() % 16)
}

/// Whether the kernel has no `clone3`, or none with cgroups, or a filter forbids it.
fn is_unsupported(err: &io::Error) -> bool {
    let errors = [libc::ENOSYS, libc::EINVAL, libc::E2BIG, libc::EPERM];
    err.raw_os_error()
        .is_some_and(|errno| errors.contains(&errno))
}

/// A null-terminated array of pointers into `strings`, for `execve`.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Opens `/dev/null` as each closed one of the descriptors 0, 1 and 2, so that no socket gets it.
pub(crate) fn open_missing_standard_descriptors() -> io::Result<()> {
    for fd in 0..3 {
        // SAFETY: the descriptor is only borrowed for a query that tells whether it is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_GETFD).is_err() {
            // SAFETY: the path is a C string constant. `open` returns `fd`, the lowest free one,
            // which stays open for the life of the process.
            check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        }
    }
    Ok(())
}

/// A C string; EINVAL if the bytes contain NUL.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests;
