//! Where a guest is: how this host reaches it, and the port at which its agent listens.

use std::fmt;
use std::path::PathBuf;

/// How the host reaches the guest's vsock port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestAddress {
    /// Firecracker's Unix socket with its `CONNECT <port>` line.
    HybridVsock {
        /// Path of the Unix socket.
        uds_path: PathBuf,
    },
    /// The host kernel's AF_VSOCK (vhost-vsock).
    Vsock { cid: u32 },
    /// A plain Unix socket on which an agent listens (development and tests).
    Unix { path: PathBuf },
}

/// Where the guest's agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: GuestAddress,
    /// The agent's vsock port. Not used with a plain Unix socket.
    pub(crate) port: u32,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            GuestAddress::HybridVsock { uds_path } => {
                write!(f, "{} (port {})", uds_path.display(), self.port)
            }
            GuestAddress::Vsock { cid } => write!(f, "vsock {cid}:{}", self.port),
            GuestAddress::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}
