//! All sessions by number and request id, and the results of those that have ended. No I/O, no
//! clock.
//!
//! ```text
//! insert ─▶ runs ─── complete ─▶ ended ─┬─ too many ended after it ──▶ forgotten: only that its
//!             └ remove: it never ran    │                               id was used is known
//!                                       └─ too much output is kept ────▶ its output is dropped,
//!                                                                       its result stays
//! ```
//!
//! Invariants:
//! - An id that was used is never taken for a new one, so its command does not run again.
//! - At most as many ended sessions are kept as the settings say, and those with an attached
//!   connection.
//! - These hold at most [`ENDED_OUTPUT_LEN_MAX`] bytes of output, beside that of sessions with an
//!   owner, and none while memory is tight.
//! - The workload's result and output are kept for good.

use std::collections::{BTreeMap, VecDeque};

use shared::id::ExecId;
use shared::message::{Exited, SessionRef};

use super::buffers::BufferPool;
use super::forgotten::Forgotten;
use super::session::Session;
use crate::agent::ids::SessionId;

/// Bytes of output kept of all ended sessions. The oldest session loses its output first.
pub const ENDED_OUTPUT_LEN_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Table {
    /// Each in a box of its own: a node of the table with eleven of them would be a large
    /// allocation, which cannot be refused.
    by_id: BTreeMap<SessionId, Box<Session>>,
    by_exec: BTreeMap<ExecId, SessionId>,
    workload: Option<SessionId>,
    /// Ended sessions without the workload, the oldest end first.
    ended: VecDeque<SessionId>,
    /// Those of them that had output left when they ended, in the same order.
    ended_with_output: VecDeque<SessionId>,
    forgotten: Forgotten,
    running_count: usize,
}

impl Table {
    pub(crate) fn insert(&mut self, session: Session) {
        let id = session.id();
        match session.spec().exec {
            Some(exec) => {
                self.by_exec.insert(exec, id);
            }
            None => self.workload = Some(id),
        }
        self.by_id.insert(id, Box::new(session));
        self.running_count += 1;
    }

    /// A session's program never ran, so its request may be made again.
    pub(crate) fn remove(&mut self, id: SessionId, buffers: &mut BufferPool) {
        if self.forget(id, buffers).is_some() {
            self.running_count -= 1;
        }
    }

    pub(crate) fn complete(&mut self, id: SessionId, exited: Exited, buffers: &mut BufferPool) {
        let Some(session) = self.by_id.get_mut(&id) else {
            return;
        };
        session.handle_complete(exited);
        session.close(buffers);
        self.running_count -= 1;
        if self.workload != Some(id) {
            self.ended.push_back(id);
            if session.kept_len() > 0 {
                self.ended_with_output.push_back(id);
            }
        }
    }

    /// Drops what exceeds the limits. Called when a session has ended, and when a connection has
    /// left one that had.
    pub(crate) fn trim(&mut self, results_max: usize, buffers: &mut BufferPool) {
        let by_id = &self.by_id;
        let is_held = |id: &SessionId| by_id.get(id).is_some_and(|it| !it.attached().is_empty());
        let excess = self.ended.len().saturating_sub(results_max);
        let forgotten: Vec<_> = self
            .ended
            .iter()
            .filter(|id| !is_held(id))
            .take(excess)
            .copied()
            .collect();
        for id in forgotten {
            self.ended.retain(|other| *other != id);
            if let Some(exec) = self
                .forget(id, buffers)
                .and_then(|session| session.spec().exec)
            {
                self.forgotten.insert(exec, id.number());
            }
        }
        let by_id = &mut self.by_id;
        self.ended_with_output
            .retain(|id| by_id.get(id).is_some_and(|it| it.kept_len() > 0));
        let is_counted = |session: &&mut Box<Session>| session.owner.is_none();
        let mut total = 0;
        for id in self.ended_with_output.iter().rev() {
            if let Some(session) = by_id.get_mut(id).filter(is_counted) {
                total += session.kept_len();
                if total > ENDED_OUTPUT_LEN_MAX {
                    session.clear_output(buffers);
                }
            }
        }
    }

