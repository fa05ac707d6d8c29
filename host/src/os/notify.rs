//! Telling a service manager how far the service is, as `sd_notify(3)` does.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Environment variable that names the socket. A VMM shall not have it: it is not the service.
pub const VARIABLE: &str = "NOTIFY_SOCKET";

/// The service is up.
pub const READY: &str = "READY=1";

/// The service is on its way down.
pub const STOPPING: &str = "STOPPING=1";

/// Tells the service manager, if there is one that wants to know. What it makes of that is its
/// own affair; one that cannot be told is worth a warning and no more.
pub fn notify(state: &str) {
    let socket = env::var_os(VARIABLE).filter(|socket| !socket.is_empty());
    if let Some(socket) = socket
        && let Err(error) = send(&socket, state)
    {
        log::warn!("cannot tell the service manager at {VARIABLE}: {error}");
    }
}

/// Sends `state` to a socket that is named by its path, or behind an `@` by its abstract name.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => {
            let text = "the address is neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    // Datagrams of a Unix socket wait for room at the reader, which may be stuck.
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn a_path_is_told() {
        let temp = TempDir::new("notify");
        let path = temp.path().join("s");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(received(&socket), "READY=1");
    }

    #[test]
    fn an_abstract_name_is_told() {
        let name = format!("host-tool-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), STOPPING).unwrap();
        assert_eq!(received(&socket), "STOPPING=1");
    }

    #[test]
    fn what_cannot_be_told_is_an_error_and_no_wait() {
        let temp = TempDir::new("notify");
        let path = temp.path().join("s");
        assert!(send(path.as_os_str(), READY).is_err());
        assert!(send("vsock:2:1".as_ref(), READY).is_err());
        let _socket = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| send(path.as_os_str(), READY).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
