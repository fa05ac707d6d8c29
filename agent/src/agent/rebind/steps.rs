//! One rebind: the next step, and the report. No I/O, no clock.
//!
//! ```text
//! Connections ─▶ Listener ─▶ Clock ─▶ Entropy ─▶ Identity ─▶ REBOUND
//!      └────────────┴──────────┴─────────┴──────────┴─ failed for good ─▶ FAIL(rebind)
//! ```
//!
//! Each step is one action of the shell, which measures it and hands the outcome back. A failed
//! step is final if the cause is a restore: a clone that shares its time, random numbers or
//! identity with a sibling must not run. After a boot or a resume the failure is reported and the
//! guest runs on. Without a listener the rebind always fails.
//!
//! Invariants:
//! - The steps are taken in this order, each at most once.
//! - The result is kept: a repeated request for the same generation is answered again and does
//!   nothing.

use std::time::Duration;

use shared::id::Generation;
use shared::message::{
    Cause, Fail, FailCode, Identity, Rebind, Rebound, Step, StepName, StepResult,
};

use crate::agent::action::{StepAction, StepFailure, StepOutcome};
use crate::agent::ids::ConnectionId;

/// Connections that may wait for one rebind. A host has one or two attempts under way.
pub(crate) const WAITING_MAX: usize = 8;

/// 2020-01-01. The wall clock cannot be earlier.
const WALL_CLOCK_NS_MIN: u64 = 1_577_836_800 * 1_000_000_000;

/// 2200-01-01. The wall clock cannot be this late.
const WALL_CLOCK_NS_MAX: u64 = 7_258_118_400 * 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    /// Perform this and report the outcome.
    Act(StepAction),
    Done(Rebound),
    /// A step failed for good.
    Failed(Fail),
}

/// A rebind under way.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Rebinding {
    request: Rebind,
    /// Connections that wait for the result, the earliest first.
    waiting: Vec<ConnectionId>,
    /// The next step, or the one under way; `None` when all are done.
    step: Option<StepName>,
    steps: Vec<Step>,
    /// To be closed by the first step.
    old_connections: Vec<ConnectionId>,
    clock_step_ns: i64,
    entropy_credited: bool,
    connections_dropped: u32,
    sessions_dropped: u32,
}

impl Rebinding {
    /// `old_connections` are those of an older generation.
    pub(crate) fn new(
        request: Rebind,
        asker: ConnectionId,
        old_connections: Vec<ConnectionId>,
        sessions_dropped: usize,
    ) -> Self {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            request,
            waiting: vec![asker],
            step: Some(StepName::Connections),
            steps: Vec::with_capacity(StepName::ALL.len()),
            connections_dropped: count(old_connections.len()),
            sessions_dropped: count(sessions_dropped),
            old_connections,
            clock_step_ns: 0,
            entropy_credited: false,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.request.generation
    }

    pub(crate) fn cause(&self) -> Cause {
        self.request.cause
    }

    pub(crate) fn step(&self) -> Option<StepName> {
        self.step
    }

    /// Adds a connection that waits for the result. Returns whether there was room.
    pub(crate) fn join(&mut self, connection: ConnectionId) -> bool {
        if self.waiting.contains(&connection) {
            return true;
        }
        let has_room = self.waiting.len() < WAITING_MAX;
        if has_room {
            self.waiting.push(connection);
        }
        has_room
    }

    /// A connection has ended. The rebind continues, and a repeated request finds its result.
    pub(crate) fn remove_waiter(&mut self, connection: ConnectionId) {
        self.waiting.retain(|waiting| *waiting != connection);
    }

    pub(crate) fn waiting(&self) -> &[ConnectionId] {
        &self.waiting
    }

    /// The connections that the first step has closed, once it was performed.
    pub(crate) fn take_old_connections(
        &mut self,
        performed: Option<StepName>,
    ) -> Vec<ConnectionId> {
        if performed == Some(StepName::Connections) {
            std::mem::take(&mut self.old_connections)
        } else {
            Vec::new()
        }
    }

