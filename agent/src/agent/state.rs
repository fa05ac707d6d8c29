//! The state of the guest as the host sees it, and what each state admits. No I/O, no clock.
//!
//! ```text
//!            QUIESCE              silent
//! Running ─────────────▶ Quiescing ─────────▶ Quiesced
//!  ▲   ▲                    │ REOPEN, limit      │ REOPEN, limit ▶ Running
//!  │   └────────────────────┘                    │
//!  │                                             │ REBIND(g), in every state but Ending
//!  │ PROBE(g) on a connection                    ▼
//!  │ accepted after the rebind                Rebinding(g) ──step failed──▶ Failed(g)
//!  └────────────────────────── Rebound(g) ◀──────┘ all steps done
//!
//! any state ── SHUTDOWN or a signal ──▶ Ending
//! ```
//!
//! Invariants:
//! - A refused input leaves the state as it was.
//! - [`State::Failed`] admits nothing but a new REBIND: a clone with the wrong time or with random
//!   numbers that its siblings share must not run anything.

use shared::id::Generation;
use shared::message::FailCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Takes requests: before the first REBIND, and after a probe.
    Running,
    /// After QUIESCE: sessions drain, or connections close.
    Quiescing,
    /// A snapshot can be taken. A clone wakes up in this state.
    Quiesced,
    Rebinding(Generation),
    /// All steps are done, and no probe has been answered yet.
    Rebound(Generation),
    Failed(Generation),
    /// The machine, or the service, is about to end.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// QUIESCE was accepted.
    Quiesce,
    /// Every other connection is closed, and the console has sent everything.
    Silent,
    /// REOPEN, or a limit that ends QUIESCE.
    Reopen,
    /// REBIND to another generation than the one in progress.
    Rebind(Generation),
    StepsDone,
    /// A step failed for good.
    StepFailed,
    /// A PROBE of the current generation was answered on a fresh connection.
    Proven,
    /// SHUTDOWN, or a signal that means the same.
    End,
}

/// The state does not allow the input. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    pub state: State,
    pub input: Input,
}

/// Kinds of requests, as far as the states treat them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// INFO, SESSIONS: changes nothing.
    Inspect,
    Probe,
    /// EXEC, ATTACH, AWAIT_CHECKPOINT, HOOKS.
    Exec,
    /// SIGNAL. A host that drains sessions may need it.
    Signal,
    Quiesce,
    Reopen,
    Rebind,
    Shutdown,
}

pub fn transition(state: State, input: Input) -> Result<State, Refused> {
    use {Input as I, State as S};
    Ok(match (state, input) {
        (S::Running | S::Rebound(_), I::Quiesce) => S::Quiescing,
        (S::Quiescing, I::Silent) => S::Quiesced,
        (S::Quiescing | S::Quiesced, I::Reopen) => S::Running,
        (
            S::Running
            | S::Quiescing
            | S::Quiesced
            | S::Rebinding(_)
            | S::Rebound(_)
            | S::Failed(_),
            I::Rebind(generation),
        ) => S::Rebinding(generation),
        (S::Rebinding(generation), I::StepsDone) => S::Rebound(generation),
        (S::Rebinding(generation), I::StepFailed) => S::Failed(generation),
        // A running guest may be probed any number of times.
        (S::Running | S::Rebound(_), I::Proven) => S::Running,
        // The first request to end decides how.
        (
            S::Running
            | S::Quiescing
            | S::Quiesced
            | S::Rebinding(_)
            | S::Rebound(_)
            | S::Failed(_),
            I::End,
        ) => S::Ending,
        // Listed in full, so that a new variant fails to compile here.
        (S::Running | S::Rebound(_), I::Silent | I::Reopen | I::StepsDone | I::StepFailed)
        | (S::Quiescing, I::Quiesce | I::StepsDone | I::StepFailed | I::Proven)
        | (S::Quiesced, I::Quiesce | I::Silent | I::StepsDone | I::StepFailed | I::Proven)
        | (S::Rebinding(_), I::Quiesce | I::Silent | I::Reopen | I::Proven)
        | (
            S::Failed(_),
            I::Quiesce | I::Silent | I::Reopen | I::StepsDone | I::StepFailed | I::Proven,
        )
        | (
            S::Ending,
            I::Quiesce
            | I::Silent
            | I::Reopen
            | I::Rebind(_)
            | I::StepsDone
            | I::StepFailed
            | I::Proven
            | I::End,
        ) => return Err(Refused { state, input }),
    })
}

