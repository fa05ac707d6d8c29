//! Descriptors that a parent left open by mistake.
#![expect(unsafe_code, reason = "neither std nor nix has close_range")]

use std::io;

/// Closes every descriptor but the three standard ones.
///
/// A shell that opened a lock or a pipe hands it on to all that it starts. In a process that stays
/// for as long as a VM does, it would keep that lock taken and that pipe's reader waiting.
///
/// # Errors
///
/// On a kernel before 5.9.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: close_range takes three integers and touches no memory. It is called at the very
    // start of the process, before anything in it has opened a descriptor and believes to own it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
