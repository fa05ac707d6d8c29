//! The results of many runs: latencies and failures.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::failed::Failed;
use super::latency::Summary;
use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::os::clock::to_us;

/// The results of one worker, or of several merged.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Of the successful runs.
    pub(super) latencies: Vec<Duration>,
    /// Of the other runs, by kind.
    pub(super) failures: BTreeMap<String, Kind>,
}

#[derive(Debug)]
pub(super) struct Kind {
    count: u32,
    exit: Exit,
    /// The message of the first failure.
    text: String,
}

impl Tally {
    pub(super) fn failed(text: &str) -> Self {
        let mut tally = Self::default();
        tally.fail(Failed {
            kind: "this machine".to_owned(),
            exit: Exit::Internal,
            text: text.to_owned(),
        });
        tally
    }

    pub(super) fn fail(&mut self, failed: Failed) {
        let Failed { kind, exit, text } = failed;
        let first = Kind {
            count: 0,
            exit,
            text,
        };
        self.failures.entry(kind).or_insert(first).count += 1;
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.latencies.extend(other.latencies);
        for (name, kind) in other.failures {
            match self.failures.get_mut(&name) {
                Some(known) => known.count += kind.count,
                None => drop(self.failures.insert(name, kind)),
            }
        }
        self
    }
}

/// The exit of several failures: their common one, or [`Exit::Guest`] if they differ.
pub(crate) fn common_exit(mut exits: impl Iterator<Item = Exit>) -> Exit {
    match exits.next() {
        None => Exit::Success,
        Some(first) if exits.all(|exit| exit == first) => first,
        Some(_) => Exit::Guest,
    }
}

/// The results of all runs.
#[derive(Debug)]
pub(crate) struct Report {
    pub(super) parallel: u32,
    pub(super) total: u32,
    pub(super) took: Duration,
    pub(super) tally: Tally,
}

impl Report {
    /// How many runs exited with 0.
    pub(crate) fn succeeded(&self) -> usize {
        self.tally.latencies.len()
    }

    /// Successful runs per second.
    pub(crate) fn per_second(&self) -> f64 {
        let succeeded = u32::try_from(self.succeeded()).unwrap_or(u32::MAX);
        let seconds = self.took.as_secs_f64().max(f64::MIN_POSITIVE);
        // Repeated runs agree to one decimal at best.
        (f64::from(succeeded) / seconds * 10.0).round() / 10.0
    }

    /// The latencies of successful runs; `None` if all failed.
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of(self.tally.latencies.clone())
    }

    pub(super) fn exit(&self) -> Exit {
        common_exit(self.tally.failures.values().map(|kind| kind.exit))
    }

    /// The failure of the whole load; `None` if every run succeeded.
    pub(crate) fn failure(&self) -> Option<Failure> {
        // The most frequent kind is shown in full.
        let (_, first) = self
            .tally
            .failures
            .iter()
            .max_by_key(|(_, kind)| kind.count)?;
        let failed = usize::try_from(self.total).unwrap_or(usize::MAX) - self.succeeded();
        let text = format!("{failed} of {} runs failed: {}", self.total, first.text);
        Some(Failure::new(self.exit(), text))
    }

    pub(crate) fn to_value(&self) -> Value {
        let failures = &self.tally.failures;
        let counts: BTreeMap<_, _> = failures
            .iter()
            .map(|(name, kind)| (name, kind.count))
            .collect();
        json!({
            "event": if failures.is_empty() { "done" } else { "failed" },
            "exit": Table::General.code(self.exit()),
            "parallel": self.parallel,
            "total": self.total,
            "succeeded": self.succeeded(),
            "us": to_us(self.took),
            "per_second": self.per_second(),
            "latency_us": self.summary().map(|summary| summary.to_value()),
            "failures": counts,
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "{} of {} succeeded  {} parallel  {:.1} ms  {:.1} per second",
            self.succeeded(),
            self.total,
            self.parallel,
            self.took.as_secs_f64() * 1000.0,
            self.per_second()
        );
        if let Some(summary) = self.summary() {
            text.push('\n');
            text.push_str(&summary.to_table());
        }
        for (name, kind) in &self.tally.failures {
            text.push_str(&format!("\n{:>11} {name}", kind.count));
        }
        text
    }
}
