//! REBIND: which generation is requested, under way or done, and the answer that is kept. No I/O,
//! no clock.
//!
//! ```text
//! REBIND(g) ─┬ g is under way ─▶ joins: answered with the others
//!            ├ g is done ──────▶ answered again, nothing is done
//!            ├ g was replaced ─▶ FAIL(superseded): a late copy of an earlier host's REBIND
//!            └ g is new ───────▶ the one under way is superseded; all steps begin anew
//! ```
//!
//! The steps themselves are the machine in [`steps`].
//!
//! Invariants:
//! - The new generation is recorded before the first side effect.
//! - During a rebind the guest has no generation, so that nothing can run under the old one.
//! - An outcome of a superseded rebind changes nothing.
//! - A generation that was replaced does not come back.

pub(crate) mod checkpoints;
pub(crate) mod hooks;
pub mod http;
pub(crate) mod mmds;
pub(crate) mod probe;
pub(crate) mod quiesce;
pub(crate) mod steps;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::{info, warn};
use shared::id::Generation;
use shared::message::{
    Cause, Fail, FailCode, InheritedSessions, Message, Rebind, Rebound, Sever, SeverReason,
    StepName,
};

use super::action::{Action, StepOutcome};
use super::ids::ConnectionId;
use super::state::{Input, Request};
use super::timers::Timer;
use super::{Agent, DetachReason, LISTENER_BACKOFF};
use steps::{Next, Rebinding};

/// How long log lines are held back for the probe that usually follows a rebind.
pub(super) const LOG_HOLD_TIMEOUT: Duration = Duration::from_secs(1);

/// Generations that are remembered, so that a late copy of their REBIND changes nothing. A copy
/// comes late by at most an attempt of a host that has died since: by one or two generations.
pub(super) const GENERATIONS_KEPT_MAX: usize = 16;

/// The rebind under way, and the result of the last one.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Rebinds {
    /// Counts rebinds, to recognise the outcome of a superseded one.
    run: u64,
    current: Option<Rebinding>,
    result: Option<(Generation, Result<Rebound, Fail>)>,
    /// The last generations that were requested, in order.
    generations: VecDeque<Generation>,
    /// Those of them that this machine has lived through since it was booted or restored. A clone
    /// does not know what its source did after the snapshot, so the source's are not among them.
    lived: VecDeque<Generation>,
}

impl Rebinds {
    /// Whether a rebind is under way that has not reached its listener step.
    pub(super) fn will_rearm(&self) -> bool {
        let step = self.current.as_ref().and_then(Rebinding::step);
        matches!(step, Some(StepName::Connections | StepName::Listener))
    }

    pub(super) fn failure(&self) -> Option<&Fail> {
        self.result
            .as_ref()
            .and_then(|(_, result)| result.as_ref().err())
    }

    /// A connection has ended.
    pub(super) fn remove_waiter(&mut self, id: ConnectionId) {
        if let Some(current) = &mut self.current {
            current.remove_waiter(id);
        }
    }

    fn has_seen(&self, generation: Generation) -> bool {
        self.generations.contains(&generation)
    }

    fn remember(&mut self, generation: Generation) {
        push_bounded(&mut self.generations, generation);
    }

    /// Whether this machine was the one that had the generation.
    pub(super) fn has_lived(&self, generation: Generation) -> bool {
        self.lived.contains(&generation)
    }

    fn begin_life(&mut self, generation: Generation, cause: Cause) {
        if cause == Cause::Restore {
            self.lived.clear();
        }
        push_bounded(&mut self.lived, generation);
    }

    /// Drops the rebind under way.
    pub(super) fn abandon(&mut self) -> Option<Rebinding> {
        self.current.take()
    }

    /// The answer for this generation, if it has one.
    fn result_of(&self, generation: Generation) -> Option<Message> {
        let (generation_done, result) = self.result.as_ref()?;
        (*generation_done == generation).then(|| match result {
            Ok(rebound) => Message::Rebound(rebound.clone()),
            Err(fail) => Message::Fail(fail.clone()),
        })
    }
}

fn push_bounded(generations: &mut VecDeque<Generation>, generation: Generation) {
    if generations.len() == GENERATIONS_KEPT_MAX {
        generations.pop_front();
    }
    generations.push_back(generation);
}

impl Agent {
    pub(super) fn handle_rebind(&mut self, id: ConnectionId, request: Rebind, now: Instant) {
        if !self.admit(id, Request::Rebind, now) {
            return;
        }
        if let Some(current) = &mut self.rebinds.current
            && current.generation() == request.generation
        {
            if !current.join(id) {
                let text = "too many connections wait for this rebind";
                self.send_fail(id, FailCode::Limit, text, now);
            }
            return;
        }
        if let Some(answer) = self.rebinds.result_of(request.generation) {
            return self.send(id, &answer, now);
        }
        if self.rebinds.has_seen(request.generation) {
            let text = format!("generation {} was superseded", request.generation);
            return self.send_fail(id, FailCode::Superseded, text, now);
        }
        self.start_rebind(id, request, now);
    }

