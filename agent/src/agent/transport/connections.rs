//! All connections: accepted, refused, severed, closed, forgotten. No I/O, no clock.
//!
//! ```text
//! accept ─▶ requests, answers ─┬─ ended by its peer, a reset or an error ────────▶ forgotten
//!                              └─ refused or severed: last frame is flushed ─────▶ forgotten
//! ```
//!
//! [`connection`](super::connection) is the machine of a single connection. What its end means for
//! a session is in [`lifetimes`](crate::agent::sessions::lifetimes).

use std::time::Instant;

use log::debug;
use shared::message::{Fail, FailCode, Message, Role, Sever, SeverReason};

use super::connection::{Connection, ProtocolError};
use crate::agent::action::{Action, Ended};
use crate::agent::ids::ConnectionId;
use crate::agent::sessions::buffers::HEADROOM_LEN;
use crate::agent::timers::Timer;
use crate::agent::{
    Agent, CONNECTIONS_MAX, DetachReason, HELLO_TIMEOUT, LINGER_TIMEOUT, LOCAL_CONNECTIONS_MAX,
    REFUSALS_MAX,
};

impl Agent {
    /// A peer connected. `None`: it has to be closed at once.
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

    /// A program in the guest connected. `None`: it has to be closed at once.
    pub fn handle_local_accepted(&mut self, now: Instant) -> Option<ConnectionId> {
        let connection = Connection::new(Role::Local, self.listener.serial());
        let id = self.take_in(connection, self.local_count, LOCAL_CONNECTIONS_MAX, now)?;
        self.local_count += 1;
        Some(id)
    }

    /// Serves a connection, unless `count` of its kind are as many as there may be, or there is no
    /// memory to say so.
    fn take_in(
        &mut self,
        connection: Connection,
        count: usize,
        count_max: usize,
        now: Instant,
    ) -> Option<ConnectionId> {
        if count >= count_max + REFUSALS_MAX || !self.buffers.admits(HEADROOM_LEN) {
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

    pub(crate) fn host_count(&self) -> usize {
        self.connections.len() - self.local_count
    }

    pub fn handle_closed(&mut self, id: ConnectionId, ended: Ended, now: Instant) {
        if !self.connections.contains_key(&id) {
            return;
        }
        let reason = match ended {
            Ended::ByPeer | Ended::ByError => DetachReason::ClientLeft,
            Ended::ByReset => {
                self.counters.resets += 1;
                self.wake_listener();
                self.wake_mmds(now);
                DetachReason::Cut
            }
        };
        self.close(id, reason, now);
    }

    /// Another connection has taken over the conversation of this one.
    pub(crate) fn supersede(&mut self, id: ConnectionId, text: &str, now: Instant) {
        self.counters.superseded += 1;
        let fail = Fail::new(FailCode::Superseded, text);
        self.send(id, &Message::Fail(fail), now);
        self.close_after_flush(id, DetachReason::Cut, now);
    }

    /// Sends the failure, and closes when it has been read or after [`LINGER_TIMEOUT`].
    pub(crate) fn refuse(&mut self, id: ConnectionId, fail: &Fail, now: Instant) {
        debug!("{id} refused: {}", fail.text);
        self.send(id, &Message::Fail(fail.clone()), now);
        self.close_after_flush(id, DetachReason::ClientLeft, now);
    }

    /// Announces that the agent cuts the connection, and closes as [`Self::refuse`] does.
    pub(crate) fn sever(&mut self, id: ConnectionId, reason: SeverReason, now: Instant) {
        self.send(id, &Message::Sever(Sever { reason }), now);
        self.close_after_flush(id, DetachReason::Cut, now);
    }

    pub(crate) fn refuse_protocol_error(
        &mut self,
        id: ConnectionId,
        error: &ProtocolError,
        now: Instant,
    ) {
        let fail = error.to_fail();
        self.counters.mistakes += u64::from(fail.code == FailCode::Protocol);
        self.refuse(id, &fail, now);
    }

    pub(crate) fn close_after_flush(
        &mut self,
        id: ConnectionId,
        reason: DetachReason,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.is_closing() {
            return;
        }
        connection.close_after_flush(&mut self.buffers);
        self.timers.stop(Timer::Hello(id));
        self.timers.set(Timer::Linger(id), now + LINGER_TIMEOUT);
        self.release_session(id, reason, now);
    }

    /// Forgets a connection and has its socket closed.
    pub(crate) fn close(&mut self, id: ConnectionId, reason: DetachReason, now: Instant) {
        if self.connections.contains_key(&id) {
            self.actions.push_back(Action::Close(id));
            self.forget(id, reason, now);
        }
    }

    /// Forgets a connection whose socket is closed, or about to be.
    pub(crate) fn forget(&mut self, id: ConnectionId, reason: DetachReason, now: Instant) {
        if !self.connections.contains_key(&id) {
            return;
        }
        self.release_session(id, reason, now);
        let mut forgotten = self.connections.remove(&id);
        if let Some(forgotten) = &mut forgotten {
            forgotten.clear(&mut self.buffers);
        }
        self.local_count -= usize::from(forgotten.is_some_and(|it| it.is_local()));
        for timer in [Timer::Hello(id), Timer::Linger(id), Timer::Checkpoint(id)] {
            self.timers.stop(timer);
        }
        self.rebinds.remove_waiter(id);
        self.checkpoints.remove_waiter(id);
        self.hooks.remove_waiter(id);
        self.end_reporting();
        self.advance_quiescing(now);
        self.advance_ending(now);
    }
}
