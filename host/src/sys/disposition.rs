//! Signal dispositions of this process.
#![expect(
    unsafe_code,
    reason = "nix only reads a disposition by setting another"
)]

use std::io;
use std::mem::MaybeUninit;

/// Whether this process was started with signal `number` ignored, as `nohup` does with SIGHUP and
/// a shell's `&` with SIGINT.
pub(crate) fn is_ignored(number: i32) -> io::Result<bool> {
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a null pointer for the new action this only queries. The kernel writes the
    // current action to `old`, which has room for it.
    if unsafe { libc::sigaction(number, std::ptr::null(), old.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the structure.
    let old = unsafe { old.assume_init() };
    Ok(old.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_ignores_pipe_and_nothing_else() {
        assert!(is_ignored(libc::SIGPIPE).unwrap());
        assert!(!is_ignored(libc::SIGUSR2).unwrap());
        assert!(is_ignored(0).is_err());
    }
}
