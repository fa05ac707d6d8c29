//! Firecracker's API: HTTP requests and responses over a connection that stays open.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::answers::{Machine, Script, answer};
use tests::host::{Rule, Then};

pub(crate) fn serve(stream: UnixStream, script: &Script, machine: &Mutex<Machine>) {
    let mut reader = BufReader::new(stream);
    while let Some((line, body)) = take_request(&mut reader) {
        let request = format!("{line} {body}");
        let rule = script.rule(&request);
        // A request whose answer the rule replaces is not carried out.
        let is_proper = rule.as_ref().is_none_or(|rule| rule.send.is_none());
        let proper = match is_proper {
            true => carry_out(&line, &body, script, machine),
            false => Vec::new(),
        };
        let rule = rule.unwrap_or_else(|| Rule::on("").then(Then::Continue));
        if !answer(&mut reader, script, &rule, &proper) {
            return;
        }
    }
}

/// Request line without the version, and body.
fn take_request(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut len = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).ok()? == 0 {
            return None;
        }
        match header.trim_end().strip_prefix("Content-Length: ") {
            Some(value) => len = value.parse().ok()?,
            None if header.trim_end().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    Some((line, String::from_utf8(body).ok()?))
}

fn carry_out(line: &str, body: &str, script: &Script, machine: &Mutex<Machine>) -> Vec<u8> {
    let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    match line {
        "GET /version" => ok(&json!({ "firecracker_version": "1.16.1" })),
        "GET /" => ok(&json!({ "id": "fake", "state": word(*machine), "vmm_version": "1.16.1" })),
        "GET /vm/config" => ok(&json!({
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
            "vsock": { "guest_cid": 3, "uds_path": "vsock.sock" },
        })),
        "PUT /actions" | "PUT /snapshot/load" => {
            *machine = Machine::Running;
            script.show_guest();
            done()
        }
        "PATCH /vm" => {
            *machine = match body["state"].as_str() {
                Some("Paused") => Machine::Paused,
                _ => Machine::Running,
            };
            done()
        }
        "PUT /snapshot/create" => create(&body),
        _ => done(),
    }
}

fn create(body: &Value) -> Vec<u8> {
    for (field, text) in [("snapshot_path", "state"), ("mem_file_path", "memory")] {
        if let Err(error) = fs::write(body[field].as_str().unwrap_or_default(), text) {
            let fault = json!({ "fault_message": format!("cannot create: {error}") });
            return response(400, &fault.to_string());
        }
    }
    done()
}

const fn word(machine: Machine) -> &'static str {
    match machine {
        Machine::NotStarted => "Not started",
        Machine::Running => "Running",
        Machine::Paused => "Paused",
    }
}

fn done() -> Vec<u8> {
    b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_vec()
}

fn ok(value: &Value) -> Vec<u8> {
    response(200, &value.to_string())
}

fn response(status: u16, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 {status} \r\nServer: Firecracker API\r\nContent-Length: {len}\r\n\r\n{body}")
        .into_bytes()
}
