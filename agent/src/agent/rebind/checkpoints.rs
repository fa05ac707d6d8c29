//! Programs in the guest that wait for a snapshot or for a new name, and hosts that wait for such a
//! program. No I/O, no clock.
//!
//! ```text
//! CHECKPOINT ─▶ waits ─┬─ rebound, cause resume ──▶ VERDICT source
//!                      ├─ rebound, cause restore ─▶ VERDICT clone
//!                      ├─ its time is over ───────▶ VERDICT cold
//!                      └─ its connection ended ───▶ forgotten
//! ```
//!
//! What a rebind means is told after the probe that usually follows it at once, because it sets
//! programs going that would be in its way: the name for everybody first, then the verdicts.
//!
//! Invariants:
//! - A verdict other than `cold` follows from a REBIND's cause and from nothing else.
//! - A host's wait changes nothing for the program that it waits for.
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

/// Time between two PROGRESS frames to whoever waits for something in the guest.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Most hosts that wait at once.
pub(crate) const HOSTS_MAX: usize = 8;

/// The step that PROGRESS names to a host that waits for a checkpoint.
const STEP: &str = "checkpoint";

/// Everybody who waits.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Checkpoints {
    /// Programs at a checkpoint, the one that came first in front.
    programs: Vec<(ConnectionId, Option<String>)>,
    /// Programs that wait for another name than this one.
    generation_waiters: Vec<(ConnectionId, Option<Generation>)>,
    /// Hosts that wait for a checkpoint with this tag, or with any.
    hosts: Vec<(ConnectionId, Option<String>)>,
    /// Why the guest got its name, if that has not been told yet.
    unannounced: Option<Cause>,
    /// The name that was told last.
    announced: Option<Generation>,
}

impl Checkpoints {
    /// A connection has ended.
    pub(crate) fn remove_waiter(&mut self, id: ConnectionId) {
        self.programs.retain(|(other, _)| *other != id);
        self.generation_waiters.retain(|(other, _)| *other != id);
        self.hosts.retain(|(other, _)| *other != id);
    }

    /// The guest has a new name, for this reason.
    pub(crate) fn handle_rebound(&mut self, cause: Cause) {
        // A clone that is named anew before anybody was told stays a clone.
        if self.unannounced != Some(Cause::Restore) {
            self.unannounced = Some(cause);
        }
    }

    /// Everybody who waits.
    pub(crate) fn waiters(&self) -> Vec<ConnectionId> {
        let tagged = self.programs.iter().chain(&self.hosts);
        let named = self.generation_waiters.iter().map(|(id, _)| *id);
        tagged.map(|(id, _)| *id).chain(named).collect()
    }

    fn is_waiting(&self, id: ConnectionId) -> bool {
        self.programs.iter().any(|(other, _)| *other == id)
            || self
                .generation_waiters
                .iter()
                .any(|(other, _)| *other == id)
    }

    /// The hosts that wait for a checkpoint with this tag. They wait no more.
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

    /// Whether a connection waits for something already. If so it is told.
    fn refuse_if_waiting(&mut self, id: ConnectionId, now: Instant) -> bool {
        let is_waiting = self.checkpoints.is_waiting(id);
        if is_waiting {
            let text = "this connection waits for something already";
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

    /// Nobody took a snapshot in the time that a program gave.
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

    /// Tells the guest's new name to everybody in it, unless that has been done.
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
            // Nobody took a snapshot of a machine that was booted.
            Cause::Boot => return,
        };
        let checkpoints = self.checkpoints.programs.iter().map(|(id, _)| *id);
        for id in checkpoints.collect::<Vec<_>>() {
            self.end_checkpoint(id, verdict, now);
        }
    }

    /// Sees to it that whoever waits hears of it every now and then.
    pub(crate) fn keep_reporting(&mut self, now: Instant) {
        if !self.timers.is_set(Timer::ProgressReport) {
            self.timers
                .set(Timer::ProgressReport, now + PROGRESS_INTERVAL);
        }
    }

    /// Ends that when nobody waits any more.
    pub(crate) fn end_reporting(&mut self) {
        if self.checkpoints.hosts.is_empty() && !self.hooks.is_awaited() {
            self.timers.stop(Timer::ProgressReport);
        }
    }

    /// Gives a sign of life to everybody who waits.
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

    /// A sign of life. A host that does not read its answers gets no more of them.
    pub(crate) fn send_progress(&mut self, id: ConnectionId, step: &str, now: Instant) {
        let connection = self.connections.get(&id);
        if connection.is_some_and(|host| host.outbox.takes_requests()) {
            let step = step.to_owned();
            self.send(id, &Message::Progress(Progress { step }), now);
        }
    }
}
