//! The Chrome trace format: JSON that Perfetto and `chrome://tracing` open.
//!
//! Each machine is two processes of the trace: its host side and its guest. The viewer nests spans
//! by their times, which are µs since the command began.

use serde_json::{Map, Value, json};

use crate::report::timeline::{Outcome, Side, Span, Track};

/// The trace of these machines, which share one axis. `facts` are shown as metadata.
pub(crate) fn render(tracks: &[Track], facts: Value) -> Value {
    let mut events = Vec::new();
    for (index, track) in tracks.iter().enumerate() {
        let host = 2 * index + 1;
        let guest = host + 1;
        let has_guest = track.spans.iter().any(|span| span.side == Side::Guest);
        events.extend(names(host, &format!("{} (host)", track.title), "phases"));
        if has_guest {
            events.extend(names(
                guest,
                &format!("{} (guest)", track.title),
                "requests",
            ));
        }
        events.extend(track.spans.iter().map(|span| {
            let process = match span.side {
                Side::Host => host,
                Side::Guest => guest,
            };
            complete(span, process)
        }));
        if let Some((at_us, text)) = &track.failure {
            events.push(json!({
                "ph": "i", "s": "p", "cat": "failure", "name": "failed",
                "ts": at_us, "pid": host, "tid": 1, "args": { "error": text },
            }));
        }
    }
    json!({ "displayTimeUnit": "ms", "otherData": facts, "traceEvents": events })
}

/// Metadata events: the labels of one process and its place in the viewer's order.
fn names(process: usize, name: &str, thread: &str) -> [Value; 3] {
    let event = |kind: &str, args: Value| json!({ "ph": "M", "name": kind, "pid": process, "tid": 1, "args": args });
    [
        event("process_name", json!({ "name": name })),
        event("process_sort_index", json!({ "sort_index": process })),
        event("thread_name", json!({ "name": thread })),
    ]
}

/// A span as the format's "complete" event: begin and duration in one.
fn complete(span: &Span, process: usize) -> Value {
    let category = match (span.side, span.depth) {
        (Side::Host, 0) => "phase",
        (Side::Host, _) => "attempt",
        (Side::Guest, 0) => "request",
        (Side::Guest, _) => "step",
    };
    let outcome = match span.outcome {
        Outcome::Done => "done",
        Outcome::Retried => "retried",
        Outcome::Failed => "failed",
    };
    let mut args = Map::from_iter([("outcome".to_owned(), outcome.into())]);
    for (name, value) in &span.notes {
        args.insert((*name).to_owned(), value.as_str().into());
    }
    json!({
        "ph": "X",
        "cat": category,
        "name": span.name,
        "ts": span.begin_us,
        "dur": span.end_us - span.begin_us,
        "pid": process,
        "tid": 1,
        "args": args,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::report::timeline::tests::timeline;

    fn trace(is_failed: bool) -> Value {
        let origin = Instant::now();
        let tracks =
            ["a", "b"].map(|name| timeline(origin, is_failed).track(name.to_owned(), origin));
        render(&tracks, json!({ "command": "restore" }))
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
    fn spans_nest_and_say_how_they_ended() {
        let trace = trace(false);
        let spans = of_kind(&trace, "X");
        let range = |span: &Value| {
            let begin = span["ts"].as_u64().unwrap();
            begin..=begin + span["dur"].as_u64().unwrap()
        };
        let phases: Vec<_> = spans.iter().filter(|s| s["cat"] == "phase").collect();
        for attempt in spans.iter().filter(|span| span["cat"] == "attempt") {
            let own = range(attempt);
            let is_within = |phase: &&&&Value| {
                let of = range(phase);
                phase["pid"] == attempt["pid"] && of.contains(own.start()) && of.contains(own.end())
            };
            assert!(phases.iter().any(|phase| is_within(&phase)), "{attempt}");
        }
        let first = spans.iter().find(|span| span["name"] == "attempt 1");
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
        // Control characters of a guest's text leave it valid JSON.
        let text = trace.to_string();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), trace);
    }
}
