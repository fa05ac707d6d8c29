//! Starting a program: one `clone` that shares memory until the exec.
//!
//! ```text
//! parent   clone ────────── suspended ──────────▶ reads the outcome, goes on
//! child      └▶ system calls only, execve ─▶ the program
//!                                   └ failed ─▶ note stage and errno, _exit
//! ```
//!
//! `CLONE_VM | CLONE_VFORK` copies no page tables, so the cost does not grow with the agent, and a
//! failed exec comes back through the shared memory instead of through one more pipe. The price is
//! that the child runs in the parent's memory: what it does is in `child`, makes system calls only,
//! on its own stack, and never returns into Rust code of the parent. So everything that has to be
//! looked up or allocated, such as a user's groups, is there before the clone.
//!
//! Invariants:
//! - Descriptors 0, 1 and 2 of the agent are open, so none that is passed here is below 3.
//! - Every signal that could run a handler is blocked in the parent, so none can run in the child
//!   before its mask is opened, which happens last; see [`super::signals`].

#![expect(unsafe_code, reason = "clone, and descriptors that only may be open")]

mod child;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use super::check;
use super::process::FileLimit;
use super::stdio::{self, AgentEnds, Wiring};

/// Stack of a child until its exec. The deepest path is one libc wrapper with a `sigset_t`.
const STACK_LEN: usize = 32 * 1024;

/// What to start, ready for the kernel.
#[derive(Debug)]
pub(crate) struct Program {
    /// Paths to try, in order. The first that can be executed wins.
    pub candidates: Vec<CString>,
    /// Arguments, the first of which is the name the program sees.
    pub argv: Vec<CString>,
    /// Environment, `NAME=value` each.
    pub env: Vec<CString>,
    /// Directory to start in.
    pub cwd: CString,
    /// What its standard descriptors are.
    pub wiring: Wiring,
    /// Whose rights it gets; the agent's when missing.
    pub user: Option<User>,
}

/// Rights of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of its primary group.
    pub gid: u32,
    /// Every group that it is to be in.
    pub groups: Vec<u32>,
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its process id, which is also that of its process group.
    pub pid: i32,
    /// The agent's ends of its standard descriptors.
    pub stdio: AgentEnds,
}

/// The step between the clone and the program that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Making a terminal, before any child existed.
    Terminal,
    /// Before any child existed: out of memory, of processes or of descriptors.
    Clone,
    /// Making the child its own process group, limits and standard descriptors.
    SetUp,
    /// Taking on the user's rights.
    User,
    /// Entering the working directory.
    Chdir,
    /// Executing each candidate.
    Exec,
    /// Executing a file that is there, by an interpreter that is not.
    Interpreter,
}

/// Why a program could not be started.
#[derive(Debug)]
pub(crate) struct SpawnError {
    /// The step that failed.
    pub stage: Stage,
    /// How it failed. For [`Stage::Exec`], what the most telling candidate said.
    pub source: io::Error,
    /// A child that existed for a moment and still has to be reaped.
    pub stillborn: Option<i32>,
}

/// Starts programs, one at a time, with what all of them share.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Box<[u8]>,
    null: File,
    limit: FileLimit,
    is_preferred: bool,
}

impl Spawner {
    /// `limit` is what children get back, since the agent raised its own; if the scheduler prefers
    /// the agent, it does not prefer them.
    pub(crate) fn new(limit: FileLimit, is_preferred: bool) -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        Ok(Self {
            stack: vec![0; STACK_LEN].into_boxed_slice(),
            null,
            limit,
            is_preferred,
        })
    }

    /// Starts a program in its own process group, with a terminal in its own session.
    ///
    /// Returns when the program has been executed or has failed to be, which takes well under a
    /// millisecond.
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
            failure: None,
        };
        let pid = self
            .clone_child(&mut shared)
            .map_err(no_child(Stage::Clone))?;
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

    fn clone_child(&mut self, shared: &mut child::Shared) -> io::Result<i32> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = self.stack.as_mut_ptr_range().end;
        // The ABIs we run on want the stack pointer at a multiple of 16.
        let top = top.wrapping_sub(top.addr() % 16);
        // SAFETY: `top` is the end of a live buffer that nothing else uses, because the parent is
        // suspended (CLONE_VFORK) until the child has executed or exited; for the same reason
        // `shared` and everything it points to outlives the child's use of it. `run` never returns
        // into the parent's frames.
        check(unsafe { libc::clone(child::run, top.cast(), flags, ptr::from_mut(shared).cast()) })
    }
}

/// A null-terminated array of pointers, as `execve` wants it. Borrows from `strings`.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Opens `/dev/null` as each of the descriptors 0, 1 and 2 that is closed, so that none is reused
/// for a socket.
pub(crate) fn open_missing_standard_descriptors() -> io::Result<()> {
    for fd in 0..3 {
        // SAFETY: the descriptor is only borrowed for a query that tells whether it is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_GETFD).is_err() {
            // SAFETY: the path is a C string constant. The lowest free descriptor is `fd`, since
            // those below are open by now; it stays open for the life of the process.
            check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        }
    }
    Ok(())
}

/// Makes a C string of bytes that may hold no zero.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests;
