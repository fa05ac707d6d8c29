//! What a command did: its phases with their times, and its outcome, as one line for people or one
//! JSON object for scripts.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use shared::id::Generation;
use shared::message::{Identity, Network, Step};

use crate::error::Failure;
use crate::exit::{Exit, Table};
use crate::guest::answer::{Answer, AskError, AttemptLog};
use crate::os::clock::to_us;
use crate::report::output::print;
use crate::report::phase::Phase;
use crate::report::reports::Reports;
use crate::report::text::render;
use crate::report::timeline::{PhaseSpan, Timeline, Track};

/// What a command did so far.
#[derive(Debug)]
pub(crate) struct Record {
    /// Finished phases in order; a phase that was entered twice is there twice.
    timeline: Timeline,
    current: Option<(Phase, Instant)>,
    /// The phase to report a failure for, in place of the current one.
    blamed: Option<Phase>,
    /// Attempts by phase.
    attempts: Map<String, Value>,
    fields: Map<String, Value>,
    reports: Reports,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            timeline: Timeline::new(Instant::now()),
            current: None,
            blamed: None,
            attempts: Map::new(),
            fields: Map::new(),
            reports: Reports::default(),
        }
    }

    /// Has success and failure written to these files as well.
    pub(crate) fn report_to(&mut self, reports: Reports) {
        self.reports = reports;
    }

    pub(crate) const fn begun_at(&self) -> Instant {
        self.timeline.begun_at()
    }

    /// Ends the current phase and begins `phase`.
    pub(crate) fn begin(&mut self, phase: Phase) {
        self.end();
        match self.text("name") {
            Some(name) => log::info!("{name}: phase {}", phase.as_str()),
            None => log::info!("phase {}", phase.as_str()),
        }
        self.current = Some((phase, Instant::now()));
    }

    /// Ends the current phase.
    pub(crate) fn end(&mut self) {
        if let Some((phase, begun_at)) = self.current.take() {
            self.timeline.add_phase(PhaseSpan {
                phase,
                begun_at,
                ended_at: Instant::now(),
            });
        }
    }

    pub(crate) fn current(&self) -> Option<Phase> {
        self.current.map(|(phase, _)| phase)
    }

    /// Reports a failure for `phase`, although later phases follow (to undo what was done).
    pub(crate) const fn blame(&mut self, phase: Option<Phase>) {
        self.blamed = phase;
    }

    /// Notes how many attempts `phase` took.
    fn attempts(&mut self, phase: Phase, count: u32) {
        self.attempts
            .insert(phase.as_str().to_owned(), count.into());
    }

    /// Notes the attempts that a request of `phase` took, however it went.
    pub(crate) fn note_asked<T>(&mut self, phase: Phase, asked: &Result<Answer<T>, AskError>) {
        let (count, log) = match asked {
            Ok(answer) => (answer.attempts, &answer.log[..]),
            Err(error) => (error.attempts, &error.log[..]),
        };
        self.attempts(phase, count);
        self.timeline.add_attempts(phase, log);
    }

    /// Notes the guest's steps, from the answer to the last of these attempts.
    pub(crate) fn note_rebind(&mut self, steps: &[Step], log: &[AttemptLog]) {
        self.timeline.add_rebind_steps(steps, log);
    }

    /// Notes how long the guest's no-op command took, from the answer to the last of these
    /// attempts.
    pub(crate) fn note_exec(&mut self, us: u64, log: &[AttemptLog]) {
        self.timeline.add_exec(us, log);
    }

    /// Notes a fact, which becomes a field of the JSON object.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.fields.insert(field.to_owned(), value.into());
    }

    pub(crate) fn set_generation(&mut self, generation: Generation) {
        self.set("generation", generation.to_string());
    }

    /// A noted fact, if it is a string.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).and_then(Value::as_str)
    }

    /// Notes the identity that the guest is given.
    pub(crate) fn set_identity(&mut self, identity: &Identity) {
        for (field, value) in [
            ("hostname", &identity.hostname),
            ("machine_id", &identity.machine_id),
        ] {
            if let Some(value) = value {
                self.set(field, value.as_str());
            }
        }
        if identity.network != Network::default() {
            self.set("network", identity.network.to_value());
        }
    }

    /// Prints the outcome: the JSON object, or the line that begins with `event`.
    pub(crate) fn finish(mut self, event: &str, is_json: bool) -> Result<(), Failure> {
        self.tell(event, is_json)
    }

    /// Like [`finish`](Self::finish), for a command that has something to undo if this fails.
    pub(crate) fn tell(&mut self, event: &str, is_json: bool) -> Result<(), Failure> {
        self.end();
        self.write_reports(Vec::new());
        print(&self.success(event, is_json))
    }

    /// The outcome as it is printed: the JSON object, or the line that begins with `event`.
    pub(crate) fn success(&self, event: &str, is_json: bool) -> String {
        if is_json {
            return self.success_value(event).to_string();
        }
        let line = self.to_line(event);
        match self.fields.get("guest") {
            // Users of commands that start a guest ask first how long each phase took.
            Some(guest) => {
                let timeline = render(&self.phases(), &self.attempts, Some(guest));
                format!("{line}\n{}", timeline.trim_end())
            }
            None => line,
        }
    }

    pub(crate) fn success_value(&self, event: &str) -> Value {
        self.to_value(json!({ "event": event, "exit": 0 }))
    }

    /// Prints how the command went: `event` if it succeeded.
    pub(crate) fn conclude(
        self,
        result: Result<(), Failure>,
        event: &str,
        is_json: bool,
    ) -> Result<(), Failure> {
        match result {
            Ok(()) => self.finish(event, is_json),
            Err(failure) => Err(self.fail(failure, is_json)),
        }
    }

    /// Prints the JSON object of a failure, if wanted; `lib.rs` prints the message. Returns the
    /// failure with the phase in front.
    pub(crate) fn fail(mut self, failure: Failure, is_json: bool) -> Failure {
        let (failure, value) = self.failure(failure);
        self.write_reports(Vec::new());
        if is_json {
            // A closed output must not replace the failure as the command's error.
            let _ = print(&value.to_string());
        }
        failure
    }

    /// Notes that the command failed. Returns the failure with the phase in front, and the JSON
    /// object.
    pub(crate) fn failure(&mut self, failure: Failure) -> (Failure, Value) {
        let phase = self.blamed.or_else(|| self.current());
        let value = self.note_failure(&failure);
        match phase.map(Phase::as_str) {
            // A usage error concerns the command line, not the phase that found it.
            Some(phase) if failure.exit() != Exit::Usage => (failure.in_phase(phase), value),
            _ => (failure, value),
        }
    }

    /// Notes that the command failed. Returns the JSON object.
    pub(crate) fn note_failure(&mut self, failure: &Failure) -> Value {
        let phase = self.blamed.or_else(|| self.current());
        self.end();
        self.timeline
            .fail(Instant::now(), phase, failure.to_string());
        let phase = phase.map(Phase::as_str);
        let mut head = json!({
            "event": "failed",
            "phase": phase,
            "exit": Table::General.code(failure.exit()),
            "error": failure.to_string(),
        });
        if let Some(details) = failure.details() {
            head["details"] = details.into();
        }
        self.to_value(head)
    }

    /// Writes the requested files, with the tracks of `others` after this record's own.
    pub(crate) fn write_reports(&self, others: Vec<Track>) {
        let mut tracks = vec![self.track(self.begun_at())];
        tracks.extend(others);
        self.reports.write(&tracks);
    }

    /// This record's track, on an axis that begins at `origin`.
    pub(crate) fn track(&self, origin: Instant) -> Track {
        let title = self.text("name").unwrap_or("host-tool");
        self.timeline.track(title.to_owned(), origin)
    }

    fn phases(&self) -> Vec<(Phase, Duration)> {
        let phases = self.timeline.phases().iter();
        phases.map(|span| (span.phase, span.took())).collect()
    }

    fn to_value(&self, head: Value) -> Value {
        let mut phases = Map::new();
        for (phase, took) in self.phases() {
            let us = to_us(took);
            // A phase that was entered twice counts as one.
            let earlier = phases.get(phase.as_str()).and_then(Value::as_u64);
            let total = earlier.unwrap_or(0).saturating_add(us);
            phases.insert(phase.as_str().to_owned(), total.into());
        }
        let mut value = head;
        for (field, fact) in &self.fields {
            value[field] = fact.clone();
        }
        value["phases_us"] = phases.into();
        value["attempts"] = self.attempts.clone().into();
        value
    }

    pub(crate) fn to_line(&self, event: &str) -> String {
        let mut parts = vec![event.to_owned()];
        parts.extend(self.text("name").map(str::to_owned));
        parts.extend(self.text("artifact").map(str::to_owned));
        let generation = self.text("generation");
        parts.extend(generation.map(|generation| format!("generation {generation}")));
        parts.push(format!("{} ms", self.begun_at().elapsed().as_millis()));
        let phase =
            |(phase, took): &(Phase, Duration)| format!("{} {}", phase.as_str(), took.as_millis());
        let phases: Vec<_> = self.phases().iter().map(phase).collect();
        if !phases.is_empty() && !self.fields.contains_key("guest") {
            parts.push(format!("({})", phases.join(", ")));
        }
        parts.join("  ")
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new();
        record.set("name", "a");
        record.set("vmm", json!({ "kind": "qemu" }));
        record.begin(Phase::Rebind);
        record.attempts(Phase::Rebind, 2);
        record.begin(Phase::Probe);
        record
    }

    #[test]
    fn the_object_has_the_phases_and_their_attempts() {
        let mut record = record();
        record.end();
        let value = record.to_value(json!({ "event": "ready", "exit": 0 }));
        assert_eq!(value["event"], "ready");
        assert_eq!(value["attempts"], json!({ "rebind": 2 }));
        assert!(value["phases_us"]["probe"].is_u64(), "{value}");
        assert_eq!(value["vmm"]["kind"], "qemu");
    }

    #[test]
    fn the_line_is_for_people() {
        let line = record().to_line("ready");
        assert!(line.starts_with("ready  a  "), "{line}");
        assert!(line.contains("(rebind "), "{line}");
    }
}
