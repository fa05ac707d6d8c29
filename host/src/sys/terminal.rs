//! Queries of a terminal.
#![expect(
    unsafe_code,
    reason = "neither std nor nix reads the size of a terminal"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use shared::message::TtySize;

/// The size of the terminal behind `fd`; `None` if it is not a terminal or has no size.
pub(crate) fn size(fd: BorrowedFd<'_>) -> Option<TtySize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize where its argument points, and `size` is one that
    // lives until the call has returned. The descriptor is open for the length of the borrow.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some(TtySize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}
