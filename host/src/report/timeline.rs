//! What happened, and when: the phases of a command, the attempts in them, and what the guest did
//! meanwhile, as slices of one time axis, for [`chrome`](super::chrome) and [`svg`](super::svg).
//!
//! The guest's figures are durations of the guest's own clock. Where they lie on the host's clock
//! follows from the handshake, as in NTP: request and answer are taken to have travelled equally
//! long, so that the guest's work stands in the middle of the attempt that was answered. It can be
//! off by as much as is left at either side, which each slice says. Work that took longer than that
//! attempt was begun by an earlier one, which the guest heard and the host gave up; it ends with
//! the answer.

use std::time::{Duration, Instant};

use shared::exchange::AttemptEnd;
use shared::message::Step;

use crate::guest::answer::AttemptLog;
use crate::report::phase::Phase;

/// Whose time a slice is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    /// This program's.
    Host,
    /// The guest's.
    Guest,
}

/// How what a slice stands for ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// Without success, and something else was tried.
    Retried,
    /// It was the end of the command.
    Failed,
}

/// One bar of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Whose time it is.
    pub track: Track,
    /// How many slices of its track it lies within.
    pub depth: usize,
    /// What it is.
    pub name: String,
    /// From when, µs on the host's clock.
    pub begin_us: u64,
    /// Until when. Never before `begin_us`.
    pub end_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// What else is known, by name.
    pub notes: Vec<(&'static str, String)>,
}

/// The slices of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The machine's name, or the command's.
    pub title: String,
    /// In the order of their beginning, each behind the one that it lies within.
    pub slices: Vec<Slice>,
    /// When it failed, and why.
    pub failure: Option<(u64, String)>,
}

impl Lane {
    /// Where its last slice ends.
    #[must_use]
    pub fn end_us(&self) -> u64 {
        let ends = self.slices.iter().map(|slice| slice.end_us);
        let failed_us = self.failure.as_ref().map(|(at_us, _)| *at_us);
        ends.chain(failed_us).max().unwrap_or(0)
    }
}

/// A part of a command that is over.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Which part.
    pub phase: Phase,
    /// When it began.
    pub begun_at: Instant,
    /// When it ended.
    pub ended_at: Instant,
}

impl Span {
    /// How long it took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended_at.saturating_duration_since(self.begun_at)
    }
}

/// What the guest has said about its work for one request.
#[derive(Debug)]
struct GuestWork {
    name: &'static str,
    /// Names, results and durations in µs, in order.
    steps: Vec<(&'static str, &'static str, u64)>,
    /// The first attempt of the request.
    earliest_at: Instant,
    /// The attempt that was answered.
    asked_at: Instant,
    answered_at: Instant,
}

/// What happened so far.
#[derive(Debug)]
pub struct Story {
    begun_at: Instant,
    spans: Vec<Span>,
    attempts: Vec<(Phase, AttemptLog)>,
    guest: Vec<GuestWork>,
    failure: Option<Fault>,
}

/// How a command failed.
#[derive(Debug)]
struct Fault {
    at: Instant,
    phase: Option<Phase>,
    text: String,
}

impl Story {
    /// A story that begins at `begun_at`.
    #[must_use]
    pub const fn new(begun_at: Instant) -> Self {
        Self {
            begun_at,
            spans: Vec::new(),
            attempts: Vec::new(),
            guest: Vec::new(),
            failure: None,
        }
    }

    /// When it began.
    #[must_use]
    pub const fn begun_at(&self) -> Instant {
        self.begun_at
    }

    /// The parts that are over, in order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// A part is over.
    pub fn add_span(&mut self, span: Span) {
        self.spans.push(span);
    }

    /// Attempts were made in the part that is under way.
    pub fn add_attempts(&mut self, phase: Phase, log: &[AttemptLog]) {
        let attempts = log.iter().map(|attempt| (phase, attempt.clone()));
        self.attempts.extend(attempts);
    }

    /// The guest has told the steps of a rebind, in the answer to the last of these attempts.
    pub fn add_rebind_steps(&mut self, steps: &[Step], log: &[AttemptLog]) {
        let step = |step: &Step| (step.name.as_str(), step.result.as_str(), step.us);
        self.add_guest("rebind", steps.iter().map(step).collect(), log);
    }

    /// The guest has told how long its no-op took, in the answer to the last of these attempts.
    pub fn add_exec(&mut self, us: u64, log: &[AttemptLog]) {
        self.add_guest("probe", vec![("spawn and reap", "done", us)], log);
    }