    /// The next thing to do. Skips steps that the request does not ask for.
    pub(crate) fn poll_next(&mut self, listener_serial: u64) -> Next {
        while let Some(step) = self.step {
            match self.action(step) {
                Ok(Some(action)) => return Next::Act(action),
                Ok(None) => self.advance(step, StepResult::Skipped, Duration::ZERO),
                Err(failure) => {
                    if let Some(fail) = self.fail(step, failure, Duration::ZERO) {
                        return Next::Failed(fail);
                    }
                }
            }
        }
        Next::Done(Rebound {
            generation: self.request.generation,
            steps: self.steps.clone(),
            clock_step_ns: self.clock_step_ns,
            entropy_credited: self.entropy_credited,
            listener_serial,
            connections_dropped: self.connections_dropped,
            sessions_dropped: self.sessions_dropped,
        })
    }

    /// Returns the refusal if the step failed for good.
    pub(crate) fn handle_outcome(&mut self, outcome: StepOutcome, took: Duration) -> Option<Fail> {
        let step = self.step?;
        match outcome {
            StepOutcome::Done => {
                self.entropy_credited |= step == StepName::Entropy;
                self.advance(step, StepResult::Done, took);
                None
            }
            StepOutcome::ClockMoved { step_ns } => {
                self.clock_step_ns = step_ns;
                self.advance(step, StepResult::Done, took);
                None
            }
            StepOutcome::Unprivileged => {
                self.advance(step, StepResult::Unprivileged, took);
                None
            }
            StepOutcome::Failed(failure) => self.fail(step, failure, took),
        }
    }

    /// `None` if the request does not ask for the step.
    fn action(&self, step: StepName) -> Result<Option<StepAction>, StepFailure> {
        Ok(match step {
            StepName::Connections => {
                Some(StepAction::CloseConnections(self.old_connections.clone()))
            }
            StepName::Listener => Some(StepAction::RearmListener),
            StepName::Clock => Some(StepAction::SetClock {
                wall_ns: self.wall_ns()?,
            }),
            StepName::Entropy => self
                .request
                .entropy
                .map(|entropy| StepAction::Reseed { entropy }),
            StepName::Identity => {
                let wanted = self.request.identity != Identity::default();
                wanted.then(|| StepAction::SetIdentity(self.request.identity.clone()))
            }
        })
    }

    /// The host's time, if it is plausible.
    fn wall_ns(&self) -> Result<i64, StepFailure> {
        let ns = self.request.wall_clock_ns;
        let plausible = (WALL_CLOCK_NS_MIN..WALL_CLOCK_NS_MAX).contains(&ns);
        i64::try_from(ns)
            .ok()
            .filter(|_| plausible)
            .ok_or_else(|| StepFailure {
                errno: None,
                text: format!(
                    "cannot set the clock to {ns} ns since 1970: not between 2020 and 2200"
                ),
            })
    }

    /// Records a result and goes to the next step.
    fn advance(&mut self, step: StepName, result: StepResult, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.steps.push(Step {
            name: step,
            us,
            result,
        });
        self.step = match step {
            StepName::Connections => Some(StepName::Listener),
            StepName::Listener => Some(StepName::Clock),
            StepName::Clock => Some(StepName::Entropy),
            StepName::Entropy => Some(StepName::Identity),
            StepName::Identity => None,
        };
    }

    /// Records a failure and goes to the next step, or returns the refusal if the failure is final.
    fn fail(&mut self, step: StepName, failure: StepFailure, took: Duration) -> Option<Fail> {
        let is_final = match step {
            StepName::Connections | StepName::Listener => true,
            StepName::Clock | StepName::Entropy | StepName::Identity => {
                self.request.cause == Cause::Restore
            }
        };
        self.advance(step, StepResult::Failed, took);
        is_final.then(|| Fail {
            code: FailCode::Rebind,
            phase: Some(step.as_str().to_owned()),
            errno: failure.errno,
            text: failure.text,
        })
    }
}
