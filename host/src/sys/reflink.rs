//! Files that share their blocks until one of them is written to.
#![expect(unsafe_code, reason = "neither std nor nix has FICLONE")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Makes `to` a copy of `from` that shares its blocks.
///
/// # Errors
///
/// If the file system has no reflinks, or the files are on different ones. `to` is then unchanged.
pub(crate) fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor by value and touches no memory of ours. Both descriptors
    // are open for the length of the borrows.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
