//! Defects that programs of this kind have had, played by what stands around the machines. The code
//! that ships has none of them, so none can be switched on by mistake.

use crate::property::Property;
use crate::scenario::{BOOT, DETOUR, LOSSES, SNAPSHOT, Scenario, TWO_HOSTS};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The listener is not registered again, and only its own edges lead to accepting.
    NoRearm,
    /// One connection is accepted for each edge.
    AcceptOnePerEdge,
    /// An event of a connection that is an error and not readable is ignored.
    ErrorEventIgnored,
    /// The guest takes a reset for a restore, and gives itself a generation.
    ResetIsVerdict,
    /// The host reports READY after REBOUND.
    ReadyBeforeProbe,
    /// The host derives generations from the time in whole seconds.
    EpochInSeconds,
    /// Some time after the rebind the listener is registered once more, which loses an edge.
    SecondRearm,
    /// The new generation is recorded one turn after its side effects.
    RecordedLate,
    /// A client that was cut sends EXEC with a new id.
    RetryIsNew,
    /// A client does not say which generation it means.
    ExecWithoutGeneration,
    /// A client that was cut sends EXEC without saying where the first copy went.
    ExecWithoutOrigin,
    /// A host takes the end of a connection for an answer.
    CloseIsVerdict,
    /// The guest has no time limits, neither for its silence nor for anything else.
    NoLimits,
    /// The guest's loop does not check the deadlines when it wakes.
    TimersUnheard,
}

impl Mutation {
    pub const ALL: [Self; 14] = [
        Self::NoRearm,
        Self::AcceptOnePerEdge,
        Self::ErrorEventIgnored,
        Self::ResetIsVerdict,
        Self::ReadyBeforeProbe,
        Self::EpochInSeconds,
        Self::SecondRearm,
        Self::RecordedLate,
        Self::RetryIsNew,
        Self::ExecWithoutGeneration,
        Self::ExecWithoutOrigin,
        Self::CloseIsVerdict,
        Self::NoLimits,
        Self::TimersUnheard,
    ];

    /// The heading in `docs/model.md`.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoRearm => "lost edge without registering again",
            Self::AcceptOnePerEdge => "accept one per edge",
            Self::ErrorEventIgnored => "error event ignored",
            Self::ResetIsVerdict => "reset taken as a verdict",
            Self::ReadyBeforeProbe => "readiness published before the probe",
            Self::EpochInSeconds => "epoch in seconds",
            Self::SecondRearm => "second re-registration that loses the edge",
            Self::RecordedLate => "generation recorded after the side effect",
            Self::RetryIsNew => "retried command is a new command",
            Self::ExecWithoutGeneration => "command without a generation",
            Self::ExecWithoutOrigin => "retried command without its origin",
            Self::CloseIsVerdict => "end of a connection taken as a verdict",
            Self::NoLimits => "no time limit for quiesced guests",
            Self::TimersUnheard => "deadlines ignored",
        }
    }

    /// The property that it breaks first.
    pub const fn breaks(self) -> Property {
        match self {
            Self::NoRearm => Property::ReboundAfterDrain,
            Self::AcceptOnePerEdge | Self::SecondRearm => Property::NoConnectionLeftWaiting,
            Self::ErrorEventIgnored => Property::DeadConnectionsAreClosed,
            Self::ResetIsVerdict | Self::RecordedLate => Property::GenerationsComeFromHosts,
            Self::ReadyBeforeProbe => Property::ReadyAfterProbe,
            Self::EpochInSeconds => Property::OneGuestPerGeneration,
            Self::RetryIsNew | Self::ExecWithoutOrigin => Property::NoExecTwice,
            Self::ExecWithoutGeneration => Property::NoExecOfStaleGeneration,
            Self::CloseIsVerdict => Property::ReadyOrNamedFailure,
            Self::NoLimits => Property::NotLeftRefusing,
            Self::TimersUnheard => Property::EveryRunEnds,
        }
    }

    /// A scenario in which it shows.
    pub const fn scenario(self) -> Scenario {
        let scenario = match self {
            Self::NoRearm
            | Self::ReadyBeforeProbe
            | Self::SecondRearm
            | Self::RetryIsNew
            | Self::CloseIsVerdict => BOOT,
            Self::AcceptOnePerEdge => DETOUR,
            Self::ErrorEventIgnored
            | Self::ResetIsVerdict
            | Self::EpochInSeconds
            | Self::NoLimits
            | Self::TimersUnheard => SNAPSHOT,
            Self::RecordedLate | Self::ExecWithoutGeneration => TWO_HOSTS,
            Self::ExecWithoutOrigin => LOSSES,
        };
        scenario.with(self)
    }
}
