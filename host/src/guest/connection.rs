//! A byte stream to the guest's agent, over hybrid vsock, vsock, or a plain Unix socket.
//!
//! Sockets are non-blocking, and every wait is a [`Watch`]'s. `SO_VM_SOCKETS_CONNECT_TIMEOUT` keeps
//! the kernel's default of two seconds, because the deadline of an attempt is shorter.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, getsockopt, socket};

use super::address::{Endpoint, GuestAddress};
use super::hybrid_vsock::{self, NotHybridVsock};
use crate::os::deadline::{WaitError, Watch};
use crate::os::uds;

/// Bytes read at once: one whole frame of output.
const READ_LEN: usize = 64 * 1024 + 8;

/// Why a connection failed.
#[derive(Debug)]
pub(crate) enum ConnectionError {
    /// It could not be opened, or it ended. Another one may succeed.
    Closed {
        /// The cause; end of file is `UnexpectedEof`.
        source: io::Error,
    },
    /// Nothing listens at the address, or nothing is there at all. Another try gives the same,
    /// unless the guest is about to come.
    Absent {
        what: Absence,
        /// The error of the system call.
        source: io::Error,
    },
    Deadline,
    VmmEnded,
    /// The answer does not come from a hybrid vsock socket with a guest agent. Another try gives
    /// the same.
    NotHybridVsock(NotHybridVsock),
    /// This program may not, or cannot, connect. Another try gives the same.
    Local {
        /// The error of the system call.
        source: io::Error,
    },
}

/// What is missing at a guest's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// There is no file at the path.
    Path,
    /// The file at the path is not a stream socket.
    Socket,
    /// No program listens on the socket.
    Listener,
    /// No VM has the vsock context id.
    Guest,
    /// The guest has no program that listens on the port.
    Port,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path => {
                "there is no such socket: check the path; 'host-tool probe --timeout 1m' waits \
                 for one that is still to come"
            }
            Self::Socket => "it is not a stream socket: check the path",
            Self::Listener => {
                "no program listens on the socket: check that its VMM or agent runs; \
                 'host-tool probe --timeout 1m' waits for one that is still to come"
            }
            Self::Guest => {
                "there is no guest with this vsock context id: check the id, and that its VM \
                 runs; 'host-tool probe --timeout 1m' waits for one that is still to come"
            }
            Self::Port => {
                "no program listens on the port in the guest: check the port, and that the \
                 guest's agent runs; 'host-tool probe --timeout 1m' waits for one that is still \
                 to come"
            }
        })
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { .. } => f.write_str("the connection to the guest ended"),
            Self::Absent { what, .. } => what.fmt(f),
            Self::Deadline => f.write_str("the guest did not answer in time"),
            Self::VmmEnded => f.write_str("the VMM has ended"),
            Self::NotHybridVsock(error) => error.fmt(f),
            Self::Local { .. } => f.write_str("cannot connect to the guest"),
        }
    }
}

impl std::error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Closed { source } | Self::Absent { source, .. } | Self::Local { source } => {
                Some(source)
            }
            Self::Deadline | Self::VmmEnded | Self::NotHybridVsock(_) => None,
        }
    }
}

impl From<WaitError> for ConnectionError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Deadline => Self::Deadline,
            WaitError::ProcessExited => Self::VmmEnded,
            WaitError::Io(source) => Self::Local { source },
        }
    }
}

/// How long a guest may refuse connections to its port. It also does so while the listener's queue
/// is full.
const REFUSALS_MAX: Duration = Duration::from_secs(1);

/// How long a process that was killed may take to end. The kernel takes its memory back first.
const DYING_MAX: Duration = Duration::from_secs(1);

/// Whether a guest that is not there is tried again.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Whether the caller waits for a guest that is still to come.
    is_awaited: bool,
    begun_at: Instant,
    was_connected: bool,
}

impl Patience {
    pub(crate) const fn new(is_awaited: bool, now: Instant) -> Self {
        Self {
            is_awaited,
            begun_at: now,
            was_connected: false,
        }
    }

    /// The guest was there, so it may come again.
    pub(crate) const fn note_connected(&mut self) {
        self.was_connected = true;
    }

