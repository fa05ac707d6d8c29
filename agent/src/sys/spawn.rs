//! Starting a program: one `clone` that shares memory until the exec.
//!
//! ```text
//! parent   clone ────────── suspended ──────────▶ reads the outcome, goes on
//! child      └▶ group, limit, cwd, 0 1 2, close, mask, execve ─▶ the program
//!                                                    └ failed ─▶ note stage and errno, _exit
//! ```
//!
//! `CLONE_VM | CLONE_VFORK` copies no page tables, so the cost does not grow with the agent, and a
//! failed exec comes back through the shared memory instead of through one more pipe. The price is
//! that the child runs in the parent's memory: [`run_child`] makes system calls only, on its own
//! stack, and never returns into Rust code of the parent.
//!
//! Invariants:
//! - Descriptors 0, 1 and 2 of the agent are open, so none that is passed here is below 3.
//! - Every signal that could run a handler is blocked in the parent, so none can run in the child
//!   before its mask is opened, which happens last; see [`super::signals`].

#![expect(
    unsafe_code,
    reason = "clone, and the system calls between it and execve"
)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use mio::unix::pipe;

use super::check;
use super::process::FileLimit;

/// Stack of a child until its exec. The deepest path is one libc wrapper with a `sigset_t`.
const STACK_LEN: usize = 32 * 1024;

/// What a child reports when it could not become the program.
const EXIT_EXEC_FAILED: libc::c_int = 127;

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
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its process id, which is also that of its process group.
    pub pid: i32,
    /// Reading end of its standard output. Non-blocking.
    pub stdout: pipe::Receiver,
    /// Reading end of its standard error. Non-blocking.
    pub stderr: pipe::Receiver,
}

/// The step between the clone and the program that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before any child existed: out of memory, of processes or of descriptors.
    Clone,
    /// Making the child its own process group, limits and standard descriptors.
    SetUp,
    /// Entering the working directory.
    Chdir,
    /// Executing each candidate.
    Exec,
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
}

/// What parent and child share while the parent is suspended.
struct Shared {
    candidates: *const *const libc::c_char,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: *const libc::c_char,
    descriptors: [libc::c_int; 3],
    limit: libc::rlimit,
    /// Written by the child when it fails, read by the parent after the child is gone.
    failure: Option<(Stage, libc::c_int)>,
}

impl Spawner {
    /// `limit` is what children get back, since the agent raised its own.
    pub(crate) fn new(limit: FileLimit) -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        Ok(Self {
            stack: vec![0; STACK_LEN].into_boxed_slice(),
            null,
            limit,
        })
    }

    /// Starts a program in its own process group, with standard input from `/dev/null` and a pipe
    /// each for output and errors.
    ///
    /// Returns when the program has been executed or has failed to be, which takes well under a
    /// millisecond.
    pub(crate) fn spawn(&mut self, program: &Program) -> Result<Started, SpawnError> {
        let no_child = |source| SpawnError {
            stage: Stage::Clone,
            source,
            stillborn: None,
        };
        let (stdout_write, stdout) = output_pipe().map_err(no_child)?;
        let (stderr_write, stderr) = output_pipe().map_err(no_child)?;
        let descriptors = [
            self.null.as_raw_fd(),
            stdout_write.as_raw_fd(),
            stderr_write.as_raw_fd(),
        ];
        let candidates = pointers(&program.candidates);
        let argv = pointers(&program.argv);
        let env = pointers(&program.env);
        let mut shared = Shared {
            candidates: candidates.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: program.cwd.as_ptr(),
            descriptors,
            limit: libc::rlimit {
                rlim_cur: self.limit.soft,
                rlim_max: self.limit.hard,
            },
            failure: None,
        };
        let pid = self.clone_child(&mut shared).map_err(no_child)?;
        match shared.failure {
            None => Ok(Started {
                pid,
                stdout,
                stderr,
            }),
            Some((stage, errno)) => Err(SpawnError {
                stage,
                source: io::Error::from_raw_os_error(errno),
                stillborn: Some(pid),
            }),
        }
    }

    fn clone_child(&mut self, shared: &mut Shared) -> io::Result<i32> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = self.stack.as_mut_ptr_range().end;
        // The ABIs we run on want the stack pointer at a multiple of 16.
        let top = top.wrapping_sub(top.addr() % 16);
        // SAFETY: `top` is the end of a live buffer that nothing else uses, because the parent is
        // suspended (CLONE_VFORK) until the child has executed or exited; for the same reason
        // `shared` and everything it points to outlives the child's use of it. `run_child` never
        // returns into the parent's frames.
        check(unsafe { libc::clone(run_child, top.cast(), flags, ptr::from_mut(shared).cast()) })
    }
}

/// A pipe whose reading end the loop polls. The writing end blocks, as programs expect of their
/// output.
fn output_pipe() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let receiver = pipe::Receiver::from(read);
    receiver.set_nonblocking(true)?;
    Ok((write, receiver))
}

/// A null-terminated array of pointers, as `execve` wants it. Borrows from `strings`.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Becomes the program, or notes why not and exits.
extern "C" fn run_child(shared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the pointer is the `Shared` that `clone_child` passed. The parent is suspended and
    // touches nothing of it until this child has executed or exited.
    let shared = unsafe { &mut *shared.cast::<Shared>() };
    // SAFETY: only system calls and no allocation, as `become_program` requires of the time before
    // an exec.
    let failure = unsafe { become_program(shared) };
    shared.failure = Some(failure);
    // SAFETY: `_exit` runs no destructors and no handlers, which belong to the parent.
    unsafe { libc::_exit(EXIT_EXEC_FAILED) }
}