    /// Drops kept output, the oldest first, until memory is not short any more or none is left.
    pub(crate) fn drop_ended_output(&mut self, buffers: &mut BufferPool) {
        let mut kept = VecDeque::new();
        while buffers.is_short()
            && let Some(id) = self.ended_with_output.pop_front()
        {
            match self.by_id.get_mut(&id) {
                Some(session) if session.owner.is_none() => session.clear_output(buffers),
                Some(_) => kept.push_back(id),
                None => {}
            }
        }
        kept.append(&mut self.ended_with_output);
        self.ended_with_output = kept;
    }

    fn forget(&mut self, id: SessionId, buffers: &mut BufferPool) -> Option<Box<Session>> {
        let mut session = self.by_id.remove(&id)?;
        session.clear(buffers);
        if let Some(exec) = session.spec().exec {
            self.by_exec.remove(&exec);
        }
        Some(session)
    }

    pub(crate) fn find(&self, session: SessionRef) -> Option<SessionId> {
        match session {
            SessionRef::Workload => self.workload,
            SessionRef::Exec(exec) => self.find_exec(exec),
            SessionRef::Number(number) => {
                let id = SessionId::from_number(number);
                self.by_id.contains_key(&id).then_some(id)
            }
        }
    }

    pub(crate) fn find_exec(&self, exec: ExecId) -> Option<SessionId> {
        self.by_exec.get(&exec).copied()
    }

