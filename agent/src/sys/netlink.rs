//! The kernel's routing socket.
//!
//! The kernel answers within the call that sends a request, and goes on with a dump within each
//! call that takes a part of it. So what is not there when it is asked for never comes: the socket
//! is non-blocking, and nobody waits for it.

#![expect(unsafe_code, reason = "AF_NETLINK addresses are beyond std and nix")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{check, check_len};

/// Most bytes of one datagram: the kernel makes none that are longer.
const DATAGRAM_LEN_MAX: usize = 32 * 1024;

/// A socket of rtnetlink.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one. It belongs to no group, so that it gets answers only.
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: `socket` takes three integers and no pointer.
        let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        Ok(Self {
            // SAFETY: `fd` was returned by `socket` just now and nothing else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            buffer: vec![0; DATAGRAM_LEN_MAX],
        })
    }

    /// Sends a request to the kernel, to which an unconnected socket of this family sends.
    pub(crate) fn send(&self, request: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer is to `request`, which lives on, and the length is its length.
        let sent = check_len(unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
            )
        })?;
        if sent == request.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Takes one datagram. `WouldBlock` means that the kernel has no more to say.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        // SAFETY: an all-zero `sockaddr_nl` is a valid value of that plain C struct.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let size = libc::socklen_t::try_from(size_of_val(&from)).map_err(io::Error::other)?;
        loop {
            let mut from_len = size;
            // SAFETY: the three pointers are to live values that nothing else uses meanwhile, and
            // the lengths say how large the two buffers are.
            let len = check_len(unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            })?;
            // Other processes of the machine could send here as well. The kernel is port 0.
            if from.nl_pid != 0 {
                continue;
            }
            return self
                .buffer
                .get(..len)
                .ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
}