/// Returns only if it failed.
///
/// # Safety
///
/// The pointers in `shared` are to live, null-terminated arrays of C strings, and the caller is a
/// child that shares its parent's memory: nothing here may allocate, lock or unwind.
unsafe fn become_program(shared: &Shared) -> (Stage, libc::c_int) {
    // SAFETY: integers only.
    if unsafe { libc::setpgid(0, 0) } == -1 {
        return (Stage::SetUp, errno());
    }
    // SAFETY: the pointer is to a live `rlimit`.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const shared.limit) } == -1 {
        return (Stage::SetUp, errno());
    }
    for (target, &descriptor) in (0..).zip(&shared.descriptors) {
        // SAFETY: integers only. Every source is 3 or above (module invariant), so no target
        // overwrites a source, and the copy is not close-on-exec.
        if unsafe { libc::dup2(descriptor, target) } == -1 {
            return (Stage::SetUp, errno());
        }
    }
    // Everything else is close-on-exec already; this is the second lock on that door. A kernel
    // before 5.9 has no such call, and then the first lock must do. SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // SAFETY: `cwd` is a live C string.
    if unsafe { libc::chdir(shared.cwd) } == -1 {
        return (Stage::Chdir, errno());
    }
    // SAFETY: the set is a live local, filled before it is used.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
    // SAFETY: passed on from the caller.
    (Stage::Exec, unsafe { exec_first(shared) })
}

/// Tries each candidate as a shell does: one that is missing gives way to the next, one that may
/// not be executed is remembered, and anything else ends the search.
///
/// # Safety
///
/// As for [`become_program`].
unsafe fn exec_first(shared: &Shared) -> libc::c_int {
    let mut verdict = libc::ENOENT;
    let mut next = shared.candidates;
    loop {
        // SAFETY: `next` has not passed the terminating null of the array.
        let candidate = unsafe { *next };
        if candidate.is_null() {
            return verdict;
        }
        // SAFETY: the candidate is a live C string, the arrays are null-terminated.
        unsafe { libc::execve(candidate, shared.argv, shared.env) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => verdict = libc::EACCES,
            other => return other,
        }
        // SAFETY: the entry just read was not the terminator, so there is a next one.
        next = unsafe { next.add(1) };
    }
}

fn errno() -> libc::c_int {
    // SAFETY: the location is valid for the calling thread, whose storage the child shares.
    unsafe { *libc::__errno_location() }
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
mod tests {
    use super::*;
    use std::io::Read;

    fn spawner() -> Spawner {
        let limit = FileLimit {
            soft: 256,
            hard: 512,
        };
        Spawner::new(limit).unwrap()
    }

    fn program(candidates: &[&str], argv: &[&str]) -> Program {
        let strings = |list: &[&str]| list.iter().map(|s| CString::new(*s).unwrap()).collect();
        Program {
            candidates: strings(candidates),
            argv: strings(argv),
            env: strings(&["NAME=value"]),
            cwd: CString::new("/").unwrap(),
        }
    }

    /// Reads to the end of the pipe, which the child's exit closes.
    fn read_all(mut pipe: pipe::Receiver) -> String {
        pipe.set_nonblocking(false).unwrap();
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn child_gets_its_environment_group_limit_and_no_descriptors() {
        let script = "echo $NAME; ulimit -n; ls /proc/self/fd | wc -l; pwd; echo err >&2";
        let started = spawner()
            .spawn(&program(&["/bin/sh"], &["sh", "-c", script]))
            .unwrap();
        // `ls` itself holds the directory open: 0, 1, 2 and that one.
        assert_eq!(read_all(started.stdout), "value\n256\n4\n/\n");
        assert_eq!(read_all(started.stderr), "err\n");
    }

    #[track_caller]
    fn check_failure(candidates: &[&str], cwd: &str, stage: Stage, errno: i32) {
        let mut program = program(candidates, &["x"]);
        program.cwd = CString::new(cwd).unwrap();
        let err = spawner().spawn(&program).unwrap_err();
        assert_eq!((err.stage, err.source.raw_os_error()), (stage, Some(errno)));
        assert!(err.stillborn.is_some());
    }

    #[test]
    fn failed_exec_names_stage_and_errno() {
        check_failure(&["/nonexistent"], "/", Stage::Exec, libc::ENOENT);
        check_failure(&[], "/", Stage::Exec, libc::ENOENT);
        check_failure(&["/etc/passwd"], "/", Stage::Exec, libc::EACCES);
        // What may not be executed is more telling than what is missing, in either order.
        check_failure(
            &["/etc/passwd", "/nonexistent"],
            "/",
            Stage::Exec,
            libc::EACCES,
        );
        check_failure(&["/bin/sh"], "/nonexistent", Stage::Chdir, libc::ENOENT);
    }

    #[test]
    fn later_candidate_wins_when_earlier_ones_are_missing() {
        let candidates = ["/nonexistent/sh", "/etc/passwd/sh", "/bin/sh"];
        let started = spawner()
            .spawn(&program(&candidates, &["sh", "-c", "echo hi"]))
            .unwrap();
        assert_eq!(read_all(started.stdout), "hi\n");
    }
}
