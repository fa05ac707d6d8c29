//! Connects to Unix sockets, under a deadline and at a path of any length.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};

/// Connects to the socket `name` in the directory `dir`. The stream is non-blocking and
/// close-on-exec.
///
/// `sockaddr_un` holds a path of at most 107 bytes, and a state directory's path can be longer.
/// Such a socket is reached through an open descriptor of its directory, under `/proc/self/fd`.
///
/// A connect blocks only while the listener's backlog is full. At the deadline it fails with
/// [`io::ErrorKind::TimedOut`], and with `ConnectionRefused` if the listener goes away meanwhile.
pub(crate) fn connect_unix_in(dir: &Path, name: &str, deadline: Instant) -> io::Result<UnixStream> {
    let (address, _dir_fd) = address_in(dir, name)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero means "for ever" to the kernel: a deadline that has passed becomes 1 µs.
        let left_us = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&fd, SendTimeout, &TimeVal::microseconds(left_us))?;
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the listener's backlog stayed full",
                ));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    setsockopt(&fd, SendTimeout, &TimeVal::microseconds(0))?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Like [`connect_unix_in`], for a whole path.
pub(crate) fn connect_unix(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let (dir, name) = split(path)?;
    connect_unix_in(&dir, &name, deadline)
}

/// Splits a socket's path into its directory and its name.
pub(crate) fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path does not name a socket",
            )
        })?;
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    Ok((dir.to_path_buf(), name.to_owned()))
}

/// The address, and a descriptor of `dir` that must stay open until the connect.
fn address_in(dir: &Path, name: &str) -> io::Result<(UnixAddr, Option<OwnedFd>)> {
    match UnixAddr::new(&dir.join(name)) {
        Ok(address) => Ok((address, None)),
        Err(Errno::ENAMETOOLONG) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let dir_fd = open(dir, flags, Mode::empty())?;
            let short = format!("/proc/self/fd/{}/{name}", dir_fd.as_raw_fd());
            Ok((UnixAddr::new(short.as_str())?, Some(dir_fd)))
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::os::deadline::Watch;
    use crate::testing::TempDir;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn connects_at_every_length_of_path() {
        let temp = TempDir::new("uds");
        for padding in [1, 60, 107, 200] {
            let dir = temp.path().join("d".repeat(padding));
            fs::create_dir(&dir).unwrap();
            // The listener has the same limit, and binds through a short alias.
            let alias = temp.path().join("alias");
            std::os::unix::fs::symlink(&dir, &alias).unwrap();
            let listener = UnixListener::bind(alias.join("s")).unwrap();
            fs::remove_file(&alias).unwrap();

            let mut stream = connect_unix_in(&dir, "s", far()).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(b"x").unwrap();
            Watch::until(far()).readable(&stream).unwrap();
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 1);
            connect_unix(&dir.join("s"), far()).unwrap();
        }
    }

    #[test]
    fn the_stream_never_blocks() {
        let temp = TempDir::new("uds");
        let _listener = UnixListener::bind(temp.path().join("s")).unwrap();
        let mut stream = connect_unix_in(temp.path(), "s", far()).unwrap();
        assert_eq!(
            stream.read(&mut [0; 8]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_missing_socket_differs_from_one_without_a_listener() {
        let temp = TempDir::new("uds");
        let kind = |name| {
            connect_unix_in(temp.path(), name, far())
                .unwrap_err()
                .kind()
        };
        assert_eq!(kind("s"), io::ErrorKind::NotFound);
        drop(UnixListener::bind(temp.path().join("s")).unwrap());
        assert_eq!(kind("s"), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_backlog_ends_with_the_deadline() {
        let temp = TempDir::new("uds");
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        nix::sys::socket::bind(
            fd.as_raw_fd(),
            &UnixAddr::new(&temp.path().join("s")).unwrap(),
        )
        .unwrap();
        nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _first = connect_unix_in(temp.path(), "s", far()).unwrap();
        let soon = Instant::now() + Duration::from_millis(5);
        let err = connect_unix_in(temp.path(), "s", soon).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let split = |path| split(Path::new(path)).map_err(|err| err.kind());
        assert_eq!(split("/run/a.sock"), Ok(("/run".into(), "a.sock".into())));
        assert_eq!(split("a.sock"), Ok((".".into(), "a.sock".into())));
        assert_eq!(split("/"), Err(io::ErrorKind::InvalidInput));
    }
}
