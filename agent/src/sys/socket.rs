//! Listening and connected stream sockets of the agent's two address families.

#![expect(
    unsafe_code,
    reason = "socket calls on addresses that std and nix do not cover"
)]

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

use super::file::{Last, trusted};
use super::source::source_by_fd;
use super::{check, check_len, vsock};

/// Most pieces of one write; the rest is left for the next one.
const PIECES_MAX: usize = 24;

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A vsock port, on every context id.
    Vsock { port: u32 },
    /// A Unix stream socket.
    Unix {
        /// The socket file. The listener creates it, and removes it when dropped.
        path: PathBuf,
        access: Access,
    },
}

/// Who may connect to a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The agent's own user, and root.
    Own,
    /// Every user.
    Any,
}

impl Access {
    /// What bind(2) leaves out of the mode of the socket file.
    const fn umask(self) -> Mode {
        match self {
            Self::Own => Mode::from_bits_retain(0o177),
            Self::Any => Mode::from_bits_retain(0o111),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { port } => write!(f, "vsock:{port}"),
            Self::Unix { path, access } => match access {
                Access::Own => write!(f, "unix:{}", path.display()),
                Access::Any => write!(f, "unix-any:{}", path.display()),
            },
        }
    }
}

/// The identity of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Vsock {
        /// Its context id; 2 is the host.
        cid: u32,
    },
    Unix {
        /// Its effective user id when it connected.
        uid: u32,
        /// Whether the listener is for this user.
        is_permitted: bool,
    },
}

/// A listening socket. Non-blocking, close-on-exec.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    address: Address,
    /// The agent's user.
    own_uid: u32,
    /// Device and inode of a Unix socket's file.
    inode: Option<(u64, u64)>,
}

/// How long a child of a killed agent may hold its listener, ms.
const HOLDER_TIMEOUT: u16 = 1_000;

impl Listener {
    /// Binds and listens. Replaces a socket file on which no process listens.
    pub(crate) fn bind(address: &Address, backlog: libc::c_int) -> io::Result<Self> {
        let fd = match address {
            Address::Vsock { port } => vsock::listen(*port, backlog)?,
            Address::Unix { path, access } => listen_unix(path, *access, backlog)?,
        };
        Ok(Self {
            fd,
            address: address.clone(),
            own_uid: geteuid().as_raw(),
            inode: match address {
                Address::Vsock { .. } => None,
                Address::Unix { path, .. } => inode(path),
            },
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts one connection. `WouldBlock` means that the queue is empty.
    pub(crate) fn accept(&self) -> io::Result<(Stream, Peer)> {
        // Large and aligned enough for both families. SAFETY: an all-zero `sockaddr_storage` is a
        // valid value of that plain C struct.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut storage_len = socklen_of::<libc::sockaddr_storage>()?;
        // SAFETY: both pointers are to live values, and the length says how large the first one is.
        let fd = check(unsafe {
            libc::accept4(
                self.fd.as_raw_fd(),
                (&raw mut storage).cast(),
                &raw mut storage_len,
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        })?;
        // SAFETY: `fd` was returned by `accept4` just now and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let stream = Stream { fd };
        let peer = match &self.address {
            Address::Vsock { .. } => {
                // SAFETY: the kernel filled the storage with an address of the listener's family,
                // and `sockaddr_storage` is large and aligned enough for it.
                let address = unsafe { *(&raw const storage).cast::<libc::sockaddr_vm>() };
                Peer::Vsock {
                    cid: address.svm_cid,
                }
            }
            Address::Unix { access, .. } => {
                let uid = stream.peer_uid()?;
                let is_permitted = *access == Access::Any || uid == self.own_uid || uid == 0;
                Peer::Unix { uid, is_permitted }
            }
        };
        Ok((stream, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix { path, .. } = &self.address
            // Another file may have taken the name.
            && self.inode.is_some()
            && self.inode == inode(path)
        {
            // A failure does not matter: the next start replaces the file.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connected socket. Non-blocking, close-on-exec.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
}

impl Stream {
    /// Reads what is available. Zero means that the peer has closed.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of one live, writable slice.
        check_len(unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        })
    }

    /// Writes as much of the pieces as fits. A closed peer is an error, not a signal.
    pub(crate) fn write(&self, pieces: &[&[u8]]) -> io::Result<usize> {
        // Answers are single pieces, and this call costs less.
        if let &[bytes] = pieces {
            // SAFETY: the pointer and the length are those of one live slice.
            return check_len(unsafe {
                libc::send(
                    self.fd.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_NOSIGNAL,
                )
            });
        }
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let count = pieces.len().min(PIECES_MAX);
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
        }
        // SAFETY: an all-zero `msghdr` is a valid value of that plain C struct: no address and no
        // control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = slices.as_mut_ptr().cast();
        // The type of this field differs between C libraries.
        message.msg_iovlen = count as _;
        // SAFETY: the message and the first `count` slices are live; `IoSlice` has the layout of
        // `iovec`.
        check_len(unsafe {
            libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        })
    }

    /// The user id of a Unix peer.
    fn peer_uid(&self) -> io::Result<u32> {
        let mut credentials = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut len = socklen_of::<libc::ucred>()?;
        // SAFETY: both pointers are to live values, and the length says how large the first one is.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut len,
            )
        })?;
        Ok(credentials.uid)
    }
}

/// Binds a Unix stream socket. Replaces a socket file of this user on which no process listens. No
/// other user can lead the path elsewhere.
fn listen_unix(path: &Path, access: Access, backlog: libc::c_int) -> io::Result<OwnedFd> {
    // A path of one name has an empty parent.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = trusted(folder.unwrap_or_else(|| Path::new(".")), Last::Folder)?;
    let path = &folder.join(path.file_name().unwrap_or_default());
    let address = unix_address(path)?;
    let fd = unix_socket()?;
    match bind_unix(&fd, &address, access) {
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
            check_socket(path)?;
            if !is_abandoned(&address)? {
                return Err(err);
            }
            std::fs::remove_file(path)?;
            bind_unix(&fd, &address, access)?;
        }
        result => result?,
    }
    // SAFETY: `listen` takes two integers and no pointer.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}

/// Whether no process listens. Only a refused connection proves that; a full queue does not.
///
/// Of an agent that was killed, a child that it was just starting holds the listener until it
/// executes its program. A connection to that one is made, and is reset then.
fn is_abandoned(address: &libc::sockaddr_un) -> io::Result<bool> {
    let probe = unix_socket()?;
    let mut result = connect_unix(&probe, address);
    if result.is_ok() {
        let mut ends = [PollFd::new(probe.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ends, HOLDER_TIMEOUT)? > 0 {
            result = connect_unix(&unix_socket()?, address);
        }
    }
    Ok(matches!(result, Err(err) if err.kind() == io::ErrorKind::ConnectionRefused))
}

/// Fails unless the path is a socket file of this user. connect(2) refuses other files in the same
/// way as a socket without a listener, and follows a link.
fn check_socket(path: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    let text = if !found.file_type().is_socket() {
        "there is a file that is not a socket; it is left alone"
    } else if found.uid() != geteuid().as_raw() {
        "there is a socket of another user; it is left alone"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `socket` takes three integers and no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: `fd` was returned by `socket` just now and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind_unix(fd: &OwnedFd, address: &libc::sockaddr_un, access: Access) -> io::Result<()> {
    let len = socklen_of::<libc::sockaddr_un>()?;
    // The file has its mode from the start. A chmod afterwards could meet another file.
    let before = umask(access.umask());
    // SAFETY: the pointer is to a live `sockaddr_un` whose path is zero-terminated; the length is
    // its size.
    let bound = check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const *address).cast(), len) });
    umask(before);
    bound.map(drop)
}

fn connect_unix(fd: &OwnedFd, address: &libc::sockaddr_un) -> io::Result<()> {
    let len = socklen_of::<libc::sockaddr_un>()?;
    // SAFETY: as for `bind`.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const *address).cast(), len) })?;
    Ok(())
}

fn unix_address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: an all-zero `sockaddr_un` is a valid value of that plain C struct.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let bytes = path.as_os_str().as_bytes();
    // One byte stays zero as the terminator.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "socket path is empty or too long",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    Ok(address)
}

