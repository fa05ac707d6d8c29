//! The state directory's promises: a name has a whole directory or none, locks end with their
//! holders, and a directory that others may write to is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread;
use std::time::{Duration, Instant};

use super::names::LOCK;
use super::state::{ExitRecord, State};
use super::*;
use crate::os::dir::Dir;
use crate::os::mark;
use crate::testing::TempDir;
use crate::values::VmName;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn state_dir(temp: &TempDir) -> StateDir {
    StateDir::open(Some(&temp.path().join("state"))).unwrap()
}

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

#[test]
fn a_name_is_taken_until_it_is_removed() {
    let temp = TempDir::new("vmdir");
    let state_dir = state_dir(&temp);
    let (vm, lock) = state_dir.create_vm(Some(&name("a"))).unwrap();
    assert_eq!(vm.path().metadata().unwrap().mode() & 0o777, 0o700);
    let error = state_dir.create_vm(Some(&name("a"))).unwrap_err();
    assert!(error.to_string().ends_with("'host-tool rm a'"), "{error}");
    vm.remove().unwrap();
    drop(lock);
    assert!(matches!(
        state_dir.vm(&name("a")),
        Err(VmDirError::NoSuchVm { .. })
    ));
    let _again = state_dir.create_vm(Some(&name("a"))).unwrap();
    let (generated, _lock) = state_dir.create_vm(None).unwrap();
    let names: Vec<_> = state_dir
        .vms()
        .unwrap()
        .into_iter()
        .map(|vm| vm.name)
        .collect();
    assert_eq!(names, [name("a"), generated.name().clone()]);
}

#[test]
fn an_interrupted_start_leaves_its_name_free() {
    let temp = TempDir::new("vmdir");
    let state_dir = state_dir(&temp);
    drop(state_dir.create_vm(Some(&name("a"))).unwrap());
    // A directory that is not a VM's is left alone.
    fs::create_dir(state_dir.path().join("b")).unwrap();
    fs::write(state_dir.path().join("b/file"), "").unwrap();
    let _again = state_dir.create_vm(Some(&name("a"))).unwrap();
    let refused = state_dir.create_vm(Some(&name("b"))).unwrap_err();
    assert!(matches!(refused, VmDirError::NotMarked { .. }), "{refused}");
    assert!(state_dir.path().join("b/file").exists());
    // A failed creation leaves nothing.
    assert_eq!(fs::read_dir(state_dir.path()).unwrap().count(), 2);
}

/// A directory is a VM's by its mark, and not by a file that has the name of a VM's.
#[test]
fn what_host_tool_did_not_make_is_not_removed() {
    let temp = TempDir::new("vmdir");
    let state_dir = state_dir(&temp);
    let at = |path: &str| state_dir.path().join(path);
    for (dir, file) in [
        ("a", "lock"),
        (".new-4194305-b", "lock"),
        (".trash-4194305-c", "x"),
    ] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(dir).join(file), "").unwrap();
    }
    fs::create_dir(at("empty")).unwrap();
    for taken in ["a", "empty"] {
        let refused = state_dir.create_vm(Some(&name(taken))).unwrap_err();
        assert!(matches!(refused, VmDirError::NotMarked { .. }), "{refused}");
        let refused = state_dir.vm(&name(taken)).unwrap_err();
        assert!(matches!(refused, VmDirError::NotMarked { .. }), "{refused}");
    }
    for kept in [
        "a/lock",
        ".new-4194305-b/lock",
        ".trash-4194305-c/x",
        "empty",
    ] {
        assert!(at(kept).exists(), "{kept}");
    }
    let (vm, _lock) = state_dir.create_vm(Some(&name("b"))).unwrap();
    fs::write(vm.file("notes"), "").unwrap();
    let refused = vm.remove().unwrap_err();
    assert!(matches!(refused, VmDirError::Foreign { .. }), "{refused}");
    assert!(at("b/notes").exists() && at("b/lock").exists());
    fs::remove_file(vm.file("notes")).unwrap();
    vm.remove().unwrap();
}