impl State {
    /// For records and people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Quiescing => "quiescing",
            Self::Quiesced => "quiesced",
            Self::Rebinding(_) => "rebinding",
            Self::Rebound(_) => "rebound",
            Self::Failed(_) => "failed",
            Self::Ending => "ending",
        }
    }

    /// Whether a request of this kind is considered, or the refusal. A considered request may still
    /// fail.
    pub fn admits(self, request: Request) -> Result<(), FailCode> {
        use Request as R;
        match (self, request) {
            (
                Self::Running | Self::Rebound(_),
                R::Inspect
                | R::Probe
                | R::Exec
                | R::Signal
                | R::Quiesce
                | R::Reopen
                | R::Rebind
                | R::Shutdown,
            )
            | (Self::Quiescing, R::Signal)
            | (
                Self::Quiescing | Self::Quiesced,
                R::Inspect | R::Quiesce | R::Reopen | R::Rebind | R::Shutdown,
            )
            | (Self::Rebinding(_), R::Inspect | R::Rebind | R::Shutdown)
            | (Self::Failed(_), R::Rebind)
            | (Self::Ending, R::Inspect | R::Shutdown) => Ok(()),
            (Self::Quiescing | Self::Quiesced, R::Probe | R::Exec)
            | (Self::Quiesced, R::Signal)
            | (
                Self::Rebinding(_) | Self::Ending,
                R::Probe | R::Exec | R::Signal | R::Quiesce | R::Reopen,
            )
            | (Self::Ending, R::Rebind) => Err(FailCode::Refusing),
            (
                Self::Failed(_),
                R::Inspect | R::Probe | R::Exec | R::Signal | R::Quiesce | R::Reopen | R::Shutdown,
            ) => Err(FailCode::Rebind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Generation = Generation::from_bytes([1; 16]);
    const H: Generation = Generation::from_bytes([2; 16]);

    const STATES: [State; 7] = [
        State::Running,
        State::Quiescing,
        State::Quiesced,
        State::Rebinding(G),
        State::Rebound(G),
        State::Failed(G),
        State::Ending,
    ];

    const INPUTS: [Input; 8] = [
        Input::Quiesce,
        Input::Silent,
        Input::Reopen,
        Input::Rebind(H),
        Input::StepsDone,
        Input::StepFailed,
        Input::Proven,
        Input::End,
    ];

    /// Every legal transition; every other pair of state and input is refused.
    #[test]
    fn transitions() {
        use {Input as I, State as S};
        let legal = [
            (S::Running, I::Quiesce, S::Quiescing),
            (S::Running, I::Rebind(H), S::Rebinding(H)),
            (S::Running, I::Proven, S::Running),
            (S::Running, I::End, S::Ending),
            (S::Quiescing, I::Silent, S::Quiesced),
            (S::Quiescing, I::Reopen, S::Running),
            (S::Quiescing, I::Rebind(H), S::Rebinding(H)),
            (S::Quiescing, I::End, S::Ending),
            (S::Quiesced, I::Reopen, S::Running),
            (S::Quiesced, I::Rebind(H), S::Rebinding(H)),
            (S::Quiesced, I::End, S::Ending),
            (S::Rebinding(G), I::Rebind(H), S::Rebinding(H)),
            (S::Rebinding(G), I::StepsDone, S::Rebound(G)),
            (S::Rebinding(G), I::StepFailed, S::Failed(G)),
            (S::Rebinding(G), I::End, S::Ending),
            (S::Rebound(G), I::Quiesce, S::Quiescing),
            (S::Rebound(G), I::Rebind(H), S::Rebinding(H)),
            (S::Rebound(G), I::Proven, S::Running),
            (S::Rebound(G), I::End, S::Ending),
            (S::Failed(G), I::Rebind(H), S::Rebinding(H)),
            (S::Failed(G), I::End, S::Ending),
        ];
        for (state, input) in STATES.iter().flat_map(|s| INPUTS.map(|i| (*s, i))) {
            let expected = match legal.iter().find(|row| (row.0, row.1) == (state, input)) {
                Some(row) => Ok(row.2),
                None => Err(Refused { state, input }),
            };
            assert_eq!(
                transition(state, input),
                expected,
                "{state:?} with {input:?}"
            );
        }
    }

    #[test]
    fn admissions() {
        use {Request as R, State as S};
        let all = [
            R::Inspect,
            R::Probe,
            R::Exec,
            R::Signal,
            R::Quiesce,
            R::Reopen,
            R::Rebind,
            R::Shutdown,
        ];
        let admitted: [(State, &[Request], FailCode); 7] = [
            (S::Running, &all, FailCode::Internal),
            (S::Rebound(G), &all, FailCode::Internal),
            (
                S::Quiescing,
                &[
                    R::Inspect,
                    R::Signal,
                    R::Quiesce,
                    R::Reopen,
                    R::Rebind,
                    R::Shutdown,
                ],
                FailCode::Refusing,
            ),
            (
                S::Quiesced,
                &[R::Inspect, R::Quiesce, R::Reopen, R::Rebind, R::Shutdown],
                FailCode::Refusing,
            ),
            (
                S::Rebinding(G),
                &[R::Inspect, R::Rebind, R::Shutdown],
                FailCode::Refusing,
            ),
            (S::Failed(G), &[R::Rebind], FailCode::Rebind),
            (S::Ending, &[R::Inspect, R::Shutdown], FailCode::Refusing),
        ];
        for (state, requests, otherwise) in admitted {
            for request in all {
                let expected = if requests.contains(&request) {
                    Ok(())
                } else {
                    Err(otherwise)
                };
                assert_eq!(state.admits(request), expected, "{request:?} in {state:?}");
            }
        }
    }
}
