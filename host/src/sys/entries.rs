//! The entries of a directory.
#![expect(
    unsafe_code,
    reason = "std and nix read directories through values whose drop can panic"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Fills `buffer` with the next entries of a directory, as `getdents64(2)` lays them out. Returns
/// the number of bytes; 0 at the end.
///
/// `fs::ReadDir` and `nix::dir::Dir` close their descriptor when they are dropped, and panic when
/// the close fails. A close fails on file systems that report errors late, such as NFS and FUSE.
pub(crate) fn read(dir: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = dir.as_raw_fd();
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which this function has
    // borrowed mutably, and the descriptor is open for the length of its borrow.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}