#[test]
fn a_lock_is_waited_for_until_the_deadline() {
    let temp = TempDir::new("vmdir");
    let (vm, lock) = state_dir(&temp).create_vm(Some(&name("a"))).unwrap();
    assert!(matches!(vm.lock(soon()), Err(VmDirError::Busy { .. })));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.lock(far()));
        drop(lock);
        waiting.join().unwrap().unwrap();
    });
}

/// A directory can be removed while another command waits for its lock.
#[test]
fn a_removed_vm_cannot_be_locked() {
    let temp = TempDir::new("vmdir");
    let state_dir = state_dir(&temp);
    let (vm, lock) = state_dir.create_vm(Some(&name("a"))).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.lock(far()));
        vm.remove().unwrap();
        let replacement = state_dir.create_vm(Some(&name("a"))).unwrap();
        drop((lock, replacement));
        // It waited for the old lock and got an error, or came late and got the new one.
        if let Err(error) = waiting.join().unwrap() {
            assert!(matches!(
                error,
                VmDirError::NoSuchVm { .. } | VmDirError::File { .. }
            ));
        }
    });
}

#[test]
fn leftovers_of_killed_commands_are_removed_and_directories_in_use_are_not() {
    let temp = TempDir::new("vmdir");
    let state_dir = state_dir(&temp);
    // No process has such a number: they stay below 2^22 (proc(5), pid_max).
    let leftover = state_dir.path().join(".trash-4194305-a");
    let in_use = state_dir.path().join(".new-4194305-b");
    let without_lock = state_dir.path().join(".trash-1-c");
    for path in [&leftover, &in_use, &without_lock] {
        fs::create_dir(path).unwrap();
    }
    let in_use_dir = Dir::open(&in_use).unwrap();
    mark::write(&in_use_dir).unwrap();
    let _lock = Lock::try_new(&in_use_dir, LOCK).unwrap().unwrap();
    let _vm = state_dir.create_vm(None).unwrap();
    assert!(!leftover.exists() && in_use.exists() && without_lock.exists());
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let temp = TempDir::new("vmdir");
    let path = temp.path().join("state");
    StateDir::open(Some(&path)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
    let error = StateDir::open(Some(&path)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("others may write to it; run 'chmod 700'"),
        "{error}"
    );
}

#[test]
fn status_follows_from_files_and_processes() {
    let temp = TempDir::new("vmdir");
    let (vm, lock) = state_dir(&temp).create_vm(Some(&name("a"))).unwrap();
    assert_eq!(vm.status().unwrap().0, VmStatus::Starting);
    let error = vm.clone().running().unwrap_err();
    assert!(matches!(error, VmDirError::Busy { .. }), "{error}");
    // To the holder of the lock it is a leftover: no other command can be starting it.
    let error = vm.clone().running_under(&lock).unwrap_err();
    assert!(
        error.to_string().contains("its start was interrupted"),
        "{error}"
    );
    drop(lock);
    assert_eq!(vm.status().unwrap().0, VmStatus::Dead);

    let process = crate::os::process::ProcessId::of_child(std::process::id()).unwrap();
    let mut state = State {
        process,
        ..state::tests::state()
    };
    vm.write_state(&state).unwrap();
    assert_eq!(
        vm.status().unwrap(),
        (VmStatus::Running, Some(state.clone()))
    );
    assert_eq!(vm.clone().running().unwrap().state, state);

    state.process.start_time += 1;
    vm.write_state(&state).unwrap();
    assert_eq!(vm.status().unwrap().0, VmStatus::Dead);
    vm.write_exit(&ExitRecord {
        code: Some(3),
        signal: None,
        ended_ms: 1,
    })
    .unwrap();
    assert_eq!(vm.status().unwrap().0, VmStatus::Exited);
    let error = vm.running().unwrap_err();
    let text = "the VM 'a' has ended (exit code 3); see 'host-tool inspect a'";
    assert_eq!(error.to_string(), text);
}
