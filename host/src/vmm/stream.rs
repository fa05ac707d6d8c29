//! The bytes of an API socket: each wait for them ends with the deadline or with the VMM.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::VmmError;
use crate::os::deadline::Watch;

/// This program's end of an API socket, non-blocking, and the VMM's pidfd, if known.
///
/// `request` names the call in errors.
#[derive(Debug)]
pub(super) struct ApiStream {
    stream: UnixStream,
    process: Option<OwnedFd>,
}

impl ApiStream {
    pub(super) const fn new(stream: UnixStream, process: Option<OwnedFd>) -> Self {
        Self { stream, process }
    }

    fn watch(&self, deadline: Instant) -> Watch<'_> {
        Watch::with_process(deadline, self.process.as_ref().map(AsFd::as_fd))
    }

    /// Sends all of `bytes`, and `fd` together with the first one.
    pub(super) fn send(
        &self,
        mut bytes: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
        request: &str,
        deadline: Instant,
    ) -> Result<(), VmmError> {
        while !bytes.is_empty() {
            let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &[] } else { &rights[..] };
            let iov = [IoSlice::new(bytes)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &iov, control, flags, None) {
                Ok(len) => {
                    bytes = &bytes[len..];
                    fd = None;
                }
                Err(Errno::EAGAIN) => {
                    let waited = self.watch(deadline).writable(&self.stream);
                    waited.map_err(|error| VmmError::wait_failed(request, error))?;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(VmmError::transfer_failed(request, errno.into())),
            }
        }
        Ok(())
    }

    /// Appends the next bytes to `received`. Returns `false` if none came within `slice`.
    pub(super) fn receive(
        &mut self,
        received: &mut Vec<u8>,
        slice: Option<Duration>,
        request: &str,
        deadline: Instant,
    ) -> Result<bool, VmmError> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(VmmError::gone(request)),
                Ok(len) => {
                    received.extend_from_slice(&chunk[..len]);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let watch = self.watch(deadline);
                    let is_ready = match slice {
                        None => watch.readable(&self.stream).map(|()| true),
                        Some(slice) => watch.readable_within(&self.stream, slice),
                    };
                    if !is_ready.map_err(|error| VmmError::wait_failed(request, error))? {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(VmmError::transfer_failed(request, source)),
            }
        }
    }
}
