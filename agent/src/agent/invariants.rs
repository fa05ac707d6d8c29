//! What holds between the machines of the core once its actions have been performed. Simulation,
//! model and fuzzing check it after every input; the agent itself never does. No I/O, no clock.

use shared::message::{AttachMode, Stream};

use super::RING_LEN_MAX;
use super::ids::SessionId;
use super::sessions::session::Session;
use super::state::State;
use super::timers::Timer;
use super::transport::connection::Connection;
use super::transport::outbox;
use super::{Agent, CONNECTIONS_MAX, INPUT_LEN_MAX, LOCAL_CONNECTIONS_MAX, REFUSALS_MAX};

impl Agent {
    /// Compares the machines with each other.
    ///
    /// # Panics
    ///
    /// If they disagree, which is a bug of the agent.
    pub fn assert_invariants(&self) {
        self.assert_connections();
        for session in self.sessions.after(0) {
            self.assert_session(session);
        }
        self.assert_budget();
        let running = self.sessions.running().count();
        assert_eq!(self.sessions.running_count(), running);
        if let State::Rebound(generation) = self.state {
            assert_eq!(self.generation, Some(generation));
        }
        let is_timed = self.timers.is_set(Timer::Mmds);
        assert!(
            self.settings.watches_mmds || !is_timed,
            "a timer of a watch that is off"
        );
        assert!(
            is_timed || !self.mmds.is_asking(),
            "a question without a deadline"
        );
        let is_quiescing = matches!(self.state, State::Quiescing | State::Quiesced);
        assert_eq!(self.quiescing.is_some(), is_quiescing);
        let is_idle = self.connections.is_empty() && running == 0 && self.actions.is_empty();
        assert_eq!(
            self.timers.is_set(Timer::Check),
            self.children.is_check_due(),
            "children are not looked for, or without a reason"
        );
        // Accepting or registering failed and is tried again, the metadata service is watched, a
        // process is left that is not a session's, or the last look has found the workload's end.
        let resting = [Timer::Listener, Timer::Mmds, Timer::Check, Timer::Workload];
        let is_resting = resting.iter().any(|timer| self.timers.is_set(*timer));
        if is_idle && self.state == State::Running && !is_resting {
            let timeout = self.poll_timeout();
            assert_eq!(timeout, None, "an idle agent wakes up: {:?}", self.timers);
        }
    }

    /// When [`Agent::handle_timeout`] is due for another reason than a look at sources, which finds
    /// nothing in a system that loses no edge.
    pub fn poll_timeout_but_checks(&self) -> Option<std::time::Instant> {
        self.timers.next_timeout_but_checks()
    }

    /// Whether reading an output stopped for lack of room, so that the core owes an
    /// [`Action::ResumeOutput`](super::Action::ResumeOutput).
    pub fn is_output_stalled(&self, id: SessionId, stream: Stream) -> bool {
        let session = self.sessions.get(id);
        session.is_some_and(|session| session.is_stalled_at(stream))
    }

    /// What is held is counted, and is within the budget.
    fn assert_budget(&self) {
        let sessions: usize = self.sessions.after(0).map(Session::held_len).sum();
        let connections: usize = self.connections.values().map(Connection::held_len).sum();
        let (held, limit) = self.buffers.held_of();
        assert_eq!(held, sessions + connections + self.buffers.spare_len());
        assert!(held <= limit, "{held} bytes are held of {limit}");
    }

    fn assert_connections(&self) {
        let locals = self.connections.values().filter(|it| it.is_local()).count();
        assert_eq!(self.local_count, locals);
        assert!(self.host_count() <= CONNECTIONS_MAX + REFUSALS_MAX);
        assert!(locals <= LOCAL_CONNECTIONS_MAX + REFUSALS_MAX);
        let mut has_attached = false;
        for (id, connection) in &self.connections {
            assert!(connection.outbox.pending().len() <= outbox::LEN_MAX);
            let Some(attachment) = connection.attachment else {
                continue;
            };
            has_attached = true;
            let session = self.sessions.get(attachment.session);
            let session = session.unwrap_or_else(|| panic!("the session of {id} is unknown"));
            assert!(session.attached().contains(id), "{id} is not attached");
            let is_owner = attachment.mode == AttachMode::Own;
            assert_eq!(session.owner == Some(*id), is_owner, "{id}");
        }
        assert!(
            has_attached || self.buffers.count() == 0,
            "the pool holds memory without a user"
        );
        for id in self.checkpoints.waiters() {
            assert!(
                self.connections.contains_key(&id),
                "{id} has ended and still waits"
            );
        }
    }

    fn assert_session(&self, session: &Session) {
        for id in session.attached() {
            let connection = &self.connections[id];
            let attachment = connection.attachment.expect("attached");
            assert_eq!(attachment.session, session.id());
            // After the session's end only a connection with bytes to send is still attached.
            let is_behind = session.exited().is_none() || connection.has_pending(Some(session));
            assert!(is_behind, "{id} has nothing to wait for");
        }
        let owner = session.owner;
        assert!(owner.is_none_or(|owner| session.attached().contains(&owner)));
        assert!(session.kept_len() <= 2 * RING_LEN_MAX);
        let is_vain = session.is_stalled_in_vain();
        assert!(
            !is_vain,
            "{} is stalled although there is room",
            session.id()
        );
        assert!(session.input.pending().len() <= INPUT_LEN_MAX);
        let window = session.input.window();
        assert!(window.received <= window.limit);
    }
}
