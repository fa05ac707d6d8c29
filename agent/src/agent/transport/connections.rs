//! Connections as the core sees them: accepted, written to, refused, severed, forgotten. No I/O, no
//! clock.
//!
//! ```text
//! accept ─▶ requests, answers ─┬─ ended by its peer, a reset or an error ────────────▶ forgotten
//!                              └─ refused or severed: told why, flushed for a while ─▶ forgotten
//! ```
//!
//! What a single connection may do is the machine in [`connection`](super::connection); what its
//! end means for a session is in [`lifetimes`](crate::agent::sessions::lifetimes).

use std::time::Instant;

use log::{debug, warn};
use shared::message::{Fail, FailCode, Message, Role, Sever, SeverReason};

use super::connection::{Connection, Interest, Mistake};
use super::outbox::OutboxFull;
use super::output::{Headers, Pieces};
use crate::agent::action::{Action, Ended};
use crate::agent::ids::ConnectionId;
use crate::agent::sessions::session::Session;
use crate::agent::sessions::table::Table;
use crate::agent::timers::Timer;
use crate::agent::{
    Agent, CONNECTIONS_MAX, Departure, HELLO_TIMEOUT, LINGER_TIMEOUT, LISTENER_BACKOFF,
    LOCAL_CONNECTIONS_MAX, REFUSALS_MAX,
};

impl Agent {
    /// The listener was registered, newly or again, or could not be. Answers
    /// [`Action::RearmListener`].
    pub fn handle_rearmed(&mut self, result: Result<(), String>, now: Instant) {
        match result {
            Ok(()) => {
                self.listener.handle_registered();
                self.actions.push_back(Action::DrainAccept);
            }
            Err(text) => {
                warn!("cannot register the listener: {text}");
                self.listener.handle_failed();
                self.timers.set(Timer::Listener, now + LISTENER_BACKOFF);
            }
        }
    }

    /// A peer connected. Returns its name, or `None` if it is to be closed at once.
    pub fn handle_accepted(&mut self, is_permitted: bool, now: Instant) -> Option<ConnectionId> {
        let accepted_under = self.listener.handle_accepted();
        self.counters.accepts += 1;
        if !is_permitted {
            self.counters.peers_refused += 1;
            return None;
        }
        let connection = Connection::new(Role::Host, accepted_under);
        self.take_in(connection, self.host_count(), CONNECTIONS_MAX, now)
    }

    /// A program in the guest connected. Returns its name, or `None` if it is to be closed at once.
    pub fn handle_local_accepted(&mut self, now: Instant) -> Option<ConnectionId> {
        let connection = Connection::new(Role::Local, self.listener.serial());
        let id = self.take_in(connection, self.local_count, LOCAL_CONNECTIONS_MAX, now)?;
        self.local_count += 1;
        Some(id)
    }

    /// Serves a connection, beside `count` of its kind, or says why not.
    fn take_in(
        &mut self,
        connection: Connection,
        count: usize,
        count_max: usize,
        now: Instant,
    ) -> Option<ConnectionId> {
        if count >= count_max + REFUSALS_MAX {
            self.counters.peers_refused += 1;
            return None;
        }
        let id = self.serials.next_connection();
        self.connections.insert(id, connection);
        if count >= count_max {
            self.counters.peers_refused += 1;
            let text = format!("{count_max} connections are open already");
            self.refuse(id, &Fail::new(FailCode::Limit, text), now);
        } else {
            self.timers.set(Timer::Hello(id), now + HELLO_TIMEOUT);
        }
        Some(id)
    }

    /// How many connections are of hosts.
    pub(crate) fn host_count(&self) -> usize {
        self.connections.len() - self.local_count
    }

    /// Connections had to be closed unseen to empty the accept queue.
    pub fn handle_accept_shed(&mut self) {
        self.counters.accepts_shed += 1;
    }

    /// Accepting failed for want of resources; the queue may hold more.
    pub fn handle_accept_failed(&mut self, now: Instant) {
        self.timers.set(Timer::Listener, now + LISTENER_BACKOFF);
    }

    /// Which readiness of a connection matters. `None`: there is no such connection.
    pub fn interest(&self, id: ConnectionId) -> Option<Interest> {
        let connection = self.connections.get(&id)?;
        Some(connection.interest(session_of(&self.sessions, connection)))
    }

    /// Bytes that the connection's socket should take next. The headers are room for some of them.
    pub fn pending<'a>(&'a self, id: ConnectionId, headers: &'a mut Headers) -> Pieces<'a> {
        match self.connections.get(&id) {
            Some(connection) => connection.pending(session_of(&self.sessions, connection), headers),
            None => Pieces::new(),
        }
    }

