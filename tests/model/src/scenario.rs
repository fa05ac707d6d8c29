//! Which worlds are explored, and how far.

use std::time::Instant;

use crate::mutation::Mutation;
use crate::story::Story;
use crate::world::{Budget, Role, World};

/// A world to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// What the hosts set out to do with the first guest.
    pub roles: &'static [Role],
    /// What may go wrong.
    pub budget: Budget,
    /// The defect that is played.
    pub mutation: Option<Mutation>,
}

/// A boot, and two things that go wrong.
pub const BOOT: Scenario = Scenario::new("one host, two faults", &[Role::Boot], [2, 0, 0, 0]);

/// A boot with a connection that is overtaken by others.
pub const DETOUR: Scenario = Scenario::new("one host, a detour", &[Role::Boot], [1, 1, 0, 0]);

/// A boot on a slow machine.
pub const DELAY: Scenario = Scenario::new("one host, a delay", &[Role::Boot], [1, 0, 1, 0]);

/// Two hosts that do not know of each other.
pub const TWO_HOSTS: Scenario = Scenario::new("two hosts", &[Role::Boot, Role::Boot], [0, 0, 0, 0]);

/// QUIESCE, a snapshot, and then either of the two lives.
pub const SNAPSHOT: Scenario = Scenario::new("snapshot", &[Role::Snapshot], [1, 0, 0, 0]);

/// A snapshot that nobody has prepared, at any moment of a boot.
pub const STOLEN: Scenario = Scenario::new("stolen snapshot", &[Role::Boot], [0, 0, 0, 1]);

/// The same of a guest that is between QUIESCE and READY, before or after the cut: clones of
/// clones are among them.
pub const CLONES: Scenario = Scenario::new("clone of a clone", &[Role::Snapshot], [0, 0, 0, 1]);

/// What is explored on each run of the tests.
pub const SCENARIOS: [Scenario; 7] = [BOOT, DETOUR, DELAY, TWO_HOSTS, SNAPSHOT, STOLEN, CLONES];

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
            },
            mutation: None,
        }
    }

    /// The same with a defect.
    #[must_use]
    pub const fn with(self, mutation: Mutation) -> Self {
        Self {
            mutation: Some(mutation),
            ..self
        }
    }

    /// Its first state.
    pub fn world(&self, start: Instant, story: Story) -> World {
        World::new(self.roles, self.budget, self.mutation, start, story)
    }
}
