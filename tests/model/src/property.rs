//! What must hold.

/// A promise of the handshake. Each is checked after every step, or, where it says *at rest*, in
/// states in which nothing but faults can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Property {
    /// A guest acts once on a generation, however often it is asked for.
    OneOutcomePerGeneration,
    /// A guest's generation is the last new one that a host has asked for.
    GenerationsComeFromHosts,
    /// No two guests have the same generation.
    OneGuestPerGeneration,
    /// No command runs under another generation than the guest's.
    NoExecOfStaleGeneration,
    NoExecTwice,
    /// REBOUND is written only after the listener was registered again for this generation and the
    /// accept queue was emptied.
    ReboundAfterDrain,
    /// READY is reported only after a probe was answered on a connection that was accepted after
    /// that.
    ReadyAfterProbe,
    /// A guest that sleeps has an empty accept queue, except for connections whose edge was lost.
    NoConnectionLeftWaiting,
    /// A guest that has handled its events has closed what was reset.
    DeadConnectionsAreClosed,
    /// At rest: no guest refuses work.
    NotLeftRefusing,
    /// At rest: every living host is ready, or has failed with a true reason.
    ReadyOrNamedFailure,
    /// No run is a cycle. Together with the previous property, every run ends well.
    EveryRunEnds,
}

impl Property {
    pub const ALL: [Self; 12] = [
        Self::OneOutcomePerGeneration,
        Self::GenerationsComeFromHosts,
        Self::OneGuestPerGeneration,
        Self::NoExecOfStaleGeneration,
        Self::NoExecTwice,
        Self::ReboundAfterDrain,
        Self::ReadyAfterProbe,
        Self::NoConnectionLeftWaiting,
        Self::DeadConnectionsAreClosed,
        Self::NotLeftRefusing,
        Self::ReadyOrNamedFailure,
        Self::EveryRunEnds,
    ];
}