    fn add_guest(
        &mut self,
        name: &'static str,
        steps: Vec<(&'static str, &'static str, u64)>,
        log: &[AttemptLog],
    ) {
        // The log of a request that took very many attempts does not reach to its answer.
        let answered = log
            .last()
            .filter(|last| last.attempt.end == AttemptEnd::Answered);
        if let (Some(first), Some(last)) = (log.first(), answered) {
            self.guest.push(GuestWork {
                name,
                steps,
                earliest_at: first.attempt.started_at,
                asked_at: last.attempt.started_at,
                answered_at: last.attempt.ended_at,
            });
        }
    }

    /// The command failed at `at`, in its latest part of this kind.
    pub fn fail(&mut self, at: Instant, phase: Option<Phase>, text: String) {
        self.failure = Some(Fault { at, phase, text });
    }

    /// The picture, on an axis that begins at `origin`.
    #[must_use]
    pub fn lane(&self, title: String, origin: Instant) -> Lane {
        let axis = Axis(origin);
        let mut slices = Vec::new();
        let failed_phase = self.failure.as_ref().and_then(|fault| fault.phase);
        let is_failed = |span: &Span| Some(span.phase) == failed_phase;
        let failed_index = self.spans.iter().rposition(is_failed);
        for (index, span) in self.spans.iter().enumerate() {
            slices.push(Slice {
                track: Track::Host,
                depth: 0,
                name: span.phase.as_str().to_owned(),
                begin_us: axis.us(span.begun_at),
                end_us: axis.us(span.ended_at),
                outcome: if failed_index == Some(index) {
                    Outcome::Failed
                } else {
                    Outcome::Done
                },
                notes: Vec::new(),
            });
            let is_within = |at: Instant| (span.begun_at..=span.ended_at).contains(&at);
            let attempts = self
                .attempts
                .iter()
                .filter(|(phase, log)| *phase == span.phase && is_within(log.attempt.started_at));
            slices.extend(
                (1..)
                    .zip(attempts)
                    .map(|(number, (_, log))| attempt_slice(number, log, axis)),
            );
            let works = self.guest.iter().filter(|work| is_within(work.asked_at));
            slices.extend(works.flat_map(|work| guest_slices(work, axis)));
        }
        let failure = self.failure.as_ref();
        Lane {
            title,
            slices,
            failure: failure.map(|fault| (axis.us(fault.at), fault.text.clone())),
        }
    }
}

/// Where the axis begins.
#[derive(Debug, Clone, Copy)]
struct Axis(Instant);

