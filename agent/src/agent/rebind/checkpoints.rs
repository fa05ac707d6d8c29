//! Programs in the guest that wait at a checkpoint for a snapshot, or for a new generation, and
//! hosts that wait for such a program. No I/O, no clock.
//!
//! ```text
//! CHECKPOINT ─▶ waits ─┬─ rebound, cause resume ──▶ VERDICT source
//!                      ├─ rebound, cause restore ─▶ VERDICT clone
//!                      ├─ its time limit ─────────▶ VERDICT cold
//!                      └─ its connection ended ───▶ forgotten
//! ```
//!
//! Generation and verdicts are announced after the probe that usually follows a rebind, and the
//! generation first: they wake programs that would compete with the probe.
//!
//! Invariants:
//! - A verdict other than `cold` follows from a REBIND's cause and from nothing else.
//! - A waiting host changes nothing for the program that it waits for.
//! - A connection waits for one thing at a time.

use std::time::{Duration, Instant};

use shared::id::Generation;
use shared::message::{
    AwaitCheckpoint, Cause, Checkpoint, CheckpointRequest, CheckpointVerdict, FailCode,
    GenerationRequest, Message, Progress, Verdict,
};

use crate::agent::Agent;
use crate::agent::action::Action;
use crate::agent::ids::ConnectionId;
use crate::agent::state::Request;
use crate::agent::timers::Timer;

/// Time between two PROGRESS frames to a host that waits.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Hosts that may wait at once.
pub(crate) const HOSTS_MAX: usize = 8;

/// The step that PROGRESS names to a host that waits for a checkpoint.
const STEP: &str = "checkpoint";

/// All that wait.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Checkpoints {
    /// Programs at a checkpoint and their tags, the earliest first.
    programs: Vec<(ConnectionId, Option<String>)>,
    /// Programs that wait for another generation than this one.
    generation_waiters: Vec<(ConnectionId, Option<Generation>)>,
    /// Hosts that wait for a checkpoint with this tag, or with any.
    hosts: Vec<(ConnectionId, Option<String>)>,
    /// The cause of the current generation, while it is not announced.
    unannounced: Option<Cause>,
    /// The generation that was announced last.
    announced: Option<Generation>,
}

impl Checkpoints {
    pub(crate) fn remove_waiter(&mut self, id: ConnectionId) {
        self.programs.retain(|(other, _)| *other != id);
        self.generation_waiters.retain(|(other, _)| *other != id);
        self.hosts.retain(|(other, _)| *other != id);
    }

    pub(crate) fn handle_rebound(&mut self, cause: Cause) {
        // A clone that is rebound before its generation was announced stays a clone.
        if self.unannounced != Some(Cause::Restore) {
            self.unannounced = Some(cause);
        }
    }

    pub(crate) fn waiters(&self) -> Vec<ConnectionId> {
        let tagged = self.programs.iter().chain(&self.hosts);
        let generations = self.generation_waiters.iter().map(|(id, _)| *id);
        tagged.map(|(id, _)| *id).chain(generations).collect()
    }

    fn is_waiting(&self, id: ConnectionId) -> bool {
        self.programs.iter().any(|(other, _)| *other == id)
            || self
                .generation_waiters
                .iter()
                .any(|(other, _)| *other == id)
    }

    /// Removes the hosts that wait for a checkpoint with this tag.
    fn take_hosts(&mut self, tag: Option<&str>) -> Vec<ConnectionId> {
        let (met, others) = std::mem::take(&mut self.hosts)
            .into_iter()
            .partition(|(_, wanted)| wanted.is_none() || wanted.as_deref() == tag);
        self.hosts = others;
        let met: Vec<(ConnectionId, Option<String>)> = met;
        met.into_iter().map(|(id, _)| id).collect()
    }
}

impl Agent {
    pub(crate) fn handle_checkpoint(
        &mut self,
        id: ConnectionId,
        request: CheckpointRequest,
        now: Instant,
    ) {
        if self.refuse_if_waiting(id, now) {
            return;
        }
        if let Some(timeout_ms) = request.timeout_ms {
            let timeout = Duration::from_millis(timeout_ms).min(crate::agent::LIMIT_MAX);
            self.timers.set_after(Timer::Checkpoint(id), timeout, now);
        }
        let hosts = self.checkpoints.take_hosts(request.tag.as_deref());
        self.checkpoints.programs.push((id, request.tag));
        for host in hosts {
            self.report_checkpoint(host, id, now);
        }
        self.end_reporting();
    }

    /// Whether a connection waits already. If so, it gets FAIL(limit).
    fn refuse_if_waiting(&mut self, id: ConnectionId, now: Instant) -> bool {
        let is_waiting = self.checkpoints.is_waiting(id);
        if is_waiting {
            let text = "this connection is waiting already";
            self.send_fail(id, FailCode::Limit, text, now);
        }
        is_waiting
    }

