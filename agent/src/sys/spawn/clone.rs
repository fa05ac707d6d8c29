//! `clone3` into a cgroup. The C library has no function for it.
//!
//! A move into a cgroup waits for all processors (`cgroup_threadgroup_rwsem` of the kernel's
//! kernel/cgroup/cgroup.c), which takes milliseconds; being born there takes nothing.

#![expect(unsafe_code, reason = "a system call that returns on two stacks")]

use std::ffi::c_void;
use std::io;
use std::ptr;

use super::child::Shared;
use super::stack_top;

/// Of `linux/sched.h`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What the child runs. It does not return.
type Run = extern "C" fn(*mut c_void) -> libc::c_int;

/// Clones a child into a cgroup, which runs `run` on `stack`, and suspends the caller until the
/// child has executed a program or exited. Returns the child's process id.
///
/// # Safety
///
/// As for `clone(2)` with `CLONE_VM` and `CLONE_VFORK`: nothing else uses the stack, and `run` must
/// not return.
pub(super) unsafe fn clone_into(
    cgroup: libc::c_int,
    stack: &mut [u8],
    run: Run,
    shared: &mut Shared,
) -> io::Result<i32> {
    let size = stack_top(stack).addr() - stack.as_ptr().addr();
    // SAFETY: all-zero arguments are valid and ask for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags =
        CLONE_INTO_CGROUP | u64::from((libc::CLONE_VM | libc::CLONE_VFORK).unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.stack = stack.as_mut_ptr().addr() as u64;
    arguments.stack_size = size as u64;
    arguments.cgroup = u64::try_from(cgroup).map_err(io::Error::other)?;
    // SAFETY: the caller's contract; the arguments are complete.
    let result = unsafe { call(&arguments, run, ptr::from_mut(shared).cast()) };
    let result = i32::try_from(result).map_err(io::Error::other)?;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(result)
}

/// The system call, in the parent; the child begins `run` on its own stack.
///
/// # Safety
///
/// As for [`clone_into`].
#[cfg(target_arch = "x86_64")]
unsafe fn call(arguments: &libc::clone_args, run: Run, shared: *mut c_void) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the kernel changes rax, rcx and r11 only. In the child rsp is the end of its own
    // stack, a multiple of 16, and zero in rbp ends a walk through its frames. The child never
    // gets behind the call.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {shared}",
            "call {run}",
            "ud2",
            "2:",
            shared = in(reg) shared,
            run = in(reg) run,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// As for x86-64.
///
/// # Safety
///
/// As for [`clone_into`].
#[cfg(target_arch = "aarch64")]
unsafe fn call(arguments: &libc::clone_args, run: Run, shared: *mut c_void) -> libc::c_long {
    let result: libc::c_long;
    // SAFETY: the kernel changes x0 only. In the child sp is the end of its own stack, a multiple
    // of 16, and zero in x29 ends a walk through its frames. The child never gets behind the call.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {shared}",
            "blr {run}",
            "brk 1",
            "2:",
            shared = in(reg) shared,
            run = in(reg) run,
            in("x8") libc::SYS_clone3,
            inlateout("x0") ptr::from_ref(arguments) => result,
            in("x1") size_of::<libc::clone_args>(),
        );
    }
    result
}

/// On other architectures the child moves into its cgroup itself.
///
/// # Safety
///
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn call(_: &libc::clone_args, _: Run, _: *mut c_void) -> libc::c_long {
    -libc::c_long::from(libc::ENOSYS)
}