    /// Turns [`ConnectionError::Absent`] into [`ConnectionError::Closed`] where another try may
    /// succeed, and into [`ConnectionError::VmmEnded`] if that is why no guest is there. A VMM that
    /// is killed closes its sockets some time before its process has ended.
    pub(crate) fn weigh(
        &self,
        error: ConnectionError,
        now: Instant,
        watch: &Watch<'_>,
    ) -> ConnectionError {
        match error {
            ConnectionError::Absent { what, source } => {
                let is_brief = what == Absence::Port && now < self.begun_at + REFUSALS_MAX;
                if self.is_awaited || self.was_connected || is_brief {
                    return ConnectionError::Closed { source };
                }
                match watch.ends_by(now + DYING_MAX) {
                    true => ConnectionError::VmmEnded,
                    false => ConnectionError::Absent { what, source },
                }
            }
            error => error,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: File,
    /// The part of the hybrid vsock answer that was read; `None` once the answer is complete.
    answer: Option<Vec<u8>>,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Connects and writes `flight`. With hybrid vsock the CONNECT line goes out in the same write.
    pub(crate) fn open(
        endpoint: &Endpoint,
        flight: &[u8],
        watch: &Watch<'_>,
    ) -> Result<Self, ConnectionError> {
        // Cleared before the request is sent, so that it does not delay the answer.
        let buffer = vec![0; READ_LEN].into_boxed_slice();
        let fd = connect_to(endpoint, watch)?;
        let line = match &endpoint.address {
            GuestAddress::HybridVsock { .. } => Some(hybrid_vsock::connect_line(endpoint.port)),
            GuestAddress::Unix { .. } | GuestAddress::Vsock { .. } => None,
        };
        let answer = line.is_some().then(Vec::new);
        let mut bytes = line.unwrap_or_default().into_bytes();
        bytes.extend_from_slice(flight);
        let mut connection = Self {
            stream: File::from(fd),
            answer,
            buffer,
        };
        connection.write_all(&bytes, watch)?;
        Ok(connection)
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(
        &mut self,
        bytes: &[u8],
        watch: &Watch<'_>,
    ) -> Result<(), ConnectionError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(len) => rest = &rest[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch.writable(&self.stream)?;
                }
                Err(source) => return Err(ConnectionError::Closed { source }),
            }
        }
        Ok(())
    }

    /// Waits for bytes of the guest and returns them. Never empty: end of file is an error.
    pub(crate) fn read(&mut self, watch: &Watch<'_>) -> Result<&[u8], ConnectionError> {
        let range = self.read_ahead(Some(watch))?;
        Ok(&self.buffer[range])
    }

    /// Reads into the buffer and returns the range of the guest's bytes. Without a watch it does
    /// not wait, and `Deadline` means that nothing has arrived.
    fn read_ahead(&mut self, watch: Option<&Watch<'_>>) -> Result<Range<usize>, ConnectionError> {
        loop {
            let len = self.read_some(watch)?;
            let Some(answer) = &mut self.answer else {
                return Ok(0..len);
            };
            answer.extend_from_slice(&self.buffer[..len]);
            let end = hybrid_vsock::parse_answer(answer);
            let Some(end) = end.map_err(ConnectionError::NotHybridVsock)? else {
                continue;
            };
            // Bytes of the guest that follow the line are at the end of this read.
            let behind = answer.len() - end;
            self.answer = None;
            if behind > 0 {
                return Ok(len - behind..len);
            }
        }
    }