    /// Whether an id that [`find_exec`](Self::find_exec) does not find may have been used all the
    /// same, by a session with a higher number than `after`.
    pub(crate) fn may_be_forgotten(&self, exec: ExecId, after: u64) -> bool {
        self.forgotten.may_contain(exec, after)
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&id).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&id).map(Box::as_mut)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.by_id.values_mut().map(Box::as_mut)
    }

    /// Sessions with higher numbers than this one, in order.
    pub(crate) fn after(&self, number: u64) -> impl Iterator<Item = &Session> {
        let from = SessionId::from_number(number.saturating_add(1));
        let is_last = number == u64::MAX;
        self.by_id
            .range(from..)
            .filter(move |_| !is_last)
            .map(|(_, session)| session.as_ref())
    }

    /// Sessions that have not ended.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Session> {
        self.by_id
            .values()
            .map(Box::as_ref)
            .filter(|session| session.exited().is_none())
    }

    /// Sessions that have not ended, without the workload: it runs as long as the machine does, so
    /// a host that waits for work to be done does not wait for it.
    pub(crate) fn requested(&self) -> impl Iterator<Item = &Session> {
        self.running().filter(|session| !session.is_workload())
    }

    pub(crate) fn running_count(&self) -> usize {
        self.running_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ConnectionId;
    use crate::agent::RESULTS_MAX;
    use crate::agent::sessions::buffers::BufferPool;
    use crate::agent::sessions::ring::RING_LEN_MAX;
    use crate::agent::sessions::session::{Exit, Spec};
    use shared::message::{ExitStatus, OutputPolicy, ResourceUsage, Stream};
    use std::time::{Duration, Instant};

    fn exec(number: u64) -> ExecId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        ExecId::from_bytes(bytes)
    }

    fn insert(table: &mut Table, number: u64) {
        let spec = Spec {
            exec: (number > 0).then(|| exec(number)),
            command: String::new(),
            generation: None,
            tty: None,
            has_input: false,
            output: OutputPolicy::Block,
            is_detached: false,
            keep: Duration::ZERO,
            timeout: None,
        };
        let id = SessionId::from_number(number);
        table.insert(Session::new(id, spec, Instant::now()));
        table.get_mut(id).expect("inserted").handle_spawned(1);
    }

    /// Ends a session that wrote `len` bytes.
    fn end(table: &mut Table, number: u64, len: usize, owner: Option<ConnectionId>) {
        let id = SessionId::from_number(number);
        let session = table.get_mut(id).expect("a session");
        session.handle_output(Stream::Stdout, &vec![0; len], &mut BufferPool::default());
        let usage = ResourceUsage::default();
        session.handle_exit(Exit {
            status: ExitStatus::Code(0),
            usage,
        });
        session.handle_output_given_up();
        session.owner = owner;
        let buffers = &mut BufferPool::default();
        owner
            .iter()
            .for_each(|owner| session.insert_attached(*owner));
        let exited = session.completion().expect("complete");
        table.complete(id, exited, buffers);
        table.trim(RESULTS_MAX, buffers);
    }

    fn is_known(table: &Table, number: u64) -> bool {
        let by_number = table.find(SessionRef::Number(number));
        assert_eq!(table.find(SessionRef::Exec(exec(number))), by_number);
        by_number.is_some()
    }

    fn kept(table: &Table, number: u64) -> usize {
        table
            .get(SessionId::from_number(number))
            .expect("known")
            .kept_len()
    }

    #[test]
    fn the_oldest_result_is_forgotten_past_the_limit() {
        let last = RESULTS_MAX as u64;
        let mut table = Table::default();
        insert(&mut table, 9999);
        for number in 1..=last {
            insert(&mut table, number);
            end(&mut table, number, 0, None);
        }
        assert!(is_known(&table, 1));
        insert(&mut table, last + 1);
        end(&mut table, last + 1, 0, None);
        assert!(!is_known(&table, 1) && is_known(&table, 2));
        for (after, may) in [(0, true), (1, false)] {
            assert_eq!(table.may_be_forgotten(exec(1), after), may, "after {after}");
        }
        assert!(!table.may_be_forgotten(exec(last + 9), 0), "it is new");
        assert!(is_known(&table, 9999), "what runs is never forgotten");
        assert_eq!(table.running_count(), 1);
        table.remove(SessionId::from_number(9999), &mut BufferPool::default());
        assert!(!is_known(&table, 9999));
        assert!(!table.may_be_forgotten(exec(9999), 0), "it never ran");
        assert_eq!(table.running_count(), 0);
    }

    #[test]
    fn an_attached_session_is_not_forgotten() {
        let last = RESULTS_MAX as u64;
        let mut table = Table::default();
        for number in 1..=last + 1 {
            insert(&mut table, number);
            let owner = (number == 1).then_some(ConnectionId::from_number(1));
            end(&mut table, number, 0, owner);
        }
        assert!(is_known(&table, 1) && !is_known(&table, 2));
    }

    #[test]
    fn the_oldest_output_goes_past_the_limit_and_an_owner_keeps_its_own() {
        let fit = (ENDED_OUTPUT_LEN_MAX / RING_LEN_MAX) as u64;
        let mut table = Table::default();
        let owner = Some(ConnectionId::from_number(1));
        for (number, owner) in (1..=fit).map(|it| (it, None)).chain([(fit + 1, owner)]) {
            insert(&mut table, number);
            end(&mut table, number, RING_LEN_MAX, owner);
        }
        assert_eq!(kept(&table, 1), RING_LEN_MAX, "at the limit");
        insert(&mut table, fit + 2);
        end(&mut table, fit + 2, 1, None);
        assert_eq!((kept(&table, 1), kept(&table, 2)), (0, RING_LEN_MAX));
        assert_eq!(
            (kept(&table, fit + 1), kept(&table, fit + 2)),
            (RING_LEN_MAX, 1)
        );
    }

    #[test]
    fn the_workload_is_kept_and_is_not_a_request() {
        let mut table = Table::default();
        insert(&mut table, 0);
        assert_eq!((table.running_count(), table.requested().count()), (1, 0));
        end(&mut table, 0, 5, None);
        for number in 1..=RESULTS_MAX as u64 + 1 {
            insert(&mut table, number);
            end(&mut table, number, 0, None);
        }
        assert_eq!(
            table.find(SessionRef::Workload),
            Some(SessionId::from_number(0))
        );
        assert_eq!(kept(&table, 0), 5);
    }
}
