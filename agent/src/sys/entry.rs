//! Where the program begins: before the C library, for the one invocation that needs none.
//!
//! A probe runs this program as `guest-agent --noop`, to prove that the guest starts, executes and
//! reaps processes. A C library that starts up asks the processor for its features first, with some
//! dozens of CPUID instructions, each of which leaves the guest (Intel SDM volume 3C, 25.1.2; AMD
//! APM volume 2, 15.9), then makes a dozen system calls and writes to as many pages, and each of
//! those is a page that a restored guest has to load. None of it proves anything, and it took two
//! thirds of the time of such a process. So that invocation ends at the first instructions.
//!
//! Elsewhere than on x86-64 the program begins as usual, and `main` knows the option as well.

#![cfg_attr(
    all(target_arch = "x86_64", target_os = "linux"),
    expect(
        unsafe_code,
        reason = "the first instructions of a program are in no language"
    )
)]

// SAFETY: it only reads the stack that execve(2) has made, within its bounds as said below, and
// either ends the process, or goes on where it would have begun, with stack and registers as they
// were but for rax, which nobody expects anything in.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
std::arch::global_asm!(
    // The stack as execve(2) leaves it (System V ABI, AMD64 supplement, 3.4.1): argc, argv[0],
    // argv[1]. Only rax is used, since rdx holds what a dynamic linker wants called at the end.
    ".pushsection .text.guest_agent_entry, \"ax\", @progbits",
    ".globl guest_agent_entry",
    ".type guest_agent_entry, @function",
    "guest_agent_entry:",
    "cmp qword ptr [rsp], 2",
    "jb 2f",
    // Seven bytes can be read of the shortest argument: the environment follows, the program's
    // name and eight bytes of zero (Linux, fs/exec.c and fs/binfmt_elf.c).
    "mov rax, qword ptr [rsp + 16]",
    "cmp dword ptr [rax], {first}",
    "jne 2f",
    "cmp dword ptr [rax + 3], {last}",
    "jne 2f",
    "mov eax, {exit_group}",
    "xor edi, edi",
    "syscall",
    "2:",
    "jmp _start",
    ".size guest_agent_entry, . - guest_agent_entry",
    ".popsection",
    first = const i32::from_le_bytes(*b"--no"),
    last = const i32::from_le_bytes(*b"oop\0"),
    exit_group = const libc::SYS_exit_group,
);
