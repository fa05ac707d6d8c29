//! The pieces of a run: each is measured separately and on disk before the next one begins. A piece
//! that fails is noted, and the others still run.
//!
//! The emulated lab can stop running, and `lab.sh` then kills its machine. So a run that finds the
//! record and the ledger of an earlier one continues after them. A piece in which the machine was
//! killed three times is skipped.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::Failure;
use crate::results::Results;

/// How often a piece may be begun.
const BEGINS_MAX: usize = 3;

/// Which pieces were begun and have ended, and the results.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    pub(super) results: &'a mut Results,
    /// File of the record.
    out: PathBuf,
    /// File of the lines.
    path: PathBuf,
    /// `begin NAME` and `end NAME`.
    lines: Vec<String>,
}

impl<'a> Ledger<'a> {
    /// Opens the ledger beside the record `out`, and reads both.
    pub(super) fn open(results: &'a mut Results, out: &Path) -> Result<Self, Failure> {
        if out.exists() {
            results.merge(Results::read(out)?);
        }
        let path = out.with_extension("ledger");
        let text = fs::read_to_string(&path).unwrap_or_default();
        Ok(Self {
            results,
            out: out.to_owned(),
            path,
            lines: text.lines().map(str::to_owned).collect(),
        })
    }

    /// Measures a piece, unless an earlier run has. Returns whether nothing failed.
    pub(super) fn measure(
        &mut self,
        name: &str,
        piece: impl FnOnce(&mut Results) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        if self.count("end", name) > 0 {
            return Ok(true);
        }
        if self.count("begin", name) >= BEGINS_MAX {
            self.results
                .skip(name, "the lab stopped running in it, three times");
            self.note("end", name)?;
            return Ok(true);
        }
        self.note("begin", name)?;
        let is_measured = self.make(name, |ledger| piece(ledger.results)).is_some();
        self.note("end", name)?;
        Ok(is_measured)
    }

    /// Runs `piece` without an entry in the ledger, and notes a failure as skipped.
    pub(super) fn make<T>(
        &mut self,
        name: &str,
        piece: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Option<T> {
        let started_at = Instant::now();
        let made = piece(self).map_err(|failure| self.results.skip(name, failure));
        eprintln!("{name} took {:.0} s", started_at.elapsed().as_secs_f64());
        made.ok()
    }

    fn count(&self, verb: &str, name: &str) -> usize {
        let line = format!("{verb} {name}");
        self.lines.iter().filter(|other| **other == line).count()
    }

    fn note(&mut self, verb: &str, name: &str) -> Result<(), Failure> {
        let line = format!("{verb} {name}");
        self.results.write(&self.out)?;
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).open(&self.path)?;
        writeln!(file, "{line}")?;
        self.lines.push(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::catalogue::Unit;

    #[test]
    fn a_later_run_goes_on_behind_an_earlier_one() {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("lab.json");
        let mut results = Results::default();
        let mut ledger = Ledger::open(&mut results, &out).unwrap();
        let one = |results: &mut Results| {
            results.add("lab/boot", "agent", None, Unit::Milliseconds, &[1.0]);
            Ok(())
        };
        assert!(ledger.measure("one", one).unwrap());
        assert!(!ledger.measure("two", |_| Err("no".into())).unwrap());
        // The machine is killed in the middle of a piece each time.
        for _ in 0..BEGINS_MAX {
            ledger.note("begin", "three").unwrap();
        }

        let mut results = Results::default();
        let mut ledger = Ledger::open(&mut results, &out).unwrap();
        for name in ["one", "two", "three"] {
            let again = |_: &mut Results| Err("begun again".into());
            assert!(ledger.measure(name, again).unwrap(), "{name}");
        }
        assert!(results.find("lab/boot", "agent", None).is_some());
        assert_eq!(results.skipped["two"], "no");
        assert!(results.skipped["three"].contains("stopped running"));
    }
}
