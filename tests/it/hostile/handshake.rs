//! Goal: what a guest says of its rebind and its probe decides about its own readiness and nothing
//! else. Method: a fake Firecracker in front of a guest that answers REBIND and PROBE with
//! impossible values.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use serde_json::{Value, json};
use shared::frame::FrameKind;
use shared::message::{Message, Probe, Probed};
use shared::version::SUPPORTED;
use tempfile::TempDir;
use tests::host::{Kind, TestHost};
use tests::process::Finished;

use super::floods::is_harmless;
use super::guest::{Ear, drain, hello, raw, say};

/// A guest behind a fake Firecracker, with scripted answers to REBIND and PROBE.
struct Liar {
    host: TestHost,
    _folder: TempDir,
}

impl Liar {
    /// `rebound` is the answer to REBIND, completed with the requested generation.
    fn new(rebound: Value, probed: fn(Probe) -> Probed) -> Self {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("guest.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // Runs until the test program ends.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, rebound) = (stream.unwrap(), rebound.clone());
                // The connection of REBIND stays open while the host opens the one of PROBE.
                thread::spawn(move || answer(&mut stream, rebound, probed));
            }
        });
        Self {
            host: TestHost::before(Kind::Firecracker, &socket),
            _folder: folder,
        }
    }

    fn restore(&self, args: &[&str]) -> Finished {
        let mut command = self.host.tool(["restore", "--name", "clone", "--json"]);
        command.args(["--timeout", "60s"]).args(args);
        tests::process::run(command.arg(self.host.artifact()))
    }
}

fn answer(stream: &mut UnixStream, mut rebound: Value, probed: fn(Probe) -> Probed) {
    let _ = stream.write_all(&hello(SUPPORTED));
    match Ear::default().hear_request(stream) {
        Some(Message::Rebind(rebind)) => {
            if rebound["generation"].is_null() {
                rebound["generation"] = rebind.generation.to_string().into();
            }
            let _ = stream.write_all(&raw(FrameKind::Rebound, &rebound));
        }
        Some(Message::Probe(probe)) => say(stream, &[Message::Probed(probed(probe))]),
        _ => {}
    }
    drain(stream);
}

fn rebound(change: impl FnOnce(&mut Value)) -> Value {
    let mut value = json!({
        "generation": null, "clock_step_ns": 0, "entropy_credited": true, "listener_serial": 1,
        "connections_dropped": 0, "sessions_dropped": 0, "steps": [],
    });
    change(&mut value);
    value
}

fn honest(probe: Probe) -> Probed {
    Probed {
        generation: probe.generation,
        nonce: probe.nonce,
        listener_serial: 1,
        accepts_since_rebind: 1,
        exec_us: Some(1),
        hooks: false,
    }
}

#[test]
fn a_rebound_that_cannot_be_is_no_readiness() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 8] = [
        (
            |it| it["generation"] = "00112233445566778899aabbccddeeff".into(),
            "REBOUND of another request",
        ),
        (
            |it| it["generation"] = "x".into(),
            "\"generation\" must be 32 hexadecimal digits",
        ),
        (
            |it| {
                it["steps"] = vec![json!({ "name": "clock", "us": 1, "result": "done" }); 33].into()
            },
            "\"steps\" must be a shorter list",
        ),
        (
            |it| it["steps"] = json!([{ "name": "magic", "us": 1, "result": "done" }]),
            "\"name\" must be a step's name",
        ),
        (
            |it| it["steps"] = json!([{ "name": "clock", "us": -1, "result": "done" }]),
            "\"us\" must be a whole number in range",
        ),
        (
            |it| it["steps"] = json!([1]),
            "\"steps\" must be a list of objects",
        ),
        (
            |it| it["connections_dropped"] = json!(1_u64 << 32),
            "\"connections_dropped\" must be a whole number in range",
        ),
        (
            |it| it["clock_step_ns"] = u64::MAX.into(),
            "\"clock_step_ns\" must be a whole number",
        ),
    ];
    for (change, text) in rows {
        let liar = Liar::new(rebound(change), honest);
        let ended = liar.restore(&[]).exits(6).complains(text);
        assert_eq!(ended.json()["phase"], "rebind", "{ended}");
        is_harmless(&ended);
        liar.host.is_clean();
    }
}

#[test]
fn a_probed_that_cannot_be_is_no_readiness() {
    let rows: [fn(Probe) -> Probed; 5] = [
        |probe| Probed {
            generation: None,
            ..honest(probe)
        },
        |probe| Probed {
            nonce: shared::id::Nonce::from_bytes([0; 16]),
            ..honest(probe)
        },
        |probe| Probed {
            accepts_since_rebind: 0,
            ..honest(probe)
        },
        |probe| Probed {
            exec_us: None,
            ..honest(probe)
        },
        |probe| Probed {
            generation: Some(shared::id::Generation::from_bytes([1; 16])),
            ..honest(probe)
        },
    ];
    for probed in rows {
        let liar = Liar::new(rebound(|_| {}), probed);
        let ended = liar.restore(&[]).exits(6);
        let ended = ended.complains("PROBED of another request");
        assert_eq!(ended.json()["phase"], "probe", "{ended}");
        liar.host.is_clean();
    }
}

/// Extreme but possible figures are passed on and drawn, and no calculation with them overflows.
#[test]
fn figures_beyond_reason_are_passed_on_as_they_are() {
    let rebound = rebound(|it| {
        let step = json!({ "name": "clock", "us": u64::MAX, "result": "done" });
        it["steps"] = vec![step; 32].into();
        it["clock_step_ns"] = i64::MIN.into();
        it["listener_serial"] = u64::MAX.into();
        it["connections_dropped"] = u32::MAX.into();
    });
    let liar = Liar::new(rebound, |probe| Probed {
        exec_us: Some(u64::MAX),
        accepts_since_rebind: u64::MAX,
        listener_serial: u64::MAX,
        ..honest(probe)
    });
    let paths = ["trace.json", "timeline.svg"].map(|name| liar.host.path(name));
    let [trace, timeline] = paths.each_ref().map(|path| path.to_str().unwrap());
    let ended = liar.restore(&["--trace", trace, "--timeline", timeline]);
    let ended = ended.exits(0);
    assert_eq!(ended.json()["guest"]["clock_step_ns"], i64::MIN, "{ended}");
    assert_eq!(ended.json()["guest"]["exec_us"], u64::MAX, "{ended}");
    serde_json::from_slice::<Value>(&fs::read(trace).unwrap()).unwrap();
    assert!(fs::read_to_string(timeline).unwrap().ends_with("</svg>\n"));
    liar.host.run(["rm", "--force", "clone"]).exits(0);
    liar.host.is_clean();
}
