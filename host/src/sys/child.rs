//! State that a child process must not inherit from this one: its signal mask.
#![expect(
    unsafe_code,
    reason = "std keeps the signal mask in a child; only pre_exec can reset it"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;

/// Makes `command` start with no signal blocked.
///
/// A process that reads its signals from a signalfd blocks them, and a child inherits the mask: a
/// VMM would never see SIGTERM.
pub(crate) fn with_empty_signal_mask(command: &mut Command) -> &mut Command {
    let reset = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe functions may be called and nothing may
    // be allocated. The closure calls sigemptyset and pthread_sigmask, which are safe, and its
    // error holds only a number.
    unsafe { command.pre_exec(reset) }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_child_has_no_signal_blocked_although_its_parent_has() {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR1);
        let before = mask
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
            .unwrap();
        let mut command = Command::new("grep");
        command
            .args(["SigBlk", "/proc/self/status"])
            .stdout(Stdio::piped());
        let output = with_empty_signal_mask(&mut command)
            .output()
            .expect("grep runs");
        before.thread_set_mask().unwrap();
        assert_eq!(output.stdout, b"SigBlk:\t0000000000000000\n");
    }
}
