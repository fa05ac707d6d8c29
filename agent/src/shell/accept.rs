//! Accepting, and the listener's place in the poll set.

use std::fs::File;
use std::io;

use log::{debug, warn};
use mio::Interest;
use shared::limits::CID_HOST;

use super::{Shell, Source, Turn};
use crate::sys::socket::{Listener, Peer};

/// Connections that the kernel queues for the agent. A host that meets a full queue tries again.
pub(super) const BACKLOG: libc::c_int = 1024;

/// Connections taken in one turn; more are taken in the next.
const ACCEPTS_PER_TURN_MAX: usize = 256;

impl Shell {
    /// Accepts until the queue is empty. A dead child in the queue hides live ones after it.
    pub(crate) fn drain_accept(&mut self, turn: &mut Turn<'_>) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    let is_permitted = is_permitted(peer);
                    if !is_permitted {
                        debug!("closed a connection of {peer:?}, which is not the host");
                    }
                    if let Some(id) = turn.agent.handle_accepted(is_permitted, turn.now) {
                        let is_vsock = matches!(peer, Peer::Vsock { .. });
                        self.insert_connection(id, stream, is_vsock, turn);
                    }
                }
                Err(err) => match err.raw_os_error() {
                    Some(libc::EAGAIN) => return,
                    Some(libc::EINTR | libc::ECONNABORTED) => {}
                    // Without a free descriptor, the kernel fails before it looks at the queue.
                    Some(libc::EMFILE | libc::ENFILE) => match self.shed_connection() {
                        Shed::Closed => turn.agent.handle_accept_shed(),
                        Shed::NoneQueued => return,
                        Shed::Failed => return turn.agent.handle_accept_failed(turn.now),
                    },
                    _ => {
                        debug!("cannot accept: {err}");
                        return turn.agent.handle_accept_failed(turn.now);
                    }
                },
            }
        }
        self.push_ready(Source::Listener);
    }

    /// Accepts programs of the guest. A reset does not cut them, so only an event leads here, or a
    /// look after one that brought nothing. Returns whether anything came.
    pub(super) fn drain_local(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut has_accepted = false;
        while let Some(local) = &self.local {
            match local.listener.accept() {
                Ok((stream, _)) => {
                    has_accepted = true;
                    if let Some(id) = turn.agent.handle_local_accepted(turn.now) {
                        self.insert_connection(id, stream, false, turn);
                    }
                }
                Err(err) => match err.raw_os_error() {
                    Some(libc::EAGAIN) => return has_accepted,
                    Some(libc::EINTR | libc::ECONNABORTED) => {}
                    _ => {
                        debug!("cannot accept a program of this machine: {err}");
                        turn.agent.handle_accept_failed(turn.now);
                        return true;
                    }
                },
            }
        }
        true
    }

    /// Takes the listener out of the poll set and puts it back, on the same descriptor. Registering
    /// reports readiness that is already there. A new listener is bound only if it fails.
    pub(crate) fn rearm_listener(&mut self) -> io::Result<()> {
        // Not registered yet the first time, and after a failure.
        let _ = self.registry.deregister(&mut self.listener);
        let token = Source::Listener.token();
        match self
            .registry
            .register(&mut self.listener, token, Interest::READABLE)
        {
            Ok(()) => Ok(()),
            Err(err) => {
                warn!("cannot register the listener again ({err}); binding a new one");
                let address = self.listener.address().clone();
                self.listener = Listener::bind(&address, BACKLOG)?;
                self.registry
                    .register(&mut self.listener, token, Interest::READABLE)
            }
        }
    }

    /// Closes one queued connection with the help of the spare descriptor, so that its peer learns
    /// at once.
    fn shed_connection(&mut self) -> Shed {
        if self.spare.take().is_none() {
            self.spare = File::open("/dev/null").ok();
            return Shed::Failed;
        }
        let accepted = self.listener.accept();
        let shed = match &accepted {
            Ok(_) => Shed::Closed,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Shed::NoneQueued,
            Err(_) => Shed::Failed,
        };
        // Its descriptor is needed for the spare one.
        drop(accepted);
        self.spare = File::open("/dev/null").ok();
        shed
    }
}

/// What happened to a connection that there was no descriptor for.
enum Shed {
    Closed,
    NoneQueued,
    /// It is still in the queue.
    Failed,
}

/// A vsock peer must be the host, and a Unix peer a user whom the listener is for.
fn is_permitted(peer: Peer) -> bool {
    match peer {
        Peer::Vsock { cid } => cid == CID_HOST,
        Peer::Unix { is_permitted, .. } => is_permitted,
    }
}