    fn start_rebind(&mut self, id: ConnectionId, request: Rebind, now: Instant) {
        self.counters.rebinds += 1;
        let generation = request.generation;
        // Recorded first, so that all that follows belongs to the new generation.
        self.set_state(Input::Rebind(generation));
        self.generation = None;
        self.rebinds.run += 1;
        self.rebinds.remember(generation);
        self.rebinds.result = None;
        self.abandon_quiescing();
        self.abandon_hooks(now);
        self.pause_mmds(now);
        self.timers.pause(now);
        self.timers.stop(Timer::LogHold);
        self.answer_superseded(generation, id, now);
        let sessions_dropped = match request.sessions {
            InheritedSessions::Keep => 0,
            InheritedSessions::Kill => {
                self.drop_workload();
                self.kill_sessions(now)
            }
        };
        self.release_session(id, DetachReason::Cut, now);
        let old: Vec<_> = self
            .connections
            .iter()
            .filter(|(other, it)| **other != id && !it.is_local())
            .map(|(other, _)| *other)
            .collect();
        for other in &old {
            self.announce_rebind(*other, now);
        }
        self.rebinds.current = Some(Rebinding::new(request, id, old, sessions_dropped));
        self.advance_rebind(now);
    }

    /// Answers the connections that wait for the replaced rebind, before they are closed.
    fn answer_superseded(&mut self, by: Generation, asker: ConnectionId, now: Instant) {
        let Some(loser) = self.rebinds.abandon() else {
            return;
        };
        for waiting in loser.waiting().to_vec() {
            if waiting != asker {
                let text = format!("generation {} was superseded by {by}", loser.generation());
                self.send_fail(waiting, FailCode::Superseded, text, now);
            }
        }
    }

    /// Announces why the connection ends, in one flush without waiting: most clients are gone
    /// already.
    fn announce_rebind(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if !connection.is_awaiting_hello() {
            let sever = Sever {
                reason: SeverReason::Rebind,
            };
            self.send(id, &Message::Sever(sever), now);
        }
    }

    /// Answers [`Action::Step`].
    pub fn handle_step(&mut self, run: u64, outcome: StepOutcome, took: Duration, now: Instant) {
        if run != self.rebinds.run {
            return;
        }
        let Some(current) = &mut self.rebinds.current else {
            return;
        };
        let step = current.step();
        let is_done = outcome == StepOutcome::Done;
        if let StepOutcome::Failed(failure) = &outcome {
            warn!("rebind to {}: {}", current.generation(), failure.text);
        }
        let old_connections = current.take_old_connections(step);
        let failed = current.handle_outcome(outcome, took);
        for old in old_connections {
            self.forget(old, DetachReason::Cut, now);
        }
        if is_done && step == Some(StepName::Listener) {
            self.listener.handle_rebound();
            self.actions.push_back(Action::DrainAccept);
        } else if step == Some(StepName::Listener) {
            // Without a listener in the poll set no further REBIND could arrive.
            self.listener.handle_failed();
            self.timers.set(Timer::Listener, now + LISTENER_BACKOFF);
        }
        match failed {
            Some(fail) => self.end_rebind(Err(fail), now),
            None => self.advance_rebind(now),
        }
    }

    fn advance_rebind(&mut self, now: Instant) {
        let listener_serial = self.listener.serial();
        let Some(current) = &mut self.rebinds.current else {
            return;
        };
        match current.poll_next(listener_serial) {
            Next::Act(action) => {
                let run = self.rebinds.run;
                self.actions.push_back(Action::Step { run, action });
            }
            Next::Done(rebound) => self.end_rebind(Ok(rebound), now),
            Next::Failed(fail) => self.end_rebind(Err(fail), now),
        }
    }

    /// Keeps the result and sends it to all connections that wait for it.
    fn end_rebind(&mut self, result: Result<Rebound, Fail>, now: Instant) {
        let Some(ended) = self.rebinds.current.take() else {
            return;
        };
        let generation = ended.generation();
        self.set_state(if result.is_ok() {
            Input::StepsDone
        } else {
            Input::StepFailed
        });
        self.generation = result.is_ok().then_some(generation);
        if result.is_ok() {
            self.rebinds.begin_life(generation, ended.cause());
            self.checkpoints.handle_rebound(ended.cause());
            self.timers.set(Timer::LogHold, now + LOG_HOLD_TIMEOUT);
            self.timers.resume(now);
            self.start_mmds(now);
        }
        self.rebinds.result = Some((generation, result));
        if let Some(answer) = self.rebinds.result_of(generation) {
            for waiting in ended.waiting() {
                self.send(*waiting, &answer, now);
            }
        }
        info!(
            "generation {generation} ({}): {}",
            ended.cause(),
            self.state.name()
        );
    }
}