impl Axis {
    fn us(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.0);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

fn attempt_slice(number: u32, log: &AttemptLog, axis: Axis) -> Slice {
    let attempt = &log.attempt;
    let mut notes = vec![("end", attempt.end.to_string())];
    notes.extend(log.cause.clone().map(|cause| ("cause", cause)));
    Slice {
        track: Track::Host,
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

/// The guest's work with its steps, which follow one another without a gap.
fn guest_slices(work: &GuestWork, axis: Axis) -> Vec<Slice> {
    let [earliest, asked, answered] =
        [work.earliest_at, work.asked_at, work.answered_at].map(|at| axis.us(at));
    // The guest may say anything.
    let total = work.steps.iter().map(|(_, _, us)| *us);
    let total = total.fold(0, u64::saturating_add);
    let (begin, error) = place(earliest, asked, answered, total);
    let slice = |depth, name: &str, begin_us: u64, us: u64| Slice {
        track: Track::Guest,
        depth,
        name: name.to_owned(),
        begin_us: begin_us.min(answered),
        end_us: begin_us.saturating_add(us).min(answered),
        outcome: Outcome::Done,
        notes: Vec::new(),
    };
    let mut whole = slice(0, work.name, begin, total);
    whole.notes.push(("placed within", format!("±{error} µs")));
    let mut slices = vec![whole];
    let mut at = begin;
    for (name, result, us) in &work.steps {
        let mut step = slice(1, name, at, *us);
        step.notes.push(("result", (*result).to_owned()));
        slices.push(step);
        at = at.saturating_add(*us);
    }
    slices
}

/// Where work of `total` µs begins on the host's clock, and by how much that can be wrong.
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
pub(crate) mod tests {
    use shared::exchange::Attempt;
    use shared::message::{FailCode, StepName, StepResult};

    use super::*;

    /// A restore that took three attempts at REBIND, and failed in its probe when `is_failed`.
    pub(crate) fn story(origin: Instant, is_failed: bool) -> Story {
        let at = |us| origin + Duration::from_micros(us);
        let span = |phase, begun, ended| Span {
            phase,
            begun_at: at(begun),
            ended_at: at(ended),
        };
        let log = |started, ended, end, cause: Option<&str>| AttemptLog {
            attempt: Attempt {
                started_at: at(started),
                ended_at: at(ended),
                end,
            },
            cause: cause.map(str::to_owned),
        };
        let mut story = Story::new(origin);
        story.add_span(span(Phase::Load, 0, 100));
        let rebind = [
            log(110, 200, AttemptEnd::Closed, Some("<refused> & \"gone\"")),
            log(210, 300, AttemptEnd::Silent, None),
            log(300, 400, AttemptEnd::Answered, None),
        ];
        story.add_attempts(Phase::Rebind, &rebind);
        let step = |name, us| Step {
            name,
            us,
            result: StepResult::Done,
        };
        let steps = [step(StepName::Listener, 10), step(StepName::Clock, 30)];
        story.add_rebind_steps(&steps, &rebind);
        story.add_span(span(Phase::Rebind, 100, 400));
        let end = if is_failed {
            AttemptEnd::Refused(FailCode::Refusing)
        } else {
            AttemptEnd::Answered
        };
        let probe = [log(410, 500, end, None)];
        story.add_attempts(Phase::Probe, &probe);
        story.add_exec(40, &probe);
        story.add_span(span(Phase::Probe, 400, 500));
        if is_failed {
            let text = "probe failed: \u{1b}<b>".to_owned();
            story.fail(at(500), Some(Phase::Probe), text);
        }
        story
    }

    fn bars(lane: &Lane, track: Track) -> Vec<(usize, &str, u64, u64)> {
        let bar = |slice: &'_ Slice| (slice.depth, slice.begin_us, slice.end_us);
        let of_track = lane.slices.iter().filter(|slice| slice.track == track);
        of_track
            .map(|slice| {
                let (depth, begin, end) = bar(slice);
                (depth, slice.name.as_str(), begin, end)
            })
            .collect()
    }

    #[test]
    fn attempts_and_steps_lie_within_their_phases() {
        let origin = Instant::now();
        let lane = story(origin, false).lane("a".to_owned(), origin);
        let host = [
            (0, "load", 0, 100),
            (0, "rebind", 100, 400),
            (1, "attempt 1", 110, 200),
            (1, "attempt 2", 210, 300),
            (1, "attempt 3", 300, 400),
            (0, "probe", 400, 500),
            (1, "attempt 1", 410, 500),
        ];
        assert_eq!(bars(&lane, Track::Host), host);
        let guest = [
            (0, "rebind", 330, 370),
            (1, "listener", 330, 340),
            (1, "clock", 340, 370),
            (0, "probe", 435, 475),
            (1, "spawn and reap", 435, 475),
        ];
        assert_eq!(bars(&lane, Track::Guest), guest);
        assert_eq!(lane.slices[2].outcome, Outcome::Retried);
        assert_eq!(lane.end_us(), 500);
    }

    #[test]
    fn a_failure_marks_the_phase_it_ended() {
        let origin = Instant::now();
        let lane = story(origin, true).lane("a".to_owned(), origin);
        let failed = lane
            .slices
            .iter()
            .filter(|slice| slice.outcome == Outcome::Failed);
        let failed: Vec<_> = failed.map(|slice| slice.name.as_str()).collect();
        assert_eq!(failed, ["probe"]);
        assert_eq!(lane.failure.as_ref().unwrap().0, 500);
        // Nothing is known of a guest that did not answer.
        assert_eq!(bars(&lane, Track::Guest).len(), 3);
    }

    #[test]
    fn guest_work_stands_in_the_middle_of_the_attempt_that_was_answered() {
        assert_eq!(place(0, 100, 200, 40), (130, 30));
        assert_eq!(place(100, 100, 200, 100), (100, 0));
        // Begun by an earlier attempt, it ends with the answer.
        assert_eq!(place(0, 100, 200, 150), (50, 50));
        // A guest whose clock is quicker than ours cannot have begun before it was asked.
        assert_eq!(place(0, 100, 200, 1000), (0, 0));
    }
}
