//! Bytes in and out of connections.

use std::io;

use mio::Interest;

use super::failpoint::Loss;
use super::{READS_PER_TURN_MAX, Shell, Source, Turn};
use crate::agent::{ConnectionId, Ended, Headers, Interest as Wanted};
use crate::sys::socket::Stream;

#[derive(Debug)]
pub(super) struct Entry {
    stream: Stream,
    /// A transport reset can kill vsock connections only.
    is_vsock: bool,
    /// The interest in the poll set; `None` while it is not there.
    registered: Option<Interest>,
    /// Whether reading stopped before `WouldBlock`, so that no edge will tell that there is more.
    is_unread: bool,
    /// Whether a failpoint has muted it.
    is_mute: bool,
}

impl Shell {
    /// Adds an accepted connection. Its first bytes have usually arrived already.
    pub(crate) fn insert_connection(
        &mut self,
        id: ConnectionId,
        stream: Stream,
        is_vsock: bool,
        turn: &mut Turn<'_>,
    ) {
        self.connections.insert(
            id,
            Entry {
                stream,
                is_vsock,
                registered: None,
                is_unread: true,
                is_mute: false,
            },
        );
        self.sync_interest(id, turn);
    }

    pub(crate) fn close_connection(&mut self, id: ConnectionId) {
        if let Some(mut entry) = self.connections.remove(&id)
            && entry.registered.is_some()
        {
            // Closing would remove it too, but could leave a stale event.
            let _ = self.registry.deregister(&mut entry.stream);
        }
    }

    /// Reads until the socket is empty, or the core takes no more, or other sources have their
    /// turn.
    pub(crate) fn drain_connection(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        for _ in 0..READS_PER_TURN_MAX {
            let is_readable = turn
                .agent
                .interest(id)
                .is_some_and(|wanted| wanted.readable);
            let Some(entry) = self.connections.get_mut(&id) else {
                return;
            };
            entry.is_unread = true;
            if !is_readable {
                return self.sync_interest(id, turn);
            }
            let len_max = turn.agent.read_len(id, self.scratch.len());
            match entry.stream.read(&mut self.scratch[..len_max]) {
                Ok(0) => turn.agent.handle_closed(id, Ended::ByPeer, turn.now),
                Ok(len) => turn.agent.handle_bytes(id, &self.scratch[..len], turn.now),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    entry.is_unread = false;
                    self.unpush_ready(Source::Connection(id));
                    return self.sync_interest(id, turn);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => turn
                    .agent
                    .handle_closed(id, ended_by(entry.is_vsock, &err), turn.now),
            }
            self.drain_actions(turn);
        }
        self.push_ready(Source::Connection(id));
    }

    /// Writes until nothing is pending, or the socket takes no more.
    pub(crate) fn flush(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        turn.agent.handle_flush(id);
        while let Some(entry) = self.connections.get_mut(&id) {
            let mut headers = Headers::default();
            let pending = turn.agent.pending(id, &mut headers);
            if pending.is_empty() {
                break;
            }
            match self.failpoints.take_answer(pending.as_slice()) {
                Some(Loss::Cut) => return turn.agent.handle_closed(id, Ended::ByError, turn.now),
                Some(Loss::Mute) => entry.is_mute = true,
                None => {}
            }
            if entry.is_mute {
                let len = pending.len();
                turn.agent.handle_written(id, len, turn.now);
                continue;
            }
            match entry.stream.write(pending.as_slice()) {
                Ok(len) => turn.agent.handle_written(id, len, turn.now),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    return turn
                        .agent
                        .handle_closed(id, ended_by(entry.is_vsock, &err), turn.now);
                }
            }
        }
        self.sync_interest(id, turn);
    }

    /// Makes the registration agree with the core's interest. A new registration reports readiness
    /// that is already there; without one, an unread source goes on the ready list.
    fn sync_interest(&mut self, id: ConnectionId, turn: &mut Turn<'_>) {
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(mut wanted) = turn.agent.interest(id) else {
            return;
        };
        // The flush waits for the next poll of the loop, not for room in the socket.
        wanted.writable &= !self.unflushed.contains(&id);
        let interest = to_mio(wanted);
        let token = Source::Connection(id).token();
        let result = match (entry.registered, interest) {
            (before, after) if before == after => Ok(()),
            (None, Some(after)) => self.registry.register(&mut entry.stream, token, after),
            (Some(_), Some(after)) => self.registry.reregister(&mut entry.stream, token, after),
            (_, None) => self.registry.deregister(&mut entry.stream),
        };
        entry.registered = interest;
        let is_unread = entry.is_unread && wanted.readable;
        if result.is_err() {
            return turn.agent.handle_closed(id, Ended::ByError, turn.now);
        }
        if is_unread {
            self.push_ready(Source::Connection(id));
        }
    }
}

/// What an error says about a connection's end. A vsock socket that a transport reset has killed
/// returns ENOTCONN, or ECONNRESET from a call that was blocked in it. A Unix socket returns
/// ECONNRESET when its peer closed without reading.
fn ended_by(is_vsock: bool, err: &io::Error) -> Ended {
    match err.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNRESET) if is_vsock => Ended::ByReset,
        Some(libc::ENOTCONN | libc::ECONNRESET | libc::EPIPE) => Ended::ByPeer,
        _ => Ended::ByError,
    }
}

fn to_mio(wanted: Wanted) -> Option<Interest> {
    match (wanted.readable, wanted.writable) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
    }
}
