//! Listening on a vsock port.
//!
//! Uses `libc`, because nix has vsock only in its `socket` feature, which would add two crates to
//! every image.

#![expect(
    unsafe_code,
    reason = "socket and bind on an address family without a safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Listens on `port` of every context id.
///
/// A restored machine may have another context id, and a listener that is bound to one id only gets
/// connections to that one.
pub(crate) fn listen(port: u32, backlog: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `socket` takes three integers and no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
    // SAFETY: `fd` was returned by `socket` just now and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_vm {
        svm_family: libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: libc::VMADDR_CID_ANY,
        svm_zero: [0; 4],
    };
    let address_len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live `sockaddr_vm` and the length is its size.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), address_len) })?;
    // SAFETY: `listen` takes two integers and no pointer.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}
