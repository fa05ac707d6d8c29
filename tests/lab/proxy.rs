//! A Unix socket in front of a guest's agent, whose connections a test can cut.
//!
//! It speaks hybrid vsock or vsock to the guest, so that `host-tool --unix` reaches a real machine
//! through it. A cut closes both ends, as when a transport is lost.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, VsockAddr, connect, shutdown, socket,
};

use tests::acceptor::Acceptor;

use crate::machine::{Machine, Vmm};

const PORT: u32 = 5252;

#[derive(Debug, Clone)]
enum Upstream {
    Hybrid(PathBuf),
    Vsock(u32),
}

/// The connections through a proxy.
#[derive(Debug, Default)]
struct Connections {
    /// Both ends of each open connection.
    open: Mutex<Vec<(OwnedFd, OwnedFd)>>,
    /// Signalled for each new connection.
    opened: Condvar,
}

impl Connections {
    fn push(&self, pair: (OwnedFd, OwnedFd)) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(pair);
        self.opened.notify_all();
    }

    /// Closes all connections once there are `count_min`.
    fn cut(&self, count_min: usize) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut open, timeout) = self
            .opened
            .wait_timeout_while(open, tests::DEADLINE, |open| open.len() < count_min)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "no client connected");
        for (one, other) in open.drain(..) {
            // An end that the peer has closed already is shut down as well.
            let _ = shutdown(one.as_raw_fd(), Shutdown::Both);
            let _ = shutdown(other.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// A running proxy. When dropped, it removes its socket and closes its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    connections: Arc<Connections>,
    acceptor: Acceptor,
}

impl Proxy {
    pub(crate) fn start(machine: &Machine, name: &str) -> Self {
        let upstream = upstream(machine, name);
        let connections = Arc::new(Connections::default());
        let kept = Arc::clone(&connections);
        let relay = move |client| relay(client, &upstream, &kept);
        let acceptor = Acceptor::open(machine.path("proxy.sock"), relay);
        Self {
            connections,
            acceptor,
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        self.acceptor.socket()
    }

    /// Cuts all connections. First waits for one: a client that was cut may still be reading its
    /// output and not have connected again.
    pub(crate) fn cut(&self) {
        self.connections.cut(1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.close();
        self.connections.cut(0);
    }
}

fn upstream(machine: &Machine, name: &str) -> Upstream {
    let record = machine.tool(["inspect", name, "--json"]).exits(0).json();
    match machine.vmm {
        Vmm::Firecracker => Upstream::Hybrid(machine.state_dir().join(name).join("vsock.sock")),
        Vmm::Qemu => {
            let cid = record["state"]["machine"]["guest_cid"].as_u64().unwrap();
            Upstream::Vsock(u32::try_from(cid).unwrap())
        }
    }
}

/// Connects one client to the guest, and copies bytes both ways until one end closes.
fn relay(client: UnixStream, upstream: &Upstream, connections: &Connections) {
    let Some(guest) = open(upstream) else {
        return;
    };
    let client = OwnedFd::from(client);
    let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
    connections.push((copy(&client), copy(&guest)));
    let directions = [(copy(&client), copy(&guest)), (guest, client)];
    for (from, to) in directions {
        thread::spawn(move || {
            let (mut from, mut to) = (File::from(from), File::from(to));
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(len @ 1..) = from.read(&mut bytes) {
                if to.write_all(&bytes[..len]).is_err() {
                    break;
                }
            }
            let _ = shutdown(from.as_fd().as_raw_fd(), Shutdown::Both);
            let _ = shutdown(to.as_fd().as_raw_fd(), Shutdown::Both);
        });
    }
}

fn open(upstream: &Upstream) -> Option<OwnedFd> {
    match upstream {
        Upstream::Hybrid(path) => {
            let mut stream = UnixStream::connect(path).ok()?;
            stream
                .write_all(format!("CONNECT {PORT}\n").as_bytes())
                .ok()?;
            let mut byte = [0];
            // Byte by byte, since the bytes after the line belong to the client.
            while byte != *b"\n" {
                stream.read_exact(&mut byte).ok()?;
            }
            Some(stream.into())
        }
        Upstream::Vsock(cid) => {
            let (family, kind) = (AddressFamily::Vsock, SockType::Stream);
            let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).ok()?;
            connect(fd.as_raw_fd(), &VsockAddr::new(*cid, PORT)).ok()?;
            Some(fd)
        }
    }
}
