//! QEMU behind a scripted QMP socket: whole phases with the messages of QEMU 7.2, and each failure.

use std::fs;

use super::*;
use crate::testing::TempDir;
use crate::vmm::testing::{ScriptedVmm, Step};

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;
const COMPLETED: &str = r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#;
const FAILED: &str = r#"{"event": "MIGRATION", "data": {"status": "failed"}}"#;

fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A script from lines: each is sent after one command was taken, with `ID` standing for the
/// command's number. A line that starts with `+` is sent without waiting for a command.
fn script(lines: &[&str]) -> Vec<Step> {
    let mut steps = vec![Step::trickle(format!("{GREETING}\r\n"))];
    let mut id = 0;
    for line in [r#"{"return": {}, "id": ID}"#].iter().chain(lines) {
        let line = match line.strip_prefix('+') {
            Some(line) => line,
            None => {
                steps.push(Step::TakeLine);
                id += 1;
                line
            }
        };
        steps.push(Step::send(format!(
            "{}\r\n",
            line.replace("ID", &id.to_string())
        )));
    }
    steps
}

const YES: &str = r#"{"return": {}, "id": ID}"#;

fn status(status: &str) -> String {
    format!(r#"{{"return": {{"status": "{status}"}}, "id": ID}}"#)
}

/// `query-migrate` answers in the same form as `query-status`.
fn migration(state: &str) -> String {
    status(state)
}

/// Plays `lines` to `call`. Returns its result and the commands after `qmp_capabilities`.
fn check<T>(
    lines: &[&str],
    call: impl FnOnce(&mut Qemu) -> Result<T, VmmError>,
) -> (Result<T, VmmError>, Vec<String>) {
    let (stream, script) = ScriptedVmm::start(script(lines));
    let mut vmm = Qemu::new(stream, None);
    let result = call(&mut vmm);
    drop(vmm);
    let name = |line: &String| {
        let command: Value = serde_json::from_str(line).expect("a command is JSON");
        command["execute"]
            .as_str()
            .expect("a command has a name")
            .to_owned()
    };
    (
        result,
        script
            .taken()
            .iter()
            .filter(|line| !line.is_empty())
            .map(name)
            .skip(1)
            .collect(),
    )
}

#[test]
fn states_are_translated() {
    for (text, state) in [
        ("prelaunch", RunState::NotStarted),
        ("inmigrate", RunState::NotStarted),
        ("running", RunState::Running),
        ("paused", RunState::Paused),
        ("postmigrate", RunState::Paused),
        ("shutdown", RunState::Ended),
        ("internal-error", RunState::Ended),
        ("never heard of", RunState::Ended),
    ] {
        let (result, taken) = check(&[&status(text)], |vmm| vmm.run_state(far()));
        assert_eq!(result.unwrap(), state, "{text}");
        assert_eq!(taken, ["query-status"]);
    }
}

#[test]
fn the_version_is_put_together_from_its_numbers() {
    let answer = concat!(
        r#"{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "#,
        r#""package": "Debian 1:7.2+dfsg-7"}, "id": ID}"#
    );
    let (result, _) = check(&[answer], |vmm| vmm.version(far()));
    assert_eq!(result.unwrap().text, "7.2.22");
    let (result, _) = check(&[YES], |vmm| vmm.version(far()));
    assert!(matches!(result, Err(VmmError::Answer { .. })));
}

#[test]
fn a_save_waits_until_the_source_can_be_resumed() {
    let temp = TempDir::new("qemu");
    let files = StateFiles::in_dir(VmmKind::Qemu, temp.path());
    let lines = [
        &status("paused"),
        YES,
        YES,
        YES,
        YES,
        r#"+{"event": "MIGRATION_PASS", "data": {"pass": 1}}"#,
        r#"+{"event": "MIGRATION", "data": {"status": "active"}}"#,
        &format!("+{COMPLETED}"),
        &status("finish-migrate"),
        &status("postmigrate"),
    ];
    let mut reports = Vec::new();
    let (result, taken) = check(&lines, |vmm| {
        vmm.save(&files, &mut |bytes| reports.push(bytes), far())
    });
    result.unwrap();
    let expected = [
        "query-status",
        "migrate-set-parameters",
        "migrate-set-capabilities",
        "getfd",
        "migrate",
        "query-status",
        "query-status",
    ];
    assert_eq!(taken, expected);
    // The scripted VMM writes nothing.
    assert_eq!(reports.last(), Some(&0));
    assert_eq!(fs::metadata(&files.state).unwrap().len(), 0);
}

#[test]
fn a_failed_save_says_why() {
    let temp = TempDir::new("qemu");
    let files = StateFiles::in_dir(VmmKind::Qemu, temp.path());
    let failed = &format!("+{FAILED}");
    let why = r#"{"return": {"status": "failed", "error-desc": "no space"}, "id": ID}"#;
    let lines = [&status("paused"), YES, YES, YES, YES, failed, why];
    let (result, _) = check(&lines, |vmm| vmm.save(&files, &mut |_| {}, far()));
    let err = result.unwrap_err();
    assert_eq!(
        err.to_string(),
        "the VMM refused migrate (failed): no space"
    );
    assert!(!err.is_artifact_fault());

    let (result, taken) = check(&[&status("running")], |vmm| {
        vmm.save(&files, &mut |_| {}, far())
    });
    assert!(matches!(result, Err(VmmError::Refused { .. })));
    assert_eq!(taken, ["query-status"]);
}

#[test]
fn a_load_ends_with_cont() {
    let temp = TempDir::new("qemu");
    let files = StateFiles::in_dir(VmmKind::Qemu, temp.path());
    fs::write(&files.state, "stream").unwrap();
    let lines = [
        YES,
        YES,
        // Events may overtake the answer.
        r#"{"event": "MIGRATION", "data": {"status": "setup"}}"#,
        &format!("+{}", YES.replace("ID", "4")),
        &format!("+{COMPLETED}"),
        &status("paused"),
        YES,
    ];
    let (result, taken) = check(&lines, |vmm| vmm.load(&files, far()));
    result.unwrap();
    let expected = [
        "migrate-set-capabilities",
        "getfd",
        "migrate-incoming",
        "query-status",
        "cont",
    ];
    assert_eq!(taken, expected);
}

#[test]
fn a_stream_that_cannot_be_loaded_is_the_artifacts_fault() {
    let temp = TempDir::new("qemu");
    let files = StateFiles::in_dir(VmmKind::Qemu, temp.path());
    let (result, _) = check(&[], |vmm| vmm.load(&files, far()));
    assert!(result.unwrap_err().is_artifact_fault(), "a missing file");

    fs::write(&files.state, "stream").unwrap();
    let failed = &format!("+{FAILED}");
    for lines in [&[YES, YES, YES, failed][..], &[YES, YES, YES]] {
        let (result, _) = check(lines, |vmm| vmm.load(&files, far()));
        assert!(
            result.unwrap_err().is_artifact_fault(),
            "QEMU ends with or without an event"
        );
    }
    // An end before QEMU has the stream has another reason.
    let (result, _) = check(&[YES], |vmm| vmm.load(&files, far()));
    assert!(result.unwrap_err().is_gone());
}

#[test]
fn a_refusal_carries_class_and_message() {
    let no = r#"{"id": ID, "error": {"class": "GenericError", "desc": "not now"}}"#;
    let (result, _) = check(&[no], |vmm| vmm.pause(far()));
    let err = result.unwrap_err();
    assert_eq!(
        err.to_string(),
        "the VMM refused stop (GenericError): not now"
    );
}

#[test]
fn late_answers_to_earlier_commands_are_skipped() {
    let late = r#"{"return": {"status": "shutdown"}, "id": 1}"#;
    let lines = [late, &format!("+{}", status("running").replace("ID", "2"))];
    let (result, _) = check(&lines, |vmm| vmm.run_state(far()));
    assert_eq!(result.unwrap(), RunState::Running);
}

#[test]
fn resume() {
    let (result, taken) = check(&[&status("running")], |vmm| vmm.resume(far()));
    result.unwrap();
    assert_eq!(taken, ["query-status"]);
    let postmigrate = status("postmigrate");
    let lines = [&postmigrate, &migration("completed"), &postmigrate, YES];
    let (result, taken) = check(&lines, |vmm| vmm.resume(far()));
    result.unwrap();
    let expected = ["query-status", "query-migrate", "query-status", "cont"];
    assert_eq!(taken, expected);
}

/// A command that was killed left a migration under way.
#[test]
fn a_migration_is_cancelled_before_the_guest_is_resumed() {
    let paused = status("paused");
    let lines = [
        &paused,
        &migration("active"),
        YES,
        &migration("cancelling"),
        &migration("cancelled"),
        &paused,
        YES,
    ];
    let (result, taken) = check(&lines, |vmm| vmm.resume(far()));
    result.unwrap();
    let expected = [
        "query-status",
        "query-migrate",
        "migrate_cancel",
        "query-migrate",
        "query-migrate",
        "query-status",
        "cont",
    ];
    assert_eq!(taken, expected);
}

#[test]
fn a_save_that_takes_too_long_is_cancelled() {
    let temp = TempDir::new("qemu");
    let files = StateFiles::in_dir(VmmKind::Qemu, temp.path());
    let mut steps = script(&[&status("paused"), YES, YES, YES, YES]);
    steps.push(Step::TakeLine);
    let (stream, script) = ScriptedVmm::start(steps);
    let mut vmm = Qemu::new(stream, None);
    let soon = Instant::now() + Duration::from_millis(20);
    let err = vmm.save(&files, &mut |_| {}, soon).unwrap_err();
    assert!(err.is_deadline(), "{err:?}");
    drop(vmm);
    assert!(
        script
            .taken()
            .iter()
            .any(|line| line.contains("migrate_cancel"))
    );
}

#[test]
fn silence_and_hangups() {
    let (stream, _script) = ScriptedVmm::start(vec![Step::AwaitHangup]);
    let soon = Instant::now() + Duration::from_millis(5);
    assert!(
        Qemu::new(stream, None)
            .version(soon)
            .unwrap_err()
            .is_deadline()
    );

    let all: Vec<u8> = format!("{GREETING}\r\n{{\"return\": {{}}, \"id\": 1}}\r\n").into_bytes();
    for len in 0..all.len() {
        let (stream, _script) = ScriptedVmm::start(vec![Step::send(&all[..len])]);
        let err = Qemu::new(stream, None).version(far()).unwrap_err();
        assert!(err.is_gone(), "after {len} bytes: {err:?}");
    }
    let (stream, _script) = ScriptedVmm::start(vec![Step::send("hello\n"), Step::AwaitHangup]);
    let err = Qemu::new(stream, None).version(far()).unwrap_err();
    assert!(matches!(err, VmmError::Answer { .. }), "{err:?}");
}