    pub(crate) fn handle_await_checkpoint(
        &mut self,
        id: ConnectionId,
        request: AwaitCheckpoint,
        now: Instant,
    ) {
        if !self.admit(id, Request::Exec, now) {
            return;
        }
        let wanted = |tag: &Option<String>| request.tag.is_none() || request.tag == *tag;
        let mut checkpoints = self.checkpoints.programs.iter();
        if let Some(&(waiting, _)) = checkpoints.find(|(_, tag)| wanted(tag)) {
            return self.report_checkpoint(id, waiting, now);
        }
        self.checkpoints.hosts.retain(|(other, _)| *other != id);
        if self.checkpoints.hosts.len() >= HOSTS_MAX {
            let text = format!("{HOSTS_MAX} hosts wait for a checkpoint already");
            return self.send_fail(id, FailCode::Limit, text, now);
        }
        self.checkpoints.hosts.push((id, request.tag));
        self.send_progress(id, STEP, now);
        self.keep_reporting(now);
    }

    fn report_checkpoint(&mut self, host: ConnectionId, waiting: ConnectionId, now: Instant) {
        let mut checkpoints = self.checkpoints.programs.iter();
        let Some((_, tag)) = checkpoints.find(|(id, _)| *id == waiting) else {
            return;
        };
        let left = self.timers.left(Timer::Checkpoint(waiting), now);
        let checkpoint = Checkpoint {
            tag: tag.clone(),
            left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        };
        self.send(host, &Message::Checkpoint(checkpoint), now);
    }

    /// No snapshot was taken within a program's time limit.
    pub(crate) fn expire_checkpoint(&mut self, id: ConnectionId, now: Instant) {
        self.end_checkpoint(id, Verdict::Cold, now);
    }

    fn end_checkpoint(&mut self, id: ConnectionId, verdict: Verdict, now: Instant) {
        self.timers.stop(Timer::Checkpoint(id));
        self.checkpoints.programs.retain(|(other, _)| *other != id);
        let generation = self.checkpoints.announced;
        let verdict = CheckpointVerdict {
            verdict,
            generation,
        };
        self.send(id, &Message::Verdict(verdict), now);
    }

    pub(crate) fn handle_generation_request(
        &mut self,
        id: ConnectionId,
        request: GenerationRequest,
        now: Instant,
    ) {
        if self.refuse_if_waiting(id, now) {
            return;
        }
        match self.checkpoints.announced {
            Some(told) if request.from.is_some_and(|from| from != told) => {
                self.send(id, &Message::Generation(told), now);
            }
            told => self
                .checkpoints
                .generation_waiters
                .push((id, request.from.or(told))),
        }
    }

    /// Announces the guest's generation to its programs, unless that was done.
    pub(crate) fn announce_generation(&mut self, now: Instant) {
        let (Some(generation), Some(cause)) =
            (self.generation, self.checkpoints.unannounced.take())
        else {
            return;
        };
        self.checkpoints.announced = Some(generation);
        self.actions.push_back(Action::WriteGeneration(generation));
        let (waiting, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.checkpoints.generation_waiters)
                .into_iter()
                .partition(|(_, from)| *from != Some(generation));
        self.checkpoints.generation_waiters = others;
        for (id, _) in waiting {
            self.send(id, &Message::Generation(generation), now);
        }
        let verdict = match cause {
            Cause::Resume => Verdict::Source,
            Cause::Restore => Verdict::Clone,
            // A machine that was booted has no snapshot.
            Cause::Boot => return,
        };
        let checkpoints = self.checkpoints.programs.iter().map(|(id, _)| *id);
        for id in checkpoints.collect::<Vec<_>>() {
            self.end_checkpoint(id, verdict, now);
        }
    }

    pub(crate) fn keep_reporting(&mut self, now: Instant) {
        if !self.timers.is_set(Timer::ProgressReport) {
            self.timers
                .set(Timer::ProgressReport, now + PROGRESS_INTERVAL);
        }
    }

    pub(crate) fn end_reporting(&mut self) {
        if self.checkpoints.hosts.is_empty() && !self.hooks.is_awaited() {
            self.timers.stop(Timer::ProgressReport);
        }
    }

    pub(crate) fn report_progress(&mut self, now: Instant) {
        let hosts = self.checkpoints.hosts.iter().map(|(id, _)| *id);
        let hosts: Vec<_> = hosts.collect();
        for id in &hosts {
            self.send_progress(*id, STEP, now);
        }
        if !hosts.is_empty() {
            self.keep_reporting(now);
        }
        self.report_hook(now);
    }

    /// Shows the host that the guest is alive. A host that does not read its answers gets no more.
    pub(crate) fn send_progress(&mut self, id: ConnectionId, step: &str, now: Instant) {
        let connection = self.connections.get(&id);
        if connection.is_some_and(|host| host.outbox.takes_requests()) {
            let step = step.to_owned();
            self.send(id, &Message::Progress(Progress { step }), now);
        }
    }
}
