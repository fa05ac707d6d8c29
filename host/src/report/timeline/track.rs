//! One machine's spans on one time axis.
//!
//! The guest reports durations of its own clock. To place them on the host's clock we assume, as
//! NTP does, that request and answer travelled equally long: the guest's work lies in the middle of
//! the attempt that was answered. The error is at most the time left at either side, which each
//! span states. Work that took longer than that attempt was begun by an earlier one, which the
//! guest received and the host gave up; such work ends with the answer.

use std::time::Instant;

use shared::exchange::AttemptEnd;

use super::GuestWork;
use crate::guest::answer::AttemptLog;
use crate::os::clock::to_us;

/// Who spent the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Without success, and another attempt followed.
    Retried,
    /// The command failed here.
    Failed,
}

/// One bar of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) side: Side,
    /// How many spans of its side enclose it.
    pub(crate) depth: usize,
    pub(crate) name: String,
    /// µs since the origin, on the host's clock.
    pub(crate) begin_us: u64,
    /// Never before `begin_us`.
    pub(crate) end_us: u64,
    pub(crate) outcome: Outcome,
    /// Further facts, by name.
    pub(crate) notes: Vec<(&'static str, String)>,
}

/// The spans of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Track {
    /// The machine's name, or else the command's.
    pub(crate) title: String,
    /// By their beginning, each behind the span that encloses it.
    pub(crate) spans: Vec<Span>,
    /// When the command failed, in µs, and why.
    pub(crate) failure: Option<(u64, String)>,
}

impl Track {
    /// Where its last span ends.
    pub(crate) fn end_us(&self) -> u64 {
        let ends = self.spans.iter().map(|span| span.end_us);
        let failed_us = self.failure.as_ref().map(|(at_us, _)| *at_us);
        ends.chain(failed_us).max().unwrap_or(0)
    }
}

/// A time axis, by its origin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis(pub(super) Instant);

impl Axis {
    pub(super) fn us(self, at: Instant) -> u64 {
        to_us(at.saturating_duration_since(self.0))
    }
}

pub(super) fn attempt_span(number: u32, log: &AttemptLog, axis: Axis) -> Span {
    let attempt = &log.attempt;
    let mut notes = vec![("end", attempt.end.to_string())];
    notes.extend(log.cause.clone().map(|cause| ("cause", cause)));
    Span {
        side: Side::Host,
        depth: 1,
        name: format!("attempt {number}"),
        begin_us: axis.us(attempt.started_at),
        end_us: axis.us(attempt.ended_at),
        outcome: match attempt.end {
            AttemptEnd::Answered => Outcome::Done,
            AttemptEnd::Closed | AttemptEnd::Silent | AttemptEnd::Refused(_) => Outcome::Retried,
            AttemptEnd::Failed => Outcome::Failed,
        },
        notes,
    }
}

/// The guest's work and its steps, which follow one another without a gap.
pub(super) fn guest_spans(work: &GuestWork, axis: Axis) -> Vec<Span> {
    let [earliest, asked, answered] =
        [work.earliest_at, work.asked_at, work.answered_at].map(|at| axis.us(at));
    // The guest is not trusted: its durations may be any numbers.
    let total = work.steps.iter().map(|(_, _, us)| *us);
    let total = total.fold(0, u64::saturating_add);
    let (begin, error) = place(earliest, asked, answered, total);
    let span = |depth, name: &str, begin_us: u64, us: u64| Span {
        side: Side::Guest,
        depth,
        name: name.to_owned(),
        begin_us: begin_us.min(answered),
        end_us: begin_us.saturating_add(us).min(answered),
        outcome: Outcome::Done,
        notes: Vec::new(),
    };
    let mut whole = span(0, work.name, begin, total);
    whole.notes.push(("placed within", format!("±{error} µs")));
    let mut spans = vec![whole];
    let mut at = begin;
    for (name, result, us) in &work.steps {
        let mut step = span(1, name, at, *us);
        step.notes.push(("result", (*result).to_owned()));
        spans.push(step);
        at = at.saturating_add(*us);
    }
    spans
}

/// Where work of `total` µs begins on the host's clock, and the most this can be wrong by.
fn place(earliest: u64, asked: u64, answered: u64, total: u64) -> (u64, u64) {
    let window = answered.saturating_sub(asked);
    match window.checked_sub(total) {
        Some(slack) => (asked + slack / 2, slack / 2),
        None => {
            let begin = answered.saturating_sub(total).max(earliest);
            (begin, begin - earliest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_work_stands_in_the_middle_of_the_attempt_that_was_answered() {
        assert_eq!(place(0, 100, 200, 40), (130, 30));
        assert_eq!(place(100, 100, 200, 100), (100, 0));
        // Begun by an earlier attempt, it ends with the answer.
        assert_eq!(place(0, 100, 200, 150), (50, 50));
        // A guest whose clock runs faster than ours cannot have begun before the first attempt.
        assert_eq!(place(0, 100, 200, 1000), (0, 0));
    }
}
