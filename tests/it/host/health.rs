//! Goal: `ls` shows the health of a VM, which its supervisor checks by a command in the guest; a
//! snapshot does not make it unhealthy. Method: a supervisor whose VMM is an agent, and a check
//! that passes while a file exists.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::await_true;
use tests::process::{run, signal};

use crate::host::logs::Supervised;

/// A VM with a health check.
struct Patient {
    supervised: Supervised,
    well: PathBuf,
}

impl Patient {
    fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let well = folder.path().join("well");
        let vm = folder.path().join("state/vm");
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&vm)
            .unwrap();
        let check = json!({
            "argv": ["test", "-e", well.to_str().unwrap()],
            "interval_ms": 10, "timeout_ms": 1000, "retries": 2,
        });
        fs::write(vm.join("health-check.json"), check.to_string()).unwrap();
        Self {
            supervised: Supervised::start_in(folder),
            well,
        }
    }

    fn inspect(&self) -> Value {
        let mut inspect = self.supervised.vm.host_tool(&["inspect", "vm", "--json"]);
        run(&mut inspect).exits(0).json()
    }

    /// Waits until the VM's health is `status`.
    #[track_caller]
    fn becomes(&self, status: &str) {
        await_true(status, || self.inspect()["health"]["status"] == status);
    }
}

#[test]
fn health_follows_what_the_command_says() {
    let mut patient = Patient::start();
    patient.becomes("unhealthy");
    assert_eq!(patient.inspect()["health"]["reason"], "exit code 1");
    File::create(&patient.well).unwrap();
    patient.becomes("healthy");
    signal(patient.supervised.vmm, Signal::SIGSTOP);
    patient.becomes("unreachable");
    signal(patient.supervised.vmm, Signal::SIGCONT);
    patient.becomes("healthy");
    let listed = run(&mut patient.supervised.vm.host_tool(&["ls"])).exits(0);
    let columns: Vec<String> = listed.out().split_whitespace().map(str::to_owned).collect();
    assert_eq!(columns[2], "HEALTH", "{listed}");
    assert_eq!(columns[9], "healthy", "{listed}");
    signal(patient.supervised.vmm, Signal::SIGKILL);
    patient.supervised.supervisor.wait().unwrap();
    patient.becomes("stopped");
}

#[test]
fn a_command_that_changes_the_vm_is_waited_for() {
    let patient = Patient::start();
    File::create(&patient.well).unwrap();
    patient.becomes("healthy");
    let file = File::create(patient.supervised.vm.path().join("lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    fs::remove_file(&patient.well).unwrap();
    // A check that a snapshot may have disturbed does not count, and no other one begins.
    for _ in 0..20 {
        assert_eq!(patient.inspect()["health"]["status"], "healthy");
    }
    drop(lock);
    patient.becomes("unhealthy");
}

#[test]
fn a_supervisor_that_was_killed_is_missed() {
    let mut patient = Patient::start();
    patient.becomes("unhealthy");
    patient.supervised.supervisor.kill().unwrap();
    patient.supervised.supervisor.wait().unwrap();
    let mut list = patient.supervised.vm.host_tool(&["ls", "--json"]);
    let listed = run(&mut list)
        .exits(0)
        .complains("host-tool stop vm")
        .json();
    assert_eq!(listed["vms"][0]["supervised"], false, "{listed}");
    signal(patient.supervised.vmm, Signal::SIGKILL);
    patient.becomes("stopped");
    let removed = run(&mut patient.supervised.vm.host_tool(&["rm", "vm"]));
    removed.exits(0);
    assert!(!patient.supervised.vm.path().exists());
}
