//! The Chrome trace format: JSON that Perfetto and `chrome://tracing` open.
//!
//! Each machine is two processes of the trace, its host side and its guest; nesting follows from
//! times, as the format has it. Times are µs since the command began.

use serde_json::{Map, Value, json};

use crate::report::timeline::{Lane, Outcome, Slice, Track};

/// The trace of these machines, which share one axis.
#[must_use]
pub fn render(lanes: &[Lane], facts: Value) -> Value {
    let mut events = Vec::new();
    for (index, lane) in lanes.iter().enumerate() {
        let host = 2 * index + 1;
        let guest = host + 1;
        let has_guest = lane.slices.iter().any(|slice| slice.track == Track::Guest);
        events.extend(names(host, &format!("{} (host)", lane.title), "phases"));
        if has_guest {
            events.extend(names(guest, &format!("{} (guest)", lane.title), "requests"));
        }
        events.extend(lane.slices.iter().map(|slice| {
            let process = match slice.track {
                Track::Host => host,
                Track::Guest => guest,
            };
            complete(slice, process)
        }));
        if let Some((at_us, text)) = &lane.failure {
            events.push(json!({
                "ph": "i", "s": "p", "cat": "failure", "name": "failed",
                "ts": at_us, "pid": host, "tid": 1, "args": { "error": text },
            }));
        }
    }
    json!({ "displayTimeUnit": "ms", "otherData": facts, "traceEvents": events })
}

/// What the viewer shows beside the rows of one process, and in which order it shows them.
fn names(process: usize, name: &str, thread: &str) -> [Value; 3] {
    let event = |kind: &str, args: Value| json!({ "ph": "M", "name": kind, "pid": process, "tid": 1, "args": args });
    [
        event("process_name", json!({ "name": name })),
        event("process_sort_index", json!({ "sort_index": process })),
        event("thread_name", json!({ "name": thread })),
    ]
}

/// A slice as a complete event.
fn complete(slice: &Slice, process: usize) -> Value {
    let category = match (slice.track, slice.depth) {
        (Track::Host, 0) => "phase",
        (Track::Host, _) => "attempt",
        (Track::Guest, 0) => "request",
        (Track::Guest, _) => "step",
    };
    let outcome = match slice.outcome {
        Outcome::Done => "done",
        Outcome::Retried => "retried",
        Outcome::Failed => "failed",
    };
    let mut args = Map::from_iter([("outcome".to_owned(), outcome.into())]);
    for (name, value) in &slice.notes {
        args.insert((*name).to_owned(), value.as_str().into());
    }
    json!({
        "ph": "X",
        "cat": category,
        "name": slice.name,
        "ts": slice.begin_us,
        "dur": slice.end_us - slice.begin_us,
        "pid": process,
        "tid": 1,
        "args": args,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::report::timeline::tests::story;

    fn trace(is_failed: bool) -> Value {
        let origin = Instant::now();
        let lanes = ["a", "b"].map(|name| story(origin, is_failed).lane(name.to_owned(), origin));
        render(&lanes, json!({ "command": "restore" }))
    }

    fn of_kind<'a>(trace: &'a Value, kind: &str) -> Vec<&'a Value> {
        let events = trace["traceEvents"].as_array().unwrap();
        events.iter().filter(|event| event["ph"] == kind).collect()
    }

    #[test]
    fn every_machine_has_two_processes_with_names() {
        let trace = trace(false);
        let named = of_kind(&trace, "M");
        let names = named
            .iter()
            .filter(|event| event["name"] == "process_name")
            .map(|event| (event["pid"].as_u64().unwrap(), &event["args"]["name"]));
        let expected = [
            (1, json!("a (host)")),
            (2, json!("a (guest)")),
            (3, json!("b (host)")),
            (4, json!("b (guest)")),
        ];
        assert!(names.eq(expected.iter().map(|(pid, name)| (*pid, name))));
    }

    #[test]
    fn slices_nest_and_say_how_they_ended() {
        let trace = trace(false);
        let slices = of_kind(&trace, "X");
        let range = |slice: &Value| {
            let begin = slice["ts"].as_u64().unwrap();
            begin..=begin + slice["dur"].as_u64().unwrap()
        };
        let phases: Vec<_> = slices.iter().filter(|s| s["cat"] == "phase").collect();
        for attempt in slices.iter().filter(|slice| slice["cat"] == "attempt") {
            let own = range(attempt);
            let is_within = |phase: &&&&Value| {
                let of = range(phase);
                phase["pid"] == attempt["pid"] && of.contains(own.start()) && of.contains(own.end())
            };
            assert!(phases.iter().any(|phase| is_within(&phase)), "{attempt}");
        }
        let first = slices.iter().find(|slice| slice["name"] == "attempt 1");
        let args = &first.unwrap()["args"];
        assert_eq!(args["outcome"], "retried");
        assert_eq!(args["cause"], "<refused> & \"gone\"");
    }

    #[test]
    fn a_failure_is_an_instant_of_its_process() {
        let trace = trace(true);
        let instants = of_kind(&trace, "i");
        assert_eq!(instants.len(), 2);
        assert_eq!(instants[1]["pid"], 3);
        // What is written is JSON whatever a guest has said.
        let text = trace.to_string();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), trace);
    }
}