    /// Bytes came from a peer.
    pub fn handle_bytes(&mut self, id: ConnectionId, bytes: &[u8], now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.handle_bytes(bytes);
            self.take_requests(id, now);
        }
    }

    /// The socket took `len` of the pending bytes.
    pub fn handle_written(&mut self, id: ConnectionId, len: usize, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let session = session_of(&self.sessions, connection);
        connection.handle_written(len, session);
        if connection.is_closing() {
            if connection.outbox.is_empty() {
                self.close(id, Departure::Cut, now);
            }
            return;
        }
        self.pump_connection(id, now);
        // Requests that waited for the peer to read its answers.
        self.take_requests(id, now);
    }

    /// A flush is about to be performed, as far as the socket takes what is pending.
    pub fn handle_flush(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let session = session_of(&self.sessions, connection);
            self.counters.gaps += connection.handle_flush(session);
        }
    }

    /// A connection ended.
    pub fn handle_closed(&mut self, id: ConnectionId, ended: Ended, now: Instant) {
        if !self.connections.contains_key(&id) {
            return;
        }
        let departure = match ended {
            Ended::ByPeer | Ended::ByError => Departure::Left,
            Ended::ByReset => {
                self.counters.resets += 1;
                self.wake_listener();
                self.wake_mmds(now);
                Departure::Cut
            }
        };
        self.close(id, departure, now);
    }

    /// Something may have happened to the whole machine: has the listener looked after.
    pub(crate) fn wake_listener(&mut self) {
        // A rebind that has not come to its listener yet will do the same.
        if !self.naming.will_rearm() {
            self.rearm_listener();
        }
    }

    /// Asks for the listener to be taken out of the poll set and put back, unless that is asked for
    /// already.
    pub(crate) fn rearm_listener(&mut self) {
        self.timers.stop(Timer::Listener);
        if self.listener.want_rearm() {
            self.counters.rearms += 1;
            self.actions.push_back(Action::RearmListener);
        }
    }

    /// Adds a message to a connection's outbox. A peer that has stopped reading is closed instead.
    pub(crate) fn send(&mut self, id: ConnectionId, message: &Message, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        match connection.outbox.push(message) {
            Ok(()) => self.queue_flush(id),
            Err(OutboxFull) => {
                debug!("{id} does not read its answers; closing it");
                self.close(id, Departure::Left, now);
            }
        }
    }

    pub(crate) fn send_fail(
        &mut self,
        id: ConnectionId,
        code: FailCode,
        text: impl Into<String>,
        now: Instant,
    ) {
        self.send(id, &Message::Fail(Fail::new(code, text)), now);
    }

    pub(crate) fn queue_flush(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.queue_flush(id, &mut self.actions);
        }
    }

    /// Says why, then closes when it has been read or after a while.
    pub(crate) fn refuse(&mut self, id: ConnectionId, fail: &Fail, now: Instant) {
        debug!("{id} refused: {}", fail.text);
        self.send(id, &Message::Fail(fail.clone()), now);
        self.close_after_flush(id, Departure::Left, now);
    }

    /// Says that the connection is cut on purpose, then closes when it has been read or after a
    /// while.
    pub(crate) fn sever(&mut self, id: ConnectionId, reason: SeverReason, now: Instant) {
        self.send(id, &Message::Sever(Sever { reason }), now);
        self.close_after_flush(id, Departure::Cut, now);
    }

    /// A peer's mistake ends its connection.
    pub(crate) fn refuse_mistake(&mut self, id: ConnectionId, mistake: &Mistake, now: Instant) {
        self.counters.mistakes += 1;
        self.refuse(id, &mistake.to_fail(), now);
    }

    pub(crate) fn close_after_flush(
        &mut self,
        id: ConnectionId,
        departure: Departure,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        connection.close_after_flush();
        self.timers.stop(Timer::Hello(id));
        self.timers.set(Timer::Linger(id), now + LINGER_TIMEOUT);
        self.release_session(id, departure, now);
    }

    /// Forgets a connection and has its socket closed.
    pub(crate) fn close(&mut self, id: ConnectionId, departure: Departure, now: Instant) {
        if self.connections.contains_key(&id) {
            self.actions.push_back(Action::Close(id));
            self.forget(id, departure, now);
        }
    }

    /// Forgets a connection whose socket is closed, or about to be.
    pub(crate) fn forget(&mut self, id: ConnectionId, departure: Departure, now: Instant) {
        if !self.connections.contains_key(&id) {
            return;
        }
        self.release_session(id, departure, now);
        let forgotten = self.connections.remove(&id);
        self.local_count -= usize::from(forgotten.is_some_and(|it| it.is_local()));
        for timer in [Timer::Hello(id), Timer::Linger(id), Timer::Checkpoint(id)] {
            self.timers.stop(timer);
        }
        self.naming.leave(id);
        self.waits.leave(id);
        self.hooks.leave(id);
        self.end_reporting();
        self.advance_quiescing(now);
        self.advance_ending(now);
    }
}

/// The session that a connection is attached to.
fn session_of<'a>(sessions: &'a Table, connection: &Connection) -> Option<&'a Session> {
    sessions.get(connection.attachment.as_ref()?.session)
}
