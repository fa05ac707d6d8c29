//! Asking a guest about the workload that its image names.

use shared::message::SessionInfo;

use crate::guest::answer::AskError;
use crate::guest::requests::Guest;
use crate::vmdir::output_log::record::Record;

/// Lengths of the workload's two streams at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Lengths {
    /// Whether the log has that much of each stream.
    pub(crate) fn are_in(self, record: &Record) -> bool {
        let has = |wanted: Option<u64>, len| wanted.is_some_and(|wanted| wanted >= len);
        has(record.stdout, self.stdout) && has(record.stderr, self.stderr)
    }
}

/// How much the workload has printed so far; `None` if the guest has no workload.
pub(crate) fn lengths(guest: &Guest<'_>) -> Result<Option<Lengths>, AskError> {
    let workload = find_workload(guest)?;
    Ok(workload.map(|session| Lengths {
        stdout: session.stdout_end,
        stderr: session.stderr_end,
    }))
}

/// `None` if the guest has no workload.
pub(crate) fn find_workload(guest: &Guest<'_>) -> Result<Option<SessionInfo>, AskError> {
    let mut after = 0;
    loop {
        let list = guest.sessions(after)?;
        // Session numbers grow from answer to answer, so the loop ends.
        after = list.sessions.last().map_or(after, |last| last.session);
        let has_more = list.more && !list.sessions.is_empty();
        // The workload is the session without an exec id.
        let workload = list
            .sessions
            .into_iter()
            .find(|session| session.id.is_none());
        if workload.is_some() || !has_more {
            return Ok(workload);
        }
    }
}
