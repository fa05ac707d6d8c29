//! One rebind: which step is next, and what the report says. No I/O, no clock.
//!
//! ```text
//! Connections ─▶ Listener ─▶ Clock ─▶ Entropy ─▶ Identity ─▶ REBOUND
//!      └────────────┴──────────┴─────────┴──────────┴─ failed for good ─▶ FAIL(rebind)
//! ```
//!
//! Each step is one action of the shell, which measures it and hands the outcome back. A failed
//! step is final when the cause is a restore, because a clone that shares its time, its random
//! numbers or its name with a sibling must not run; after a boot or a resume it is reported and the
//! guest goes on. Without a listener nothing goes on.
//!
//! Invariants:
//! - The steps are taken in this order, each at most once.
//! - The result is kept: the same generation asked for again is answered again and acts no more.

use std::time::Duration;

use shared::id::Generation;
use shared::message::{
    Cause, Fail, FailCode, Identity, Rebind, Rebound, Step, StepName, StepResult,
};

use crate::agent::ids::ConnectionId;

/// Most connections that wait for one rebind. More are refused: a host has one or two attempts
/// under way.
pub(crate) const WAITING_MAX: usize = 8;

/// Wall clock values below this cannot be true: 2020-01-01.
const WALL_CLOCK_NS_MIN: u64 = 1_577_836_800 * 1_000_000_000;

/// Wall clock values from this on cannot be true: 2200-01-01.
const WALL_CLOCK_NS_MAX: u64 = 7_258_118_400 * 1_000_000_000;

/// What the shell does for one step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepAction {
    /// Deregister, then close, these.
    CloseConnections(Vec<ConnectionId>),
    /// Take the listener out of the poll set and put it back, on the same descriptor.
    RearmListener,
    /// Set the wall clock to this many ns since 1970.
    SetClock {
        /// The host's time.
        wall_ns: i64,
    },
    /// Credit these bytes and reseed.
    Reseed {
        /// Random bytes of the host.
        entropy: [u8; 32],
    },
    /// Set what is given.
    SetIdentity(Identity),
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    /// It was done.
    Done,
    /// The wall clock was set, and moved by this much.
    ClockMoved {
        /// ns, positive is forward.
        step_ns: i64,
    },
    /// This process runs without privileges on purpose and was not permitted.
    Unprivileged,
    /// It was not done.
    Failed(StepFailure),
}

/// Why a step was not done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StepFailure {
    /// The system call's error number, where there was one.
    pub errno: Option<i32>,
    /// What failed on which object.
    pub text: String,
}

/// What the machine wants next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    /// Perform this and report.
    Act(StepAction),
    /// All steps are done.
    Done(Rebound),
    /// A step failed for good.
    Failed(Fail),
}

/// A rebind under way.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Rebinding {
    request: Rebind,
    /// Connections that wait for the result, the first one first.
    waiting: Vec<ConnectionId>,
    /// The step that comes next or is under way; `None` when all are done.
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
    /// Starts from the top. `old_connections` are those of an older generation.
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

    /// The name it leads to.
    pub(crate) fn generation(&self) -> Generation {
        self.request.generation
    }

    /// Why it was asked for.
    pub(crate) fn cause(&self) -> Cause {
        self.request.cause
    }

    /// The step that is under way.
    pub(crate) fn step(&self) -> Option<StepName> {
        self.step
    }

    /// One more connection waits for the result. Returns whether there was room.
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

    /// A waiting connection has ended. The rebind goes on: the next attempt finds its result.
    pub(crate) fn remove_waiter(&mut self, connection: ConnectionId) {
        self.waiting.retain(|waiting| *waiting != connection);
    }

    /// Who waits for the result.
    pub(crate) fn waiting(&self) -> &[ConnectionId] {
        &self.waiting
    }

    /// The connections that the first step has closed, once it has been performed.
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

    /// The next thing to do. Steps that were not asked for are passed over here.
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

    /// A step was performed. Returns the refusal if it failed for good.
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

    /// What a step asks of the shell; `None` if the request did not ask for it.
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

    /// The host's time, if it can be true.
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

    /// Notes how a step went and moves on.
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

    /// Notes a failure and moves on, or returns the refusal if it is final.
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
