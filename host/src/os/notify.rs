//! Notifications to a service manager, as `sd_notify(3)` sends them.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Environment variable that names the socket. A VMM must not inherit it: it is not the service.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// The service is up.
pub(crate) const READY: &str = "READY=1";

/// The service is on its way down.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Notifies the service manager, if there is one. A failure is only logged: the VM runs all the
/// same.
pub(crate) fn notify(state: &str) {
    let socket = env::var_os(VARIABLE).filter(|socket| !socket.is_empty());
    if let Some(socket) = socket
        && let Err(error) = send(&socket, state)
    {
        log::warn!("cannot notify the service manager at {VARIABLE}: {error}");
    }
}

/// Sends `state` to a socket, given by its absolute path or by `@` and its abstract name.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => {
            let text = "the address is neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    // A blocking send waits until the reader has room, and the reader may be stuck.
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
    fn a_socket_at_a_path_is_notified() {
        let temp = TempDir::new("notify");
        let path = temp.path().join("s");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        assert_eq!(received(&socket), "READY=1");
    }

    #[test]
    fn a_socket_with_an_abstract_name_is_notified() {
        let name = format!("host-tool-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), STOPPING).unwrap();
        assert_eq!(received(&socket), "STOPPING=1");
    }

    #[test]
    fn a_send_that_fails_is_an_error_and_does_not_block() {
        let temp = TempDir::new("notify");
        let path = temp.path().join("s");
        assert!(send(path.as_os_str(), READY).is_err());
        assert!(send("vsock:2:1".as_ref(), READY).is_err());
        let _socket = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| send(path.as_os_str(), READY).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
