//! A Unix socket at which a test takes connections until it is done.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sys::socket::{Shutdown, shutdown};

/// A listening socket with a thread that accepts, until it is dropped.
#[derive(Debug)]
pub struct Door {
    socket: PathBuf,
    listener: Arc<UnixListener>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Door {
    /// Listens at `socket`, and has `take` have each connection that comes.
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

    /// Accepts no more, and takes the socket's file away.
    pub fn close(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // Linux fails an accept that waits on a socket which is shut down.
        if shutdown(self.listener.as_raw_fd(), Shutdown::Both).is_ok() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.socket));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}
