//! Connects to the API socket of a VMM that is running or starting.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use log::trace;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::VmmError;
use crate::os::deadline::{WaitError, Watch};
use crate::os::uds;

/// Between `bind` and `listen` the socket exists and refuses connections. No event marks `listen`,
/// so the next attempts come after these waits. It lasts microseconds: more than one is rare.
const LISTEN_WAIT_MIN: Duration = Duration::from_micros(50);
const LISTEN_WAIT_MAX: Duration = Duration::from_millis(1);

/// Connects to the API socket of a VMM that should be listening already.
pub(super) fn connect(socket: &Path, deadline: Instant) -> Result<UnixStream, VmmError> {
    let connected = uds::connect_unix(socket, deadline);
    connected.map_err(|source| failed(socket, source))
}

/// Connects to the API socket of a VMM that was just started, as soon as it listens.
pub(super) fn await_and_connect(socket: &Path, watch: &Watch<'_>) -> Result<UnixStream, VmmError> {
    await_listener(socket, watch).map_err(|err| match err {
        AwaitError::Process => VmmError::Gone {
            request: "its start".to_owned(),
        },
        AwaitError::Io(source) => failed(socket, source),
    })
}

fn failed(socket: &Path, source: io::Error) -> VmmError {
    VmmError::Connect {
        socket: socket.to_owned(),
        source,
    }
}

enum AwaitError {
    Process,
    Io(io::Error),
}

impl From<io::Error> for AwaitError {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

impl From<Errno> for AwaitError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<WaitError> for AwaitError {
    fn from(err: WaitError) -> Self {
        match err {
            WaitError::ProcessExited => Self::Process,
            WaitError::Deadline => Self::Io(io::Error::new(
                io::ErrorKind::TimedOut,
                "nothing listened there before the deadline",
            )),
            WaitError::Io(source) => Self::Io(source),
        }
    }
}

fn await_listener(socket: &Path, watch: &Watch<'_>) -> Result<UnixStream, AwaitError> {
    let (dir, name) = uds::split(socket)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    // Before the first attempt, so that no creation is missed between the attempt and the wait.
    inotify.add_watch(&dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    let mut listen_wait = LISTEN_WAIT_MIN;
    loop {
        match uds::connect_unix_in(&dir, &name, watch.deadline()) {
            Ok(stream) => return Ok(stream),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                watch.readable(&inotify)?;
            }
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                trace!("{} does not listen yet", socket.display());
                watch.readable_within(&inotify, listen_wait)?;
                listen_wait = (listen_wait * 2).min(LISTEN_WAIT_MAX);
            }
            Err(err) => return Err(err.into()),
        }
        drain(&inotify)?;
    }
}

/// Discards the events so far: the next attempt finds out what they tell.
fn drain(inotify: &Inotify) -> io::Result<()> {
    loop {
        match inotify.read_events() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
    };
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::testing::TempDir;

    fn far() -> Watch<'static> {
        Watch::until(Instant::now() + Duration::from_secs(30))
    }

    #[test]
    fn an_existing_socket_is_connected_at_once() {
        let temp = TempDir::new("await");
        let path = temp.path().join("api.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        await_and_connect(&path, &far()).unwrap();
        connect(&path, far().deadline()).unwrap();
    }

    #[test]
    fn a_socket_that_appears_later_is_connected_then() {
        let temp = TempDir::new("await");
        let path = temp.path().join("api.sock");
        thread::scope(|scope| {
            // The handle keeps the listener alive.
            let _listener = scope.spawn(|| {
                // Another file comes first.
                fs::write(temp.path().join("vmm.log"), "x").unwrap();
                UnixListener::bind(&path).unwrap()
            });
            await_and_connect(&path, &far()).unwrap();
        });
    }

    #[test]
    fn a_socket_that_is_bound_but_not_listening_is_waited_for() {
        let temp = TempDir::new("await");
        let path = temp.path().join("api.sock");
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        );
        let fd = fd.unwrap();
        bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| listen(&fd, Backlog::new(1).unwrap()).unwrap());
            await_and_connect(&path, &far()).unwrap();
        });
    }

    #[test]
    fn a_process_that_ends_first_ends_the_wait() {
        let temp = TempDir::new("await");
        let (process, ended) = UnixStream::pair().unwrap();
        drop(ended);
        let deadline = Instant::now() + Duration::from_secs(30);
        let watch = Watch::with_process(deadline, Some(process.as_fd()));
        let err = await_and_connect(&temp.path().join("api.sock"), &watch).unwrap_err();
        assert!(err.is_gone(), "{err}");
    }

    #[test]
    fn the_deadline_ends_the_wait() {
        let temp = TempDir::new("await");
        let watch = Watch::until(Instant::now() + Duration::from_millis(5));
        let err = await_and_connect(&temp.path().join("api.sock"), &watch).unwrap_err();
        assert!(err.is_deadline(), "{err}");
        // Also for a socket that a dead process has left.
        let path = temp.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let watch = Watch::until(Instant::now() + Duration::from_millis(5));
        assert!(await_and_connect(&path, &watch).unwrap_err().is_deadline());
    }

    #[test]
    fn a_missing_directory_is_an_error_not_a_wait() {
        let temp = TempDir::new("await");
        let err = await_and_connect(&temp.path().join("no/api.sock"), &far()).unwrap_err();
        assert!(matches!(err, VmmError::Connect { .. }), "{err:?}");
        let err = connect(&temp.path().join("api.sock"), far().deadline()).unwrap_err();
        assert!(matches!(err, VmmError::Connect { .. }), "{err:?}");
    }
}
