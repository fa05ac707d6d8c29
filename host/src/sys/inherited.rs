//! Descriptors that a parent left open by mistake.
#![expect(unsafe_code, reason = "neither std nor nix has close_range")]

use std::io;

/// Closes every descriptor except the three standard ones.
///
/// A descriptor that a shell opened, such as a lock file or a pipe, is inherited by every program
/// that it starts. The supervisor lives as long as its VM: it would keep the lock taken and the
/// pipe's reader waiting.
///
/// # Errors
///
/// On a kernel before 5.9.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: close_range takes three integers and touches no memory. It is called at the start of
    // the process, before any value owns a descriptor that it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
