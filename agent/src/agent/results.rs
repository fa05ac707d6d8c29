//! What became of the last commands, so that a request whose answer was lost is answered again and
//! not run again. No I/O, no clock.

use std::collections::{BTreeMap, VecDeque};

use shared::id::ExecId;
use shared::message::Exited;

use super::ids::SessionId;

/// How many ended commands are remembered. The oldest is forgotten first.
pub(super) const RESULTS_MAX: usize = 256;

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its command runs as this session.
    Running(SessionId),
    /// Its command has ended like this.
    Ended(Exited),
}

/// Requests by their id.
#[derive(Debug, Default)]
pub(super) struct Results {
    known: BTreeMap<ExecId, Known>,
    /// Ids of ended commands, the oldest first.
    ended: VecDeque<ExecId>,
}

impl Results {
    /// What is known of this request.
    pub(super) fn get(&self, id: ExecId) -> Option<Known> {
        self.known.get(&id).copied()
    }

    /// A request was taken.
    pub(super) fn insert(&mut self, id: ExecId, session: SessionId) {
        self.known.insert(id, Known::Running(session));
    }

    /// Its command never ran, so the request may be made again.
    pub(super) fn remove(&mut self, id: ExecId) {
        self.known.remove(&id);
    }

    /// Its command has ended.
    pub(super) fn complete(&mut self, id: ExecId, exited: Exited) {
        self.known.insert(id, Known::Ended(exited));
        self.ended.push_back(id);
        if self.ended.len() > RESULTS_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::message::{ExitStatus, ResourceUsage};

    fn id(number: usize) -> ExecId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        ExecId::from_bytes(bytes)
    }

    #[test]
    fn the_oldest_result_is_forgotten_past_the_limit() {
        let exited = Exited {
            session: 1,
            status: ExitStatus::Code(0),
            stdout_end: 0,
            stderr_end: 0,
            writers_alive: false,
            timed_out: false,
            usage: ResourceUsage::default(),
        };
        let mut results = Results::default();
        results.insert(id(9999), SessionId::from_number(1));
        for number in 0..RESULTS_MAX {
            results.complete(id(number), exited);
        }
        assert_eq!(results.get(id(0)), Some(Known::Ended(exited)));
        results.complete(id(RESULTS_MAX), exited);
        assert_eq!(results.get(id(0)), None);
        assert_eq!(results.get(id(1)), Some(Known::Ended(exited)));
        assert!(
            results.get(id(9999)).is_some(),
            "what runs is never forgotten"
        );
        results.remove(id(9999));
        assert_eq!(results.get(id(9999)), None);
    }
}
