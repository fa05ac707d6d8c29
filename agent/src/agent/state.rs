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

/// Where the guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Takes commands. Before a host has named the guest, and after a probe has proven it.
    Running,
    /// The host asked for silence; sessions drain or connections close.
    Quiescing,
    /// Silent. A snapshot can be taken, and a clone wakes like this.
    Quiesced,
    /// The steps towards this name are under way.
    Rebinding(Generation),
    /// All steps towards this name are done; nobody has proven it yet.
    Rebound(Generation),
    /// A step towards this name failed.
    Failed(Generation),
    /// The machine, or the service, is about to end.
    Ending,
}

/// What changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// QUIESCE was accepted.
    Quiesce,
    /// Every other connection is closed and the console is out.
    Silent,
    /// REOPEN, or a limit that takes QUIESCE back.
    Reopen,
    /// REBIND with a name that is not the one in progress.
    Rebind(Generation),
    /// The last step of the rebind is done.
    StepsDone,
    /// A step of the rebind failed for good.
    StepFailed,
    /// A PROBE of the current name was answered on a fresh connection.
    Proven,
    /// SHUTDOWN, or the signal for it.
    End,
}

/// An input that the state does not allow. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// The state, as it was and is.
    pub state: State,
    /// What was refused.
    pub input: Input,
}

/// What a host can ask for, as far as the states tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// INFO or SESSIONS: changes nothing.
    Inspect,
    /// PROBE.
    Probe,
    /// EXEC, ATTACH, AWAIT_CHECKPOINT, HOOKS.
    Exec,
    /// SIGNAL, which may be what a host that drains sessions is waiting for.
    Signal,
    /// QUIESCE.
    Quiesce,
    /// REOPEN.
    Reopen,
    /// REBIND.
    Rebind,
    /// SHUTDOWN.
    Shutdown,
}

/// The state that follows.
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
        // A running guest may be probed as often as one likes.
        (S::Running | S::Rebound(_), I::Proven) => S::Running,
        // The first wish to end decides how.
        (
            S::Running
            | S::Quiescing
            | S::Quiesced
            | S::Rebinding(_)
            | S::Rebound(_)
            | S::Failed(_),
            I::End,
        ) => S::Ending,
        // Spelled out, so that a new variant fails to compile here.
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
    /// The state's name, for records and people.
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

    /// Whether a request of this kind is looked at, or why not. What it asks for may still be
    /// refused.
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

    /// Every legal step, then every other pair of state and input is refused.
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
