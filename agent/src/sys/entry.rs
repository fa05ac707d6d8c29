//! The program's entry point, before that of the C library, for the process of a probe.
//!
//! A probe runs this program as `guest-agent --noop`, to prove that the guest starts, executes and
//! reaps processes. The C library's start-up executes dozens of CPUID instructions, each of which
//! exits to the VMM (Intel SDM volume 3C, 25.1.2; AMD APM volume 2, 15.9). Then it makes a dozen
//! system calls and writes to as many pages, which a restored guest has to load. This proves
//! nothing more and took two thirds of the process's time, so `--noop` exits within the first
//! instructions.
//!
//! On other architectures than x86-64 the program begins as usual, and `main` handles the option.

#![cfg_attr(
    all(target_arch = "x86_64", target_os = "linux"),
    expect(
        unsafe_code,
        reason = "the entry point of a program can only be written in assembly"
    )
)]

// SAFETY: it only reads the stack that execve(2) has made, within the bounds described below. Then
// it ends the process, or jumps to the usual entry point with an unchanged stack and all registers
// but rax unchanged, whose value is unspecified there.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
std::arch::global_asm!(
    // The stack as execve(2) leaves it (System V ABI, AMD64 supplement, 3.4.1): argc, argv[0],
    // argv[1]. Only rax is changed: rdx holds the function that a dynamic linker registers for
    // exit.
    ".pushsection .text.guest_agent_entry, \"ax\", @progbits",
    ".globl guest_agent_entry",
    ".type guest_agent_entry, @function",
    "guest_agent_entry:",
    "cmp qword ptr [rsp], 2",
    "jb 2f",
    // Seven bytes are readable even at the shortest argument: after it come the environment, the
    // program's path and eight bytes of zero (Linux, fs/exec.c and fs/binfmt_elf.c).
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
