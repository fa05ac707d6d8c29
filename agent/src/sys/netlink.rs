//! The rtnetlink socket.
//!
//! The kernel answers within the call that sends a request, and continues a dump within each call
//! that receives a part of it. So an answer is available at once or never: the socket is
//! non-blocking and is not polled.

#![expect(unsafe_code, reason = "AF_NETLINK addresses are beyond std and nix")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{check, check_len};

/// Most bytes of a datagram of the kernel.
const DATAGRAM_LEN_MAX: usize = 32 * 1024;

#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket without multicast groups, so that it only receives answers.
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

    /// Sends a request to the kernel, the default destination of an unconnected socket.
    pub(crate) fn send(&self, request: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of one live slice.
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

    /// Receives one datagram. `WouldBlock` means that there is none.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        // SAFETY: an all-zero `sockaddr_nl` is a valid value of that plain C struct.
        let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let size = libc::socklen_t::try_from(size_of_val(&from)).map_err(io::Error::other)?;
        loop {
            let mut from_len = size;
            // SAFETY: the three pointers are to live values that nothing else uses during the call,
            // and the lengths are those of the two buffers.
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
            // Other processes can send to this socket too. The kernel's port is 0.
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
