//! What a soak has done, as one line.

use std::collections::BTreeMap;
use std::fmt;

use super::fault::Fault;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) lives: u32,
    /// Boots whose guest the emulator ended.
    pub(super) lost_lives: u32,
    pub(super) restores: u32,
    pub(super) snapshots: u32,
    /// Commands after restores, without those of the faults.
    pub(super) commands: u32,
    faults: BTreeMap<Fault, u32>,
}

impl Tally {
    pub(super) fn begin(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} boots, {} restores, {} snapshots of clones, {} commands",
            self.lives, self.restores, self.snapshots, self.commands
        )?;
        for (fault, count) in &self.faults {
            write!(f, ", {count} × {fault}")?;
        }
        if self.lost_lives > 0 {
            write!(f, ", {} ended by the emulator", self.lost_lives)?;
        }
        Ok(())
    }
}
