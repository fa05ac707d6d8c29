//! What must hold, by name.

/// A promise of the handshake. Each is looked at after every step, or, where it says so, where
/// nothing but faults can happen any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Property {
    /// A generation is acted on once in a guest, however often it is asked for.
    OneOutcomePerGeneration,
    /// The guest has no name but the last new one that a host has asked for.
    NamesComeFromHosts,
    /// No two guests answer to one name.
    OneGuestPerName,
    /// No command runs under another name than that of the guest.
    NoExecUnderStaleName,
    /// No command runs twice.
    NoExecTwice,
    /// REBOUND is written only when the listener was registered again for this very name, and the
    /// accept queue was emptied after that.
    ReboundAfterDrain,
    /// READY is said only when a probe was answered on a connection that was accepted after that.
    ReadyAfterProbe,
    /// A guest that sleeps has an empty accept queue, but for what the transport told nobody.
    NobodyWaitsAtTheDoor,
    /// A guest that has handled its events has closed what was reset.
    DeadConnectionsAreClosed,
    /// At rest: no guest refuses.
    NotLeftRefusing,
    /// At rest: every host that lives is ready, or failed by a name that is true.
    ReadyOrNamedFailure,
    /// No run goes round in circles: with the one before, every run ends as that one says.
    EveryRunEnds,
}

impl Property {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::OneOutcomePerGeneration,
        Self::NamesComeFromHosts,
        Self::OneGuestPerName,
        Self::NoExecUnderStaleName,
        Self::NoExecTwice,
        Self::ReboundAfterDrain,
        Self::ReadyAfterProbe,
        Self::NobodyWaitsAtTheDoor,
        Self::DeadConnectionsAreClosed,
        Self::NotLeftRefusing,
        Self::ReadyOrNamedFailure,
        Self::EveryRunEnds,
    ];
}
