//! Firecracker behind a scripted API socket: the calls, answers in pieces, and each failure.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::testing::TempDir;
use crate::vmm::testing::{ScriptedVmm, Step, machine, state_files};

const NO_CONTENT: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n";

fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn json_answer(status: u16, body: &str) -> String {
    let len = body.len();
    format!("HTTP/1.1 {status} \r\nContent-Length: {len}\r\n\r\n{body}")
}

fn state_answer(state: &str) -> String {
    json_answer(
        200,
        &format!(r#"{{"id":"x","state":"{state}","vmm_version":"1.16.1"}}"#),
    )
}

fn fault(message: &str) -> String {
    json_answer(400, &format!(r#"{{"fault_message":"{message}"}}"#))
}

/// Plays answers, each to one request, to `call`. Returns its result and the requests.
#[track_caller]
fn check<T>(
    answers: &[String],
    call: impl FnOnce(&mut Firecracker) -> Result<T, VmmError>,
) -> (Result<T, VmmError>, Vec<String>) {
    let steps = answers
        .iter()
        .flat_map(|answer| [Step::TakeRequest, Step::send(answer)]);
    let (stream, script) = ScriptedVmm::start(steps.chain([Step::AwaitHangup]).collect());
    let mut vmm = Firecracker::new(stream, None);
    let result = call(&mut vmm);
    drop(vmm);
    (result, script.taken())
}

/// Plays `steps` to a call, which must fail.
#[track_caller]
fn failure(steps: Vec<Step>) -> VmmError {
    let (stream, _script) = ScriptedVmm::start(steps);
    Firecracker::new(stream, None).run_state(far()).unwrap_err()
}

#[test]
fn answers_come_in_any_pieces() {
    let steps = vec![
        Step::TakeRequest,
        Step::trickle(json_answer(200, r#"{"firecracker_version":"1.16.1"}"#)),
        Step::TakeRequest,
        Step::trickle(format!("HTTP/1.1 100 Continue\r\n\r\n{NO_CONTENT}")),
        Step::TakeRequest,
        Step::trickle(state_answer("Paused")),
    ];
    let (stream, script) = ScriptedVmm::start(steps);
    let mut vmm = Firecracker::new(stream, None);
    assert_eq!(vmm.version(far()).unwrap().text, "1.16.1");
    vmm.pause(far()).unwrap();
    assert_eq!(vmm.run_state(far()).unwrap(), RunState::Paused);
    assert_eq!(
        script.taken(),
        ["GET /version", r#"PATCH /vm {"state":"Paused"}"#, "GET /"]
    );
}

#[test]
fn states_are_translated() {
    for (text, state) in [
        ("Not started", RunState::NotStarted),
        ("Running", RunState::Running),
        ("Paused", RunState::Paused),
    ] {
        let (result, _) = check(&[state_answer(text)], |vmm| vmm.run_state(far()));
        assert_eq!(result.unwrap(), state);
    }
    let (result, _) = check(&[state_answer("Sleeping")], |vmm| vmm.run_state(far()));
    assert!(matches!(result, Err(VmmError::Answer { .. })), "{result:?}");
}

#[test]
fn a_fault_carries_request_status_and_message() {
    let (result, _) = check(&[fault("not while paused")], |vmm| vmm.pause(far()));
    let err = result.unwrap_err();
    assert_eq!(
        err.to_string(),
        "the VMM refused PATCH /vm (400): not while paused"
    );
    assert!(!err.is_artifact_fault());
}

#[test]
fn a_failed_load_is_blamed_on_the_artifact_or_on_the_host() {
    let artifact = "Failed to restore from snapshot: Failed to get snapshot state from file: x";
    let host = "Failed to restore devices: VsockUnixBackend: Address in use (os error 98)";
    for (message, is_artifact_fault) in [(artifact, true), (host, false)] {
        let (result, taken) = check(&[fault(message)], |vmm| vmm.load(&state_files(), far()));
        assert_eq!(
            result.unwrap_err().is_artifact_fault(),
            is_artifact_fault,
            "{message}"
        );
        assert_eq!(taken.len(), 1);
    }
    // The same message for another call than a load does not blame a file.
    let (result, _) = check(&[fault(artifact)], |vmm| vmm.pause(far()));
    assert!(!result.unwrap_err().is_artifact_fault());
}

#[test]
fn a_boot_stops_at_the_first_refusal() {
    let spec = machine();
    let yes = || NO_CONTENT.to_owned();
    let (result, taken) = check(&[yes(), fault("no kernel")], |vmm| vmm.boot(&spec, far()));
    assert!(matches!(result, Err(VmmError::Refused { .. })));
    assert_eq!(taken.len(), 2);
    let (result, taken) = check(&[yes(), yes(), yes(), yes()], |vmm| vmm.boot(&spec, far()));
    result.unwrap();
    assert_eq!(taken[3], r#"PUT /actions {"action_type":"InstanceStart"}"#);
}

#[test]
fn a_machine_that_runs_is_never_told_to_resume() {
    let (result, taken) = check(&[state_answer("Running")], |vmm| vmm.resume(far()));
    result.unwrap();
    assert_eq!(taken, ["GET /"]);
}

/// A command that was killed left the machine paused, perhaps before it took the snapshot.
#[test]
fn a_machine_that_another_command_paused_is_sent_a_reset_first() {
    let yes = || NO_CONTENT.to_owned();
    let answers = [state_answer("Paused"), fault("No such file"), yes()];
    let (result, taken) = check(&answers, |vmm| vmm.resume(far()));
    result.unwrap();
    assert_eq!(taken[0], "GET /");
    assert!(taken[1].starts_with("PUT /snapshot/create "), "{taken:?}");
    assert!(taken[1].contains("/dev/null/vmstate"), "{taken:?}");
    assert_eq!(taken[2], r#"PATCH /vm {"state":"Resumed"}"#);

    // A save has sent one, even if it failed.
    for saved in [yes(), fault("No space left on device")] {
        let paused = || state_answer("Paused");
        let answers = [yes(), paused(), saved, paused(), yes()];
        let (result, taken) = check(&answers, |vmm| {
            vmm.pause(far())?;
            let _ = vmm.save(&state_files(), &mut |_| {}, far());
            vmm.resume(far())
        });
        result.unwrap();
        assert_eq!(taken[3..], ["GET /", r#"PATCH /vm {"state":"Resumed"}"#]);
    }
}

#[test]
fn an_external_machine_is_described() {
    let config = r#"{"machine-config":{"vcpu_count":1,"mem_size_mib":64},"vsock":{"guest_cid":3,"uds_path":"v"}}"#;
    let (result, taken) = check(&[json_answer(200, config)], |vmm| vmm.describe(far()));
    assert_eq!(result.unwrap().machine.memory_mib, 64);
    assert_eq!(taken, ["GET /vm/config"]);
    let (result, _) = check(&[json_answer(200, "{}")], |vmm| vmm.describe(far()));
    assert!(matches!(result, Err(VmmError::Answer { .. })), "{result:?}");
}

#[test]
fn a_machine_that_runs_is_never_saved() {
    let (result, taken) = check(&[state_answer("Running")], |vmm| {
        vmm.save(&state_files(), &mut |_| {}, far())
    });
    let err = result.unwrap_err();
    assert_eq!(
        err.to_string(),
        "the VMM refused PUT /snapshot/create (not sent): the machine is not paused"
    );
    assert_eq!(taken, ["GET /"]);
}

#[test]
fn a_save_reports_what_was_written() {
    let temp = TempDir::new("save");
    let files = StateFiles::in_dir(VmmKind::Firecracker, temp.path());
    // A file of its full length, of which one block was written, as during a save.
    let memory = fs::File::create(files.memory.as_ref().unwrap()).unwrap();
    std::os::unix::fs::FileExt::write_at(&memory, &[1; 4096], 0).unwrap();
    memory.set_len(1 << 30).unwrap();

    let mut reports = Vec::new();
    let answers = [state_answer("Paused"), NO_CONTENT.to_owned()];
    let (result, _) = check(&answers, |vmm| {
        vmm.save(&files, &mut |bytes| reports.push(bytes), far())
    });
    result.unwrap();
    let last = *reports.last().unwrap();
    assert!((4096..1 << 20).contains(&last), "{last}");
}

#[test]
fn a_hangup_at_any_byte_is_the_end_of_the_vmm() {
    let answer = state_answer("Running");
    for len in 0..answer.len() {
        let err = failure(vec![Step::TakeRequest, Step::send(&answer[..len])]);
        assert!(err.is_gone(), "after {len} bytes: {err:?}");
        assert_eq!(
            err.to_string(),
            "the VMM ended or hung up before it answered GET /"
        );
    }
    // Also before the request was even sent.
    assert!(failure(Vec::new()).is_gone());
}

#[test]
fn a_process_that_ends_without_hanging_up_is_noticed() {
    let (process, ended) = UnixStream::pair().unwrap();
    drop(ended);
    let (stream, _script) = ScriptedVmm::start(vec![Step::TakeRequest, Step::AwaitHangup]);
    let mut vmm = Firecracker::new(stream, Some(OwnedFd::from(process)));
    assert!(vmm.run_state(far()).unwrap_err().is_gone());
}

/// After a timeout the late answer would be taken for that to the next request.
#[test]
fn a_connection_is_in_step_while_each_request_is_answered() {
    let (result, _) = check(&[fault("no"), state_answer("Paused")], |vmm| {
        assert!(vmm.pause(far()).is_err() && vmm.is_in_step());
        vmm.run_state(far())?;
        assert!(vmm.is_in_step());
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(vmm.pause(soon).is_err() && !vmm.is_in_step());
        Ok(())
    });
    result.unwrap();
    for answer in ["garbage\r\n".to_owned(), state_answer("Paused") + "more"] {
        let (stream, _script) = ScriptedVmm::start(vec![Step::TakeRequest, Step::send(answer)]);
        let mut vmm = Firecracker::new(stream, None);
        let _ = vmm.run_state(far());
        assert!(!vmm.is_in_step());
    }
}

#[test]
fn silence_ends_with_the_deadline() {
    let half = state_answer("Running")[..60].to_owned();
    for steps in [vec![], vec![Step::TakeRequest, Step::send(half)]] {
        let steps = steps.into_iter().chain([Step::AwaitHangup]).collect();
        let (stream, _script) = ScriptedVmm::start(steps);
        let soon = Instant::now() + Duration::from_millis(5);
        let err = Firecracker::new(stream, None).version(soon).unwrap_err();
        assert!(err.is_deadline(), "{err:?}");
        assert_eq!(
            err.to_string(),
            "no answer to GET /version before the deadline"
        );
    }
}

#[test]
fn an_answer_that_cannot_be_understood_is_an_error() {
    for answer in [
        "SSH-2.0-OpenSSH_9\r\n".to_owned(),
        "HTTP/1.1 200 \r\n\r\n".to_owned(),
        json_answer(200, "no json"),
        json_answer(200, "[]"),
        json_answer(200, r#"{"state":1}"#),
    ] {
        let err = failure(vec![
            Step::TakeRequest,
            Step::send(&answer),
            Step::AwaitHangup,
        ]);
        assert!(matches!(err, VmmError::Answer { .. }), "{answer}: {err:?}");
    }
}
