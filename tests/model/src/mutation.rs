//! Defects that this kind of program has had, played by what stands around the machines. None of
//! them is in the code that ships, so none can be switched on by mistake.

use crate::property::Property;
use crate::scenario::{BOOT, DETOUR, SNAPSHOT, Scenario, TWO_HOSTS};

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The listener is not registered again, and only its own edges lead to accepting.
    NoRearm,
    /// One connection is accepted for each edge.
    AcceptOnePerEdge,
    /// A connection event that is an error and not readable is passed over.
    ErrorEventIgnored,
    /// The guest takes a reset for a restore, and gives itself a name.
    ResetIsVerdict,
    /// The host says READY when REBOUND has come.
    ReadyBeforeProbe,
    /// The host makes names of the time in whole seconds.
    EpochInSeconds,
    /// Some time after the rebind the listener is registered once more, and that swallows an edge.
    SecondRearm,
    /// The new name is recorded in the turn after that of the side effects.
    RecordedLate,
    /// A client that was cut off asks for its command as if for another one.
    RetryIsNew,
    /// A client does not say which guest it means.
    ExecWithoutName,
    /// A host takes the end of a connection for an answer.
    CloseIsVerdict,
    /// The guest has no limit for its silence, nor for anything else.
    NoLimits,
    /// The guest's loop does not look at the time when it wakes.
    TimersUnheard,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NoRearm,
        Self::AcceptOnePerEdge,
        Self::ErrorEventIgnored,
        Self::ResetIsVerdict,
        Self::ReadyBeforeProbe,
        Self::EpochInSeconds,
        Self::SecondRearm,
        Self::RecordedLate,
        Self::RetryIsNew,
        Self::ExecWithoutName,
        Self::CloseIsVerdict,
        Self::NoLimits,
        Self::TimersUnheard,
    ];

    /// What it is, as a heading.
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
            Self::ExecWithoutName => "command that names no guest",
            Self::CloseIsVerdict => "end of a connection taken as a verdict",
            Self::NoLimits => "no limit for the silence",
            Self::TimersUnheard => "deadlines not looked at",
        }
    }

    /// The promise that it breaks first.
    pub const fn breaks(self) -> Property {
        match self {
            Self::NoRearm => Property::ReboundAfterDrain,
            Self::AcceptOnePerEdge | Self::SecondRearm => Property::NobodyWaitsAtTheDoor,
            Self::ErrorEventIgnored => Property::DeadConnectionsAreClosed,
            Self::ResetIsVerdict | Self::RecordedLate => Property::NamesComeFromHosts,
            Self::ReadyBeforeProbe => Property::ReadyAfterProbe,
            Self::EpochInSeconds => Property::OneGuestPerName,
            Self::RetryIsNew => Property::NoExecTwice,
            Self::ExecWithoutName => Property::NoExecUnderStaleName,
            Self::CloseIsVerdict => Property::ReadyOrNamedFailure,
            Self::NoLimits => Property::NotLeftRefusing,
            Self::TimersUnheard => Property::EveryRunEnds,
        }
    }

    /// A world in which it shows.
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
            Self::RecordedLate | Self::ExecWithoutName => TWO_HOSTS,
        };
        scenario.with(self)
    }
}
