//! What happened and when: a command's phases, their attempts and the guest's work, for
//! [`chrome`](super::chrome) and [`svg`](super::svg).

mod track;

use std::time::{Duration, Instant};

use shared::exchange::AttemptEnd;
use shared::message::Step;

use self::track::{Axis, attempt_span, guest_spans};
pub(crate) use self::track::{Outcome, Side, Span, Track};
use crate::guest::answer::AttemptLog;
use crate::report::phase::Phase;

/// A phase that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseSpan {
    pub(crate) phase: Phase,
    pub(crate) begun_at: Instant,
    pub(crate) ended_at: Instant,
}

impl PhaseSpan {
    pub(crate) fn took(&self) -> Duration {
        self.ended_at.saturating_duration_since(self.begun_at)
    }
}

/// The guest's account of its work for one request.
#[derive(Debug)]
struct GuestWork {
    name: &'static str,
    /// Names, results and durations in µs, in order.
    steps: Vec<(&'static str, &'static str, u64)>,
    /// Start of the request's first attempt.
    earliest_at: Instant,
    /// Start of the attempt that was answered.
    asked_at: Instant,
    answered_at: Instant,
}

/// How a command failed.
#[derive(Debug)]
struct Failure {
    at: Instant,
    phase: Option<Phase>,
    text: String,
}

/// What happened so far, on this machine's monotonic clock.
#[derive(Debug)]
pub(crate) struct Timeline {
    begun_at: Instant,
    phases: Vec<PhaseSpan>,
    attempts: Vec<(Phase, AttemptLog)>,
    guest: Vec<GuestWork>,
    failure: Option<Failure>,
}

impl Timeline {
    pub(crate) const fn new(begun_at: Instant) -> Self {
        Self {
            begun_at,
            phases: Vec::new(),
            attempts: Vec::new(),
            guest: Vec::new(),
            failure: None,
        }
    }

    pub(crate) const fn begun_at(&self) -> Instant {
        self.begun_at
    }

    /// The phases that have ended, in order.
    pub(crate) fn phases(&self) -> &[PhaseSpan] {
        &self.phases
    }

    pub(crate) fn add_phase(&mut self, phase: PhaseSpan) {
        self.phases.push(phase);
    }

    /// Adds attempts that were made in the current phase.
    pub(crate) fn add_attempts(&mut self, phase: Phase, log: &[AttemptLog]) {
        let attempts = log.iter().map(|attempt| (phase, attempt.clone()));
        self.attempts.extend(attempts);
    }

    /// Adds the steps of a rebind, as the answer to the last of these attempts reported them.
    pub(crate) fn add_rebind_steps(&mut self, steps: &[Step], log: &[AttemptLog]) {
        let step = |step: &Step| (step.name.as_str(), step.result.as_str(), step.us);
        self.add_guest("rebind", steps.iter().map(step).collect(), log);
    }

    /// Adds the duration of the guest's no-op command, as the answer to the last of these attempts
    /// reported it.
    pub(crate) fn add_exec(&mut self, us: u64, log: &[AttemptLog]) {
        self.add_guest("probe", vec![("spawn and reap", "done", us)], log);
    }

