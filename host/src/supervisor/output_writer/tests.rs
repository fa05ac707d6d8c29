//! Logging into a VM directory whose "VMM" is the test process, from a guest that cuts its
//! connections.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use shared::message::{ExitStatus, FailCode};

use super::*;
use crate::os::process::ProcessId;
use crate::supervisor::follow::testing::Guest;
use crate::testing::TempDir;
use crate::vmdir::StateDir;
use crate::vmdir::output_log::{OUTPUT_LOG, read_record};
use crate::vmdir::state::State;
use crate::vmdir::state::tests::state;
use crate::vmm::VSOCK_SOCKET;

/// The directory of a booted VM.
fn vm(temp: &TempDir, stage: Stage) -> (VmDir, Lock) {
    let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
    let (dir, lock) = state_dir.create_vm(None).unwrap();
    let state = State {
        process: ProcessId::of_child(std::process::id()).unwrap(),
        artifact: None,
        stage,
        ..state()
    };
    dir.write_state(&state).unwrap();
    (dir, lock)
}

#[test]
fn nothing_is_acknowledged_before_it_is_logged() {
    let temp = TempDir::new("output-writer");
    let (dir, lock) = vm(&temp, Stage::Ready);
    drop(lock);
    let mut guest = Guest::listen(&dir.file(VSOCK_SOCKET), true);
    guest.stderr.clear();
    let acks = AtomicU32::new(0);
    let on_ack = |stream, offset| {
        acks.fetch_add(1, Ordering::Relaxed);
        let record = read_record(&dir).unwrap().unwrap();
        assert!(record.wanted(stream).unwrap() >= offset);
    };
    let end = thread::scope(|scope| {
        let writing = scope.spawn(|| log_output(&dir));
        guest.serve_and_list(&[5, 66_000], &on_ack);
        writing.join().unwrap().unwrap()
    });
    assert!(matches!(end, Some(End::Exited)), "{end:?}");
    assert!(acks.load(Ordering::Relaxed) > 0);
    assert!(std::fs::read(dir.file(OUTPUT_LOG)).unwrap() == guest.stdout);
    let end = dir.read_workload_end().unwrap().unwrap();
    assert_eq!((end.status, end.restarts), (ExitStatus::Code(3), Some(4)));
    assert!(log_output(&dir).unwrap().is_none(), "all is logged");
}

#[test]
fn a_guest_without_a_workload_leaves_no_log() {
    let temp = TempDir::new("output-writer");
    let (dir, lock) = vm(&temp, Stage::Ready);
    drop(lock);
    let guest = Guest::listen(&dir.file(VSOCK_SOCKET), true);
    let end = thread::scope(|scope| {
        let writing = scope.spawn(|| log_output(&dir));
        guest.refuse(FailCode::NoSession);
        writing.join().unwrap().unwrap()
    });
    assert!(matches!(end, Some(End::NoWorkload(_))), "{end:?}");
    assert_eq!(read_record(&dir).unwrap(), None);
}

#[test]
fn no_connection_is_made_while_a_command_changes_the_vm() {
    let temp = TempDir::new("output-writer");
    let (dir, lock) = vm(&temp, Stage::Ready);
    let mut guest = Guest::listen(&dir.file(VSOCK_SOCKET), true);
    guest.stderr.clear();
    let is_free = AtomicU32::new(0);
    thread::scope(|scope| {
        let writing = scope.spawn(|| log_output(&dir));
        scope.spawn(|| {
            guest.serve_and_list(&[], &|_, _| {});
            assert_eq!(is_free.load(Ordering::SeqCst), 1, "it did not wait");
        });
        // Wait until the writer holds the output's lock.
        while dir.output_lock(Instant::now()).unwrap().is_some() {
            thread::yield_now();
        }
        is_free.store(1, Ordering::SeqCst);
        drop(lock);
        writing.join().unwrap().unwrap();
    });
}
