//! A Unix socket whose connections a test handles until it is done.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sys::socket::{Shutdown, shutdown};

/// A listening socket with a thread that accepts, until it is dropped.
#[derive(Debug)]
pub struct Acceptor {
    socket: PathBuf,
    listener: Arc<UnixListener>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    /// Listens at `socket`, and gives each connection to `take`.
    pub fn open(socket: PathBuf, mut take: impl FnMut(UnixStream) + Send + 'static) -> Self {
        let listener = Arc::new(UnixListener::bind(&socket).expect("a free path"));
        let of_thread = Arc::clone(&listener);
        let accept = move || {
            let clients = of_thread.incoming().map_while(Result::ok);
            clients.for_each(&mut take);
        };
        Self {
            socket,
            listener,
            thread: Some(thread::spawn(accept)),
        }
    }

    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops accepting, and removes the socket's file.
    pub fn close(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // On Linux, shutting a listening socket down fails an accept that waits on it.
        if shutdown(self.listener.as_raw_fd(), Shutdown::Both).is_ok() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.socket));
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.close();
    }
}