    /// Bytes of the guest that have arrived; `None` if none have. Does not wait. End of file is an
    /// error.
    pub(crate) fn try_read(&mut self) -> Result<Option<&[u8]>, ConnectionError> {
        match self.read_ahead(None) {
            Ok(range) => Ok(Some(&self.buffer[range])),
            Err(ConnectionError::Deadline) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes as much of `bytes` as the socket takes without waiting.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> Result<usize, ConnectionError> {
        loop {
            match self.stream.write(bytes) {
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(source) => return Err(ConnectionError::Closed { source }),
            }
        }
    }

    /// Reads before it waits: bytes that have arrived win over the deadline and the VMM's end.
    fn read_some(&mut self, watch: Option<&Watch<'_>>) -> Result<usize, ConnectionError> {
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(ConnectionError::Closed { source });
                }
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch
                        .ok_or(ConnectionError::Deadline)?
                        .readable(&self.stream)?;
                }
                Err(source) => return Err(ConnectionError::Closed { source }),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn connect_to(endpoint: &Endpoint, watch: &Watch<'_>) -> Result<OwnedFd, ConnectionError> {
    match &endpoint.address {
        GuestAddress::HybridVsock { uds_path: path } | GuestAddress::Unix { path } => {
            connect_unix(path, watch)
        }
        GuestAddress::Vsock { cid } => connect_vsock(*cid, endpoint.port, watch),
    }
}

fn connect_unix(path: &Path, watch: &Watch<'_>) -> Result<OwnedFd, ConnectionError> {
    match uds::connect_unix(path, watch.deadline()) {
        Ok(stream) => Ok(stream.into()),
        Err(source) => Err(match absence(path, &source) {
            Some(what) => ConnectionError::Absent { what, source },
            None => refine(source),
        }),
    }
}

/// What is missing at `path`, by the error of a connect to it.
fn absence(path: &Path, error: &io::Error) -> Option<Absence> {
    match error.raw_os_error()? {
        libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => Some(Absence::Path),
        // Linux refuses a connection to a file of any other type, too.
        libc::ECONNREFUSED => Some(match fs::metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => Absence::Socket,
            Ok(_) | Err(_) => Absence::Listener,
        }),
        libc::EPROTOTYPE => Some(Absence::Socket),
        _ => None,
    }
}

/// Opens a vsock connection. It stays pending while the guest's driver is not up.
fn connect_vsock(cid: u32, port: u32, watch: &Watch<'_>) -> Result<OwnedFd, ConnectionError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None).map_err(|errno| {
        ConnectionError::Local {
            source: errno.into(),
        }
    })?;
    match connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
        Ok(()) => return Ok(fd),
        Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(errno) => return Err(refine_vsock(errno.into())),
    }
    watch.writable(&fd)?;
    match getsockopt(&fd, SocketError) {
        Ok(0) => Ok(fd),
        Ok(errno) => Err(refine_vsock(io::Error::from_raw_os_error(errno))),
        Err(errno) => Err(ConnectionError::Local {
            source: errno.into(),
        }),
    }
}

fn refine_vsock(source: io::Error) -> ConnectionError {
    let what = match source.raw_os_error() {
        Some(libc::ENODEV) => Absence::Guest,
        Some(libc::ECONNRESET) => Absence::Port,
        _ => return refine(source),
    };
    ConnectionError::Absent { what, source }
}

