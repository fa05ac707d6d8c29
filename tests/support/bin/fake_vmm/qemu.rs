//! QEMU's machine protocol (QMP): one JSON object per line, with events in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::answers::{Machine, Script, answer};
use tests::host::{Rule, Then};

const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7}}}}"#;

pub(crate) fn serve(stream: UnixStream, script: &Script, machine: &Mutex<Machine>) {
    let mut reader = BufReader::new(stream);
    let rule = script.rule("GREETING");
    let rule = rule.unwrap_or_else(|| Rule::on("").then(Then::Continue));
    let mut is_open = answer(
        &mut reader,
        script,
        &rule,
        format!("{GREETING}\n").as_bytes(),
    );
    let mut line = String::new();
    while is_open && reader.read_line(&mut line).is_ok_and(|len| len > 0) {
        let command: Value = serde_json::from_str(&line).unwrap_or_default();
        line.clear();
        let name = command["execute"].as_str().unwrap_or_default();
        let rule = script.rule(name);
        let is_proper = rule.as_ref().is_none_or(|rule| rule.send.is_none());
        let (proper, events) = match is_proper {
            true => carry_out(name, &command, script, machine),
            false => (Vec::new(), ""),
        };
        let rule = rule.unwrap_or_else(|| Rule::on("").then(Then::Continue));
        is_open = answer(&mut reader, script, &rule, &proper)
            && reader.get_mut().write_all(events.as_bytes()).is_ok();
    }
}

/// The answer, and the events that follow it.
fn carry_out(
    name: &str,
    command: &Value,
    script: &Script,
    machine: &Mutex<Machine>,
) -> (Vec<u8>, &'static str) {
    let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    let mut events = "";
    let value = match name {
        "query-status" => {
            let status = match *machine {
                Machine::NotStarted => "prelaunch",
                Machine::Running => "running",
                Machine::Paused => "paused",
            };
            json!({ "status": status, "running": *machine == Machine::Running })
        }
        "query-version" => json!({ "qemu": { "major": 7, "minor": 2, "micro": 0 } }),
        "cont" => {
            *machine = Machine::Running;
            script.show_guest();
            json!({})
        }
        "stop" => {
            *machine = Machine::Paused;
            json!({})
        }
        "migrate" | "migrate-incoming" => {
            events = "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n";
            json!({})
        }
        "quit" => {
            script.end(0);
            json!({})
        }
        _ => json!({}),
    };
    let answer = json!({ "return": value, "id": command["id"] });
    (format!("{answer}\n").into_bytes(), events)
}
