//! SESSIONS and SIGNAL: listing and signalling sessions without being attached to one. No I/O, no
//! clock.

use std::time::Instant;

use shared::limits::{PAYLOAD_LEN_MAX, SESSIONS_PER_FRAME_MAX};
use shared::message::{FailCode, Message, Sessions, SessionsRequest, Signal};

use super::buffers::ANSWER_LEN_FREE;
use super::session::State;
use crate::agent::Agent;
use crate::agent::action::EndSignal;
use crate::agent::ids::ConnectionId;
use crate::agent::state::Request;

/// HUP, INT, QUIT, KILL and TERM: the signals by which people end a command (`signal(7)`).
const ENDING_SIGNALS: [u8; 5] = [1, 2, 3, 9, 15];

/// Bytes of a SESSIONS frame around its list.
const FRAME_LEN: usize = r#"{"more":false,"sessions":[]}"#.len();

impl Agent {
    /// Lists as many sessions as fit a frame.
    pub(crate) fn handle_sessions(
        &mut self,
        id: ConnectionId,
        request: SessionsRequest,
        now: Instant,
    ) {
        if !self.admit(id, Request::Inspect, now) {
            return;
        }
        let mut answer = Sessions {
            sessions: Vec::new(),
            more: false,
        };
        // The list is as long as its frame, and both grow by doubling.
        let is_short = self.buffers.is_short() || !self.buffers.lends(4 * PAYLOAD_LEN_MAX);
        let len_max = match is_short {
            // What every connection has room for.
            true => ANSWER_LEN_FREE / 2,
            false => PAYLOAD_LEN_MAX,
        };
        let mut len = FRAME_LEN;
        for session in self.sessions.after(request.after) {
            let info = session.info(self.settings.confinement.has_cgroups, now);
            // With a comma.
            len += info.encoded_len() + 1;
            let is_full = len > len_max || answer.sessions.len() == SESSIONS_PER_FRAME_MAX;
            if is_full || answer.sessions.try_reserve(1).is_err() {
                answer.more = true;
                break;
            }
            answer.sessions.push(info);
        }
        if answer.more && answer.sessions.is_empty() {
            let text = "the agent has no memory for a list of sessions";
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        self.send(id, &Message::Sessions(answer), now);
    }

    /// Sends a signal to the given session, or to the connection's own.
    pub(crate) fn handle_signal_request(
        &mut self,
        id: ConnectionId,
        request: Signal,
        now: Instant,
    ) {
        if !self.admit(id, Request::Signal, now) {
            return;
        }
        let session = match request.session {
            Some(session) => self.sessions.find(session),
            None => self.connections.get(&id).and_then(|it| {
                let attached = it.attachment.map(|attachment| attachment.session);
                attached.or_else(|| it.served.map(|(session, _)| session))
            }),
        };
        let session = session.and_then(|session| self.sessions.get(session));
        let (session, state) = match session {
            Some(session) => (session.id(), session.state()),
            None => {
                let text = match request.session {
                    Some(session) => format!("there is no session {session}"),
                    None => "this connection has no session".to_owned(),
                };
                return self.send_fail(id, FailCode::NoSession, text, now);
            }
        };
        let is_over = matches!(state, State::Reaped(_) | State::Ended(_));
        if is_over && request.number == EndSignal::Kill.number() {
            // Processes may be left that the command has started.
            self.kill_cgroup(session);
        }
        match state {
            State::Starting => {
                let text = "the session has no process yet";
                return self.send_fail(id, FailCode::Refusing, text, now);
            }
            State::Running => self.signal_session(session, request.number),
            // Only its output is still to be read. What its processes were to do with the signal
            // they cannot be told.
            State::Reaped(_) if ENDING_SIGNALS.contains(&request.number) => {
                self.give_up_output(session, now);
            }
            State::Reaped(_) | State::Ended(_) => {}
        }
        self.send(id, &Message::Ok, now);
    }
}
