//! Loads against a scripted guest, and the reports of their results.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use serde_json::{Value, json};
use shared::id::Instance;
use shared::message::{
    ExitStatus, Fail, FailCode, Fault, FaultPart, Hello, Message, ResourceUsage, Role,
};
use shared::version::SUPPORTED;

use super::*;
use crate::exit::Exit;
use crate::guest::address::{Endpoint, GuestAddress};
use crate::testing::TempDir;

fn report(millis: &[u64], failures: &[(&str, Exit)]) -> Report {
    let mut tally = Tally {
        latencies: millis.iter().copied().map(Duration::from_millis).collect(),
        ..Tally::default()
    };
    for (kind, exit) in failures {
        let mut part = Tally::default();
        part.fail(Failed {
            kind: (*kind).to_owned(),
            exit: *exit,
            text: format!("it was {kind}"),
        });
        tally = tally.merge(part);
    }
    Report {
        parallel: 2,
        total: u32::try_from(millis.len() + failures.len()).unwrap(),
        took: Duration::from_millis(500),
        tally,
    }
}

#[test]
fn a_load_without_failures_succeeds() {
    let report = report(&[1, 3], &[]);
    assert!(report.failure().is_none());
    let value = report.to_value();
    assert_eq!(
        (&value["event"], &value["exit"]),
        (&json!("done"), &json!(0))
    );
    assert_eq!(value["per_second"], json!(4.0));
    assert_eq!(value["latency_us"]["p50"], 1000);
    assert_eq!(value["failures"], json!({}));
    let text = report.to_text();
    assert!(
        text.starts_with("2 of 2 succeeded  2 parallel  500.0 ms  4.0 per second\n"),
        "{text}"
    );
}

#[test]
fn failures_are_counted_by_kind() {
    let guest = ("exit code 3", Exit::Guest);
    let report = report(&[1], &[guest, ("timeout", Exit::Deadline), guest]);
    let failure = report.failure().unwrap();
    assert_eq!(
        failure.to_string(),
        "3 of 4 runs failed: it was exit code 3"
    );
    assert_eq!(failure.exit(), Exit::Guest);
    assert_eq!(
        report.to_value()["failures"],
        json!({ "exit code 3": 2, "timeout": 1 })
    );
    assert!(
        report
            .to_text()
            .ends_with("\n          2 exit code 3\n          1 timeout")
    );
}

#[test]
fn failures_with_one_exit_keep_it() {
    let report = report(&[], &[("timeout", Exit::Deadline)]);
    assert_eq!(report.failure().unwrap().exit(), Exit::Deadline);
    assert_eq!(report.to_value()["latency_us"], Value::Null);
    assert_eq!(report.to_value()["exit"], 124);
}

#[test]
fn counts_have_limits() {
    for (count, is_taken) in [(0, false), (1, true), (1024, true), (1025, false)] {
        assert_eq!(check_count("--parallel", count, 1024).is_ok(), is_taken);
    }
}

#[test]
fn ends_are_counted_by_kind() {
    let kind = |status, timed_out, fault| {
        let exited = Exited {
            session: 1,
            status,
            stdout_end: 0,
            stderr_end: 0,
            writers_alive: false,
            timed_out,
            fault,
            usage: ResourceUsage::default(),
        };
        Failed::of_end(&exited).map(|failed| failed.kind)
    };
    let signal = ExitStatus::Signal {
        number: 9,
        core: false,
    };
    let fault = Some(Fault {
        part: FaultPart::Stdout,
        offset: 1,
        errno: 5,
    });
    let code = ExitStatus::Code;
    assert_eq!(kind(code(0), false, None), None);
    assert_eq!(kind(code(0), false, fault).unwrap(), "fault of the guest");
    assert_eq!(kind(code(7), false, None).unwrap(), "exit code 7");
    assert_eq!(kind(signal, false, None).unwrap(), "signal 9");
    assert_eq!(kind(signal, true, fault).unwrap(), "timeout");
}

#[test]
fn each_run_makes_its_own_request() {
    let temp = TempDir::new("stress");
    let path = temp.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let address = GuestAddress::Unix { path };
    let target = Target::new(Endpoint { address, port: 0 }, None);
    let load = Load {
        target: &target,
        argv: vec![ByteString::new("true").unwrap()],
        parallel: 3,
        total: 7,
        deadline: Instant::now() + Duration::from_secs(30),
        sink: open_sink().unwrap(),
    };
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..7 {
                let (mut peer, _) = listener.accept().unwrap();
                assert!(peer.read(&mut [0; 4096]).unwrap() > 0);
                let hello = Message::Hello(Hello {
                    protocol: SUPPORTED,
                    role: Role::Guest,
                    version: "0".to_owned(),
                    boot_id: None,
                    generation: None,
                    instance: Some(Instance::from_bytes([7; 16])),
                    sessions_begun: 3,
                });
                let mut bytes = hello.encode();
                Message::Fail(Fail::new(FailCode::Internal, "no")).encode_into(&mut bytes);
                peer.write_all(&bytes).unwrap();
            }
        });
        load.run()
    });
    assert_eq!(
        report.to_value()["failures"],
        json!({ "refused (internal)": 7 })
    );
    assert_eq!(report.exit(), Exit::Guest);
}