    fn add_guest(
        &mut self,
        name: &'static str,
        steps: Vec<(&'static str, &'static str, u64)>,
        log: &[AttemptLog],
    ) {
        // The log is limited: that of a request with very many attempts does not reach the answer.
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

    /// The command failed at `at`. The latest span of `phase` is marked.
    pub(crate) fn fail(&mut self, at: Instant, phase: Option<Phase>, text: String) {
        self.failure = Some(Failure { at, phase, text });
    }

    /// Everything so far as one track, on an axis that begins at `origin`.
    pub(crate) fn track(&self, title: String, origin: Instant) -> Track {
        let axis = Axis(origin);
        let mut spans = Vec::new();
        let failure = self.failure.as_ref();
        let failed_phase = failure.and_then(|failure| failure.phase);
        let is_failed = |phase: &PhaseSpan| Some(phase.phase) == failed_phase;
        let failed_index = self.phases.iter().rposition(is_failed);
        for (index, phase) in self.phases.iter().enumerate() {
            spans.push(Span {
                side: Side::Host,
                depth: 0,
                name: phase.phase.as_str().to_owned(),
                begin_us: axis.us(phase.begun_at),
                end_us: axis.us(phase.ended_at),
                outcome: if failed_index == Some(index) {
                    Outcome::Failed
                } else {
                    Outcome::Done
                },
                notes: Vec::new(),
            });
            // A phase can be entered twice, so attempts are matched by time as well as by name.
            let is_within = |at: Instant| (phase.begun_at..=phase.ended_at).contains(&at);
            let attempts = self.attempts.iter().filter(|(of_phase, log)| {
                *of_phase == phase.phase && is_within(log.attempt.started_at)
            });
            let numbered = (1..).zip(attempts);
            spans.extend(numbered.map(|(number, (_, log))| attempt_span(number, log, axis)));
            let works = self.guest.iter().filter(|work| is_within(work.asked_at));
            spans.extend(works.flat_map(|work| guest_spans(work, axis)));
        }
        Track {
            title,
            spans,
            failure: failure.map(|failure| (axis.us(failure.at), failure.text.clone())),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use shared::exchange::Attempt;
    use shared::message::{FailCode, StepName, StepResult};

    use super::*;

    /// A restore that took three attempts at REBIND, and failed in its probe when `is_failed`.
    pub(crate) fn timeline(origin: Instant, is_failed: bool) -> Timeline {
        let at = |us| origin + Duration::from_micros(us);
        let span = |phase, begun, ended| PhaseSpan {
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
        let mut timeline = Timeline::new(origin);
        timeline.add_phase(span(Phase::Load, 0, 100));
        let rebind = [
            log(110, 200, AttemptEnd::Closed, Some("<refused> & \"gone\"")),
            log(210, 300, AttemptEnd::Silent, None),
            log(300, 400, AttemptEnd::Answered, None),
        ];
        timeline.add_attempts(Phase::Rebind, &rebind);
        let step = |name, us| Step {
            name,
            us,
            result: StepResult::Done,
        };
        let steps = [step(StepName::Listener, 10), step(StepName::Clock, 30)];
        timeline.add_rebind_steps(&steps, &rebind);
        timeline.add_phase(span(Phase::Rebind, 100, 400));
        let end = if is_failed {
            AttemptEnd::Refused(FailCode::Refusing)
        } else {
            AttemptEnd::Answered
        };
        let probe = [log(410, 500, end, None)];
        timeline.add_attempts(Phase::Probe, &probe);
        timeline.add_exec(40, &probe);
        timeline.add_phase(span(Phase::Probe, 400, 500));
        if is_failed {
            let text = "probe failed: \u{1b}<b>".to_owned();
            timeline.fail(at(500), Some(Phase::Probe), text);
        }
        timeline
    }

    fn bars(track: &Track, side: Side) -> Vec<(usize, &str, u64, u64)> {
        let of_side = track.spans.iter().filter(|span| span.side == side);
        of_side
            .map(|span| (span.depth, span.name.as_str(), span.begin_us, span.end_us))
            .collect()
    }

    #[test]
    fn attempts_and_steps_lie_within_their_phases() {
        let origin = Instant::now();
        let track = timeline(origin, false).track("a".to_owned(), origin);
        let host = [
            (0, "load", 0, 100),
            (0, "rebind", 100, 400),
            (1, "attempt 1", 110, 200),
            (1, "attempt 2", 210, 300),
            (1, "attempt 3", 300, 400),
            (0, "probe", 400, 500),
            (1, "attempt 1", 410, 500),
        ];
        assert_eq!(bars(&track, Side::Host), host);
        let guest = [
            (0, "rebind", 330, 370),
            (1, "listener", 330, 340),
            (1, "clock", 340, 370),
            (0, "probe", 435, 475),
            (1, "spawn and reap", 435, 475),
        ];
        assert_eq!(bars(&track, Side::Guest), guest);
        assert_eq!(track.spans[2].outcome, Outcome::Retried);
        assert_eq!(track.end_us(), 500);
    }

    #[test]
    fn a_failure_marks_the_phase_it_ended() {
        let origin = Instant::now();
        let track = timeline(origin, true).track("a".to_owned(), origin);
        let spans = track.spans.iter();
        let failed: Vec<_> = spans
            .filter(|span| span.outcome == Outcome::Failed)
            .map(|span| span.name.as_str())
            .collect();
        assert_eq!(failed, ["probe"]);
        assert_eq!(track.failure.as_ref().unwrap().0, 500);
        // The guest did not answer the probe, so its work for it is unknown.
        assert_eq!(bars(&track, Side::Guest).len(), 3);
    }
}
