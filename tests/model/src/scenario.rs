//! Which scenarios are explored, and how far.

use std::time::Instant;

use crate::mutation::Mutation;
use crate::trace::Trace;
use crate::world::{Budget, Role, World};

#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// What the hosts do with the first guest.
    pub roles: &'static [Role],
    /// What may go wrong.
    pub budget: Budget,
    pub mutation: Option<Mutation>,
}

/// A boot with two faults.
pub const BOOT: Scenario = Scenario::new("one host, two faults", &[Role::Boot], [2, 0, 0, 0]);

/// A boot with a connection that others overtake.
pub const DETOUR: Scenario = Scenario::new("one host, a detour", &[Role::Boot], [1, 1, 0, 0]);

/// A boot on a slow machine.
pub const DELAY: Scenario = Scenario::new("one host, a delay", &[Role::Boot], [1, 0, 1, 0]);

/// Two hosts that do not know of each other.
pub const TWO_HOSTS: Scenario = Scenario::new("two hosts", &[Role::Boot, Role::Boot], [0, 0, 0, 0]);

/// QUIESCE, a snapshot, and then the source or the clone.
pub const SNAPSHOT: Scenario = Scenario::new("snapshot", &[Role::Snapshot], [1, 0, 0, 0]);

/// A snapshot by another program at any moment of a boot.
pub const STOLEN: Scenario = Scenario::new("stolen snapshot", &[Role::Boot], [0, 0, 0, 1]);

/// The same for a guest between QUIESCE and READY, before or after the snapshot, which includes
/// clones of clones.
pub const CLONES: Scenario = Scenario::new("clone of a clone", &[Role::Snapshot], [0, 0, 0, 1]);

/// An agent that is killed and started anew, or a result that is forgotten, while a command is
/// requested.
pub const LOSSES: Scenario = Scenario::new("a loss", &[Role::Boot], [1, 0, 0, 0]).losing(1);

/// What the tests explore.
pub const SCENARIOS: [Scenario; 8] = [
    BOOT, DETOUR, DELAY, TWO_HOSTS, SNAPSHOT, STOLEN, CLONES, LOSSES,
];

impl Scenario {
    const fn new(name: &'static str, roles: &'static [Role], budget: [u8; 4]) -> Self {
        let [faults, detours, delays, snapshots] = budget;
        Self {
            name,
            roles,
            budget: Budget {
                faults,
                detours,
                delays,
                snapshots,
                losses: 0,
            },
            mutation: None,
        }
    }

    const fn losing(mut self, losses: u8) -> Self {
        self.budget.losses = losses;
        self
    }

    #[must_use]
    pub const fn with(self, mutation: Mutation) -> Self {
        Self {
            mutation: Some(mutation),
            ..self
        }
    }

    pub fn world(&self, start: Instant, trace: Trace) -> World {
        World::new(self.roles, self.budget, self.mutation, start, trace)
    }
}