fn socklen_of<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)
}

source_by_fd!(Listener, fd);
source_by_fd!(Stream, fd);

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("guest-agent-{name}-{}", std::process::id()))
    }

    fn own(path: &Path) -> Address {
        Address::Unix {
            path: path.to_owned(),
            access: Access::Own,
        }
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let path = scratch("file");
        let bait = scratch("bait");
        std::fs::write(&bait, "x").unwrap();
        let puts: [&dyn Fn(); 3] = [
            &|| std::fs::write(&path, "x").unwrap(),
            &|| std::os::unix::fs::symlink(&bait, &path).unwrap(),
            &|| nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap(),
        ];
        for put in puts {
            put();
            let err = Listener::bind(&own(&path), 8).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::AlreadyExists);
            assert!(path.symlink_metadata().is_ok(), "it was removed");
            std::fs::remove_file(&path).unwrap();
        }
        // A link to a socket that is dead.
        drop(std::os::unix::net::UnixListener::bind(scratch("dead")).unwrap());
        std::os::unix::fs::symlink(scratch("dead"), &path).unwrap();
        Listener::bind(&own(&path), 8).unwrap_err();
        assert!(scratch("dead").exists() && path.is_symlink());
        for path in [path, scratch("dead")] {
            std::fs::remove_file(path).unwrap();
        }
        assert_eq!(std::fs::read(&bait).unwrap(), b"x");
        std::fs::remove_file(bait).unwrap();
    }

    #[test]
    fn the_mode_of_a_socket_follows_from_its_access() {
        let path = scratch("mode");
        for (access, expected) in [(Access::Own, 0o600), (Access::Any, 0o666)] {
            let path = path.clone();
            let address = Address::Unix { path, access };
            let _listener = Listener::bind(&address, 8).unwrap();
            let mode = scratch("mode").metadata().unwrap().mode();
            assert_eq!(mode & 0o777, expected);
        }
    }

    #[track_caller]
    fn assert_flags(fd: &OwnedFd) {
        let descriptor = fcntl(fd, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(descriptor).contains(FdFlag::FD_CLOEXEC));
        let status = fcntl(fd, FcntlArg::F_GETFL).unwrap();
        assert!(OFlag::from_bits_retain(status).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn sockets_are_nonblocking_and_close_on_exec() {
        let path = scratch("flags");
        let address = own(&path);
        let listener = Listener::bind(&address, 8).unwrap();
        assert_flags(&listener.fd);
        let client = unix_socket().unwrap();
        connect_unix(&client, &unix_address(&path).unwrap()).unwrap();
        let (stream, _peer) = listener.accept().unwrap();
        assert_flags(&stream.fd);
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_file_without_a_listener_is_replaced() {
        let path = scratch("stale");
        let address = own(&path);
        // std's listener leaves its file behind when it is dropped.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Listener::bind(&address, 8).unwrap();
        let err = Listener::bind(&address, 8).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::AddrInUse);
        drop(live);
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let len_max = 107;
        assert!(unix_address(Path::new(&"x".repeat(len_max))).is_ok());
        assert!(unix_address(Path::new(&"x".repeat(len_max + 1))).is_err());
        assert!(unix_address(Path::new("")).is_err());
    }
}