/// Tells a failure that a guest which is still booting explains from a permanent one.
fn refine(source: io::Error) -> ConnectionError {
    match source.kind() {
        io::ErrorKind::TimedOut => ConnectionError::Deadline,
        io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
            ConnectionError::Local { source }
        }
        _ if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            ConnectionError::Local { source }
        }
        _ => ConnectionError::Closed { source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sys::pidfd;
    use crate::testing::TempDir;

    fn far() -> Watch<'static> {
        Watch::until(Instant::now() + Duration::from_secs(30))
    }

    /// Opens a hybrid vsock connection to a peer that reads the flight and then answers `answer`,
    /// piece by piece.
    fn hybrid(answer: &[&[u8]]) -> (TempDir, Connection, std::os::unix::net::UnixStream) {
        let temp = TempDir::new("connection");
        let uds_path = temp.path().join("v.sock");
        let listener = UnixListener::bind(&uds_path).unwrap();
        let endpoint = Endpoint {
            address: GuestAddress::HybridVsock { uds_path },
            port: 5252,
        };
        let connection = Connection::open(&endpoint, b"flight", &far()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        let len = peer.read(&mut request).unwrap();
        assert_eq!(
            &request[..len],
            b"CONNECT 5252\nflight",
            "one read sees one write"
        );
        for piece in answer {
            peer.write_all(piece).unwrap();
        }
        (temp, connection, peer)
    }

    #[test]
    fn the_answer_line_is_not_the_guests() {
        let (_temp, mut connection, mut peer) = hybrid(&[b"OK 1073741824\nhello"]);
        assert_eq!(connection.read(&far()).unwrap(), b"hello");
        peer.write_all(b"OK 1\n").unwrap();
        assert_eq!(connection.read(&far()).unwrap(), b"OK 1\n");
    }

    #[test]
    fn the_end_of_file_without_a_line_is_a_closed_connection() {
        let (_temp, mut connection, peer) = hybrid(&[b"OK"]);
        drop(peer);
        let error = connection.read(&far()).unwrap_err();
        assert!(matches!(error, ConnectionError::Closed { .. }), "{error:?}");
    }

    #[test]
    fn another_service_is_told_apart() {
        let (_temp, mut connection, _peer) = hybrid(&[b"HTTP/1.1 400 Bad Request\r\n"]);
        let error = connection.read(&far()).unwrap_err();
        assert!(
            matches!(error, ConnectionError::NotHybridVsock(_)),
            "{error:?}"
        );
    }

    #[test]
    fn silence_ends_with_the_deadline() {
        let (_temp, mut connection, _peer) = hybrid(&[b"OK 1\n"]);
        let soon = Watch::until(Instant::now() + Duration::from_millis(5));
        let error = connection.read(&soon).unwrap_err();
        assert!(matches!(error, ConnectionError::Deadline), "{error:?}");
    }

    /// Opens a connection to this path.
    fn open(path: PathBuf) -> ConnectionError {
        let endpoint = Endpoint {
            address: GuestAddress::Unix { path },
            port: 0,
        };
        Connection::open(&endpoint, b"", &far()).unwrap_err()
    }

    #[test]
    fn what_is_missing_is_told() {
        let temp = TempDir::new("connection");
        let path = |name| temp.path().join(name);
        drop(UnixListener::bind(path("left")).unwrap());
        let _other = UnixDatagram::bind(path("datagrams")).unwrap();
        fs::write(path("file"), "").unwrap();
        for (name, expected) in [
            ("none", Absence::Path),
            ("none/s", Absence::Path),
            ("file/s", Absence::Path),
            ("file", Absence::Socket),
            (".", Absence::Socket),
            ("datagrams", Absence::Socket),
            ("left", Absence::Listener),
        ] {
            match open(path(name)) {
                ConnectionError::Absent { what, .. } => assert_eq!(what, expected, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn only_a_guest_that_may_come_is_tried_again() {
        let now = Instant::now();
        let is_tried = |patience: &Patience, what, now| {
            let source = io::ErrorKind::NotFound.into();
            let watch = Watch::until(now);
            let error = patience.weigh(ConnectionError::Absent { what, source }, now, &watch);
            matches!(error, ConnectionError::Closed { .. })
        };
        let mut patience = Patience::new(false, now);
        for what in [
            Absence::Path,
            Absence::Socket,
            Absence::Listener,
            Absence::Guest,
        ] {
            assert!(!is_tried(&patience, what, now), "{what:?}");
            assert!(is_tried(&Patience::new(true, now), what, now), "{what:?}");
        }
        let late = now + REFUSALS_MAX;
        assert!(is_tried(&patience, Absence::Port, now));
        assert!(!is_tried(&patience, Absence::Port, late));
        patience.note_connected();
        assert!(is_tried(&patience, Absence::Path, late));
    }

    /// A VMM that was killed has closed its sockets, and its process has not ended yet.
    #[test]
    fn a_guest_is_missing_because_its_vmm_ends() {
        let mut vmm = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat starts");
        let pidfd = pidfd::open(i32::try_from(vmm.id()).unwrap()).unwrap();
        let watch = Watch::with_process(Instant::now(), Some(pidfd.as_fd()));
        for is_alive in [true, false] {
            if !is_alive {
                // It ends after this, and perhaps not at once.
                drop(vmm.stdin.take());
            }
            let (what, source) = (Absence::Guest, io::ErrorKind::NotFound.into());
            let error = ConnectionError::Absent { what, source };
            let now = Instant::now();
            let error = Patience::new(false, now).weigh(error, now, &watch);
            match error {
                ConnectionError::Absent { .. } => assert!(is_alive),
                ConnectionError::VmmEnded => assert!(!is_alive),
                other => panic!("{other:?}"),
            }
        }
        vmm.wait().unwrap();
    }
}
