//! A record's phases and the guest's steps as lines of text, for people.
//!
//! ```text
//!          at µs    took µs
//!              0        402  artifact
//!            402     120311  spawn     ##########
//!         120713      40233  load                ###
//!         160946      15120  rebind                 #   2 attempts; guest: listener 9, clock 3
//! ```
//!
//! Each side measures with its own clock. A guest's step lies somewhere within the phase on its
//! line.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::report::phase::Phase;

/// In characters.
const BAR_WIDTH: u128 = 24;

/// A heading and one line for each phase, each with a line end.
pub(crate) fn render(
    phases: &[(Phase, Duration)],
    attempts: &Map<String, Value>,
    guest: Option<&Value>,
) -> String {
    let total = phases
        .iter()
        .map(|(_, took)| took.as_micros())
        .sum::<u128>()
        .max(1);
    let mut text = format!("  {:>10} {:>10}\n", "at µs", "took µs");
    let mut at = 0;
    for (phase, took) in phases {
        let took = took.as_micros();
        let column = |us: u128| usize::try_from(us * BAR_WIDTH / total).unwrap_or(0);
        let bar = "#".repeat(column(at + took).saturating_sub(column(at)).max(1));
        let bar = format!("{}{bar}", " ".repeat(column(at)));
        let notes = notes(*phase, attempts, guest);
        let width = usize::try_from(BAR_WIDTH).unwrap_or(0) + 1;
        let name = phase.as_str();
        let line = format!("  {at:>10} {took:>10}  {name:<9} {bar:<width$} {notes}");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
        at += took;
    }
    text
}

fn notes(phase: Phase, attempts: &Map<String, Value>, guest: Option<&Value>) -> String {
    let mut notes = Vec::new();
    let count = attempts.get(phase.as_str()).and_then(Value::as_u64);
    if let Some(count) = count.filter(|&count| count > 1) {
        notes.push(format!("{count} attempts"));
    }
    match (phase, guest) {
        (Phase::Rebind, Some(guest)) => notes.extend(steps(guest)),
        (Phase::Probe, Some(guest)) => {
            let exec = guest.get("exec_us").and_then(Value::as_u64);
            notes.extend(exec.map(|us| format!("guest µs: spawned and reaped {us}")));
        }
        (_, _) => {}
    }
    notes.join("; ")
}

/// The steps of a rebind with the guest's own durations; `None` if it reported none.
fn steps(guest: &Value) -> Option<String> {
    let step = |step: &Value| -> Option<String> {
        let name = step.get("name")?.as_str()?;
        Some(match step.get("result")?.as_str()? {
            "done" => format!("{name} {}", step.get("us")?.as_u64()?),
            other => format!("{name} {other}"),
        })
    };
    let steps = guest.get("steps")?.as_array()?;
    let steps: Vec<String> = steps.iter().filter_map(step).collect();
    (!steps.is_empty()).then(|| format!("guest µs: {}", steps.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn phases_and_steps_stand_on_one_line_each() {
        let phases = [
            (Phase::Spawn, Duration::from_micros(500)),
            (Phase::Rebind, Duration::from_micros(1000)),
            (Phase::Probe, Duration::from_micros(500)),
        ];
        let attempts = Map::from_iter([("rebind".to_owned(), json!(2))]);
        let guest = json!({
            "steps": [
                { "name": "listener", "us": 9, "result": "done" },
                { "name": "identity", "us": 0, "result": "skipped" },
            ],
            "exec_us": 640,
        });
        let expected = [
            "       at µs    took µs",
            "           0        500  spawn     ######",
            "         500       1000  rebind          ############        \
             2 attempts; guest µs: listener 9, identity skipped",
            "        1500        500  probe                       ######  \
             guest µs: spawned and reaped 640",
        ];
        let text = render(&phases, &attempts, Some(&guest));
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_record_without_a_guest_has_its_phases() {
        let text = render(&[(Phase::Stop, Duration::ZERO)], &Map::new(), None);
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
