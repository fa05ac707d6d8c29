//! Snapshots: killed half-way, taken by other programs, verified, and one after another.
//!
//! A command is killed when its log says that a phase has begun, never after a time.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::process::{Running, run, signal};

use crate::Case;
use crate::machine::{Machine, TIMEOUT, Vmm};
use crate::vmms::{self, Firecracker, Qmp};

pub(crate) const CASES: &[Case] = &[
    (
        "a_snapshot_killed_at_any_phase",
        a_snapshot_killed_at_any_phase,
    ),
    (
        "a_stop_after_an_interrupted_snapshot",
        a_stop_after_an_interrupted_snapshot,
    ),
    (
        "a_vmm_killed_during_its_snapshot",
        a_vmm_killed_during_its_snapshot,
    ),
    ("an_artifact_is_listed_and_checked", an_artifact_is_listed),
    ("disks_are_the_clones_own", disks_are_the_clones_own),
    ("a_vm_of_another_program", a_vm_of_another_program),
    (
        "a_snapshot_taken_behind_our_back",
        a_snapshot_taken_behind_our_back,
    ),
    (
        "policies_towards_running_commands",
        policies_towards_running_commands,
    ),
    ("lineage_three_deep", |machine| lineage(machine, 3)),
    ("lineage_ten_deep", |machine| lineage(machine, 10)),
];

/// Starts a snapshot and kills it when `phase` has begun.
fn kill_at(machine: &Machine, phase: &str, artifact: &Path) {
    let mut child = start_to(machine, phase, artifact).0;
    signal(child.id(), Signal::SIGKILL);
    child.wait().unwrap();
}

/// Starts a snapshot. Returns with the rest of its log when `phase` has begun.
fn start_to(
    machine: &Machine,
    phase: &str,
    artifact: &Path,
) -> (Child, Lines<BufReader<ChildStderr>>) {
    let args = ["snapshot", "--name", "vm", "--timeout", TIMEOUT, "-v"];
    let mut command = machine.command(args);
    command.arg("--out").arg(artifact).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let sign = format!("phase {phase}");
    let is_sign = |line: Result<String, _>| line.unwrap().ends_with(&sign);
    assert!(log.any(is_sign), "no {sign}");
    (child, log)
}

fn a_snapshot_killed_at_any_phase(machine: &Machine) {
    machine.boot("vm");
    machine.exec("vm", "echo kept > /tmp/file");
    let folder = machine.path("artifacts");
    fs::create_dir(&folder).unwrap();
    let phases = [
        "lock", "version", "artifact", "quiesce", "pause", "save", "disks", "resume", "rebind",
        "probe", "publish",
    ];
    for phase in phases {
        let artifact = folder.join("a");
        kill_at(machine, phase, &artifact);
        // Killed in its last moment, it may have published the artifact.
        if !artifact.exists() {
            machine.snapshot("vm", "artifacts/a", &["--sha256"]);
        }
        let args = ["snapshots", "verify", artifact.to_str().unwrap()];
        machine.tool(args).exits(0);
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 1, "drafts are left after {phase}");
        let file = machine.exec("vm", "cat /tmp/file");
        assert_eq!(file, "kept\n", "killed at {phase}");
        fs::remove_dir_all(&artifact).unwrap();
    }
    // Other commands repair what a killed snapshot has left, too.
    kill_at(machine, "save", &folder.join("a"));
    let probe = ["probe", "--name", "vm", "--timeout", TIMEOUT];
    machine.tool(probe).exits(0);
    assert_eq!(machine.exec("vm", "cat /tmp/file"), "kept\n");
    machine.end("vm");
    machine.is_clean();
}

fn a_stop_after_an_interrupted_snapshot(machine: &Machine) {
    for phase in ["pause", "save"] {
        machine.boot("vm");
        kill_at(machine, phase, &machine.path("artifact"));
        let stop = ["stop", "vm", "--timeout", TIMEOUT, "--json"];
        let record = machine.tool(stop).exits(0).json();
        assert_eq!(record["how"], "powered off", "after {phase}: {record}");
        machine.tool(["rm", "vm"]).exits(0);
        machine.is_clean();
    }
}

fn a_vmm_killed_during_its_snapshot(machine: &Machine) {
    let origin = machine.artifact();
    let artifact = machine.path("artifact");
    for phase in ["quiesce", "pause", "save", "resume", "rebind", "probe"] {
        let record = machine.restore(&origin, "vm");
        let vmm = u32::try_from(record["vmm"]["pid"].as_u64().unwrap()).unwrap();
        let (mut child, log) = start_to(machine, phase, &artifact);
        signal(vmm, Signal::SIGKILL);
        let log: Vec<String> = log.map_while(Result::ok).collect();
        let status = child.wait().unwrap();
        // When it was killed, it may have been talking to the VMM or not.
        let log = log.join("\n");
        let is_known = matches!(status.code(), Some(0 | 5 | 8));
        assert!(is_known, "killed at {phase}: {status}\n{log}");
        if artifact.exists() {
            let args = ["snapshots", "verify", artifact.to_str().unwrap()];
            machine.tool(args).exits(0);
            fs::remove_dir_all(&artifact).unwrap();
        }
        let draft = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains(".tmp-");
        let mut entries = fs::read_dir(machine.path("")).unwrap().flatten();
        assert!(!entries.any(draft), "a draft is left after {phase}");
        machine.end("vm");
        machine.is_clean();
    }
}

fn an_artifact_is_listed(machine: &Machine) {
    machine.boot("vm");
    let good = machine.snapshot("vm", "good", &["--sha256"]);
    let bad = machine.snapshot("vm", "bad", &["--stop"]);
    machine.tool(["rm", "vm"]).exits(0);
    fs::write(bad.join("vmstate"), "").unwrap();

    let top = machine.path("");
    let listed = machine.tool(["snapshots", "ls", "--json", top.to_str().unwrap()]);
    let listed = listed.exits(0).json();
    let status = |row: &Value| (row["name"].to_string(), row["status"].to_string());
    let rows: Vec<_> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(status)
        .collect();
    let expected = [("bad", "damaged"), ("good", "good")];
    assert_eq!(
        rows,
        expected.map(|(name, word)| (json!(name).to_string(), json!(word).to_string()))
    );

    let verify =
        |dir: &Path| machine.tool(["snapshots", "verify", "--sha256", dir.to_str().unwrap()]);
    verify(&good).exits(0);
    verify(&bad).exits(3).complains("vmstate has 0 bytes");
    let inspected = machine.tool(["snapshots", "inspect", good.to_str().unwrap()]);
    assert!(inspected.exits(0).out().contains("128M"));
    // Changes one byte of the guest's memory or of its devices.
    let state = good.join("vmstate");
    let mut bytes = fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&state, bytes).unwrap();
    verify(&good).exits(3).complains("its SHA-256 differs");
    machine.is_clean();
}

fn disks_are_the_clones_own(machine: &Machine) {
    const WRITE: &str = "dd of=/dev/vda conv=notrunc,fsync 2>/dev/null";
    const READ: &str = "head -c 6 /dev/vda";
    let image = machine.path("disk");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mut boot = machine.boot_arguments("vm");
    boot.extend(["--drive".to_owned(), image.to_str().unwrap().to_owned()]);
    machine.tool(boot).exits(0);
    machine.exec("vm", &format!("echo first | {WRITE}"));
    let artifact = machine.snapshot("vm", "artifact", &[]);
    let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
    let copy = artifact.join("disk0");
    assert!(blocks(&copy) <= blocks(&image) + 16, "holes are not copied");
    machine.exec("vm", &format!("echo other | {WRITE}"));
    machine.restore(&artifact, "clone");
    assert_eq!(machine.exec("clone", READ), "first\n");
    machine.exec("clone", &format!("echo clone | {WRITE}"));
    assert_eq!(machine.exec("vm", READ), "other\n");
    assert_eq!(fs::read(&copy).unwrap()[..6], *b"first\n");
    machine.end("clone");
    machine.end("vm");
    machine.is_clean();
}

/// `host-tool snapshot` of a VM that it has not started: there is no VM directory and no
/// supervisor.
fn a_vm_of_another_program(machine: &Machine) {
    match machine.vmm {
        Vmm::Qemu => {
            machine.boot("vm");
            let api_socket = machine.state_dir().join("vm/api.sock");
            let ended = snapshot_of(machine, &api_socket, Path::new("none"), "artifact", &[]);
            ended.exits(5).complains("is not Firecracker's API socket");
            assert_eq!(machine.exec("vm", "echo source"), "source\n");
            machine.end("vm");
        }
        Vmm::Firecracker => {
            let other = Firecracker::boot(&machine.path("other"));
            let (api_socket, uds) = (other.api_socket(), other.uds());
            let exec = |line: &str| {
                let mut exec = machine.line(&format!("exec --timeout {TIMEOUT} --uds"));
                exec.arg(&uds).args(["--", "sh", "-c", line]);
                run(&mut exec).exits(0).out()
            };
            let mut probe = machine.line(&format!("probe --timeout {TIMEOUT} --uds"));
            run(probe.arg(&uds)).exits(0);
            exec("echo kept > /tmp/file");
            let refused = snapshot_of(machine, &api_socket, &uds, "none", &["--stop"]);
            refused.exits(2).complains("--stop");
            for name in ["one", "two"] {
                let ended = snapshot_of(machine, &api_socket, &uds, name, &[]).exits(0);
                assert_eq!(exec("cat /tmp/file"), "kept\n", "{ended}");
                machine.restore(&machine.path(name), "clone");
                assert_eq!(machine.exec("clone", "cat /tmp/file"), "kept\n");
                assert_eq!(exec("cat /tmp/file"), "kept\n", "beside its clone");
                machine.end("clone");
            }
            let ancestors = inspect(machine, &machine.path("two"))["ancestors"].clone();
            assert_eq!(ancestors.as_array().unwrap().len(), 1, "{ancestors}");
        }
    }
    machine.is_clean();
}

fn snapshot_of(
    machine: &Machine,
    api_socket: &Path,
    uds: &Path,
    artifact: &str,
    more: &[&str],
) -> tests::process::Finished {
    let mut command = machine.command(["snapshot", "--timeout", TIMEOUT, "--api-sock"]);
    command.arg(api_socket).arg("--uds").arg(uds).arg("--out");
    run(command.arg(machine.path(artifact)).args(more))
}

/// Without QUIESCE the guest wakes in the middle of its work, with its source's generation.
fn a_snapshot_taken_behind_our_back(machine: &Machine) {
    machine.boot("vm");
    machine.exec("vm", "echo kept > /tmp/file");
    let artifact = machine.snapshot("vm", "artifact", &[]);
    let path = |name: &str| artifact.join(name).to_str().unwrap().to_owned();
    let api_socket = machine.state_dir().join("vm/api.sock");
    match machine.vmm {
        Vmm::Firecracker => {
            let call = |method: &str, path: &str, body: Value| {
                vmms::http(&api_socket, method, path, &body);
            };
            call("PATCH", "/vm", json!({ "state": "Paused" }));
            let files =
                json!({ "snapshot_path": path("vmstate"), "mem_file_path": path("memory") });
            call("PUT", "/snapshot/create", files);
            call("PATCH", "/vm", json!({ "state": "Resumed" }));
        }
        Vmm::Qemu => {
            let mut qmp = Qmp::connect(&api_socket).unwrap();
            let mut execute = |command: &str, arguments| qmp.execute(command, arguments).unwrap();
            execute("stop", json!({}));
            let uri = format!("exec:cat > '{}'", path("vmstate"));
            execute("migrate", json!({ "uri": uri }));
            while execute("query-migrate", json!({}))["status"] != "completed" {}
            while execute("query-status", json!({}))["status"] == "finish-migrate" {}
            execute("cont", json!({}));
        }
    }
    // The manifest is right except for the lengths.
    let manifest = PathBuf::from(path("manifest.json"));
    let mut value: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for file in value["files"].as_array_mut().unwrap() {
        let name = file["name"].as_str().unwrap();
        file["len"] = fs::metadata(path(name)).unwrap().len().into();
    }
    fs::write(&manifest, value.to_string()).unwrap();

    for round in 0..3 {
        machine.restore(&artifact, "clone");
        assert_eq!(machine.exec("clone", "cat /tmp/file"), "kept\n", "{round}");
        machine.end("clone");
    }
    assert_eq!(machine.exec("vm", "cat /tmp/file"), "kept\n");
    machine.end("vm");
    machine.is_clean();
}

fn policies_towards_running_commands(machine: &Machine) {
    machine.boot("vm");
    let start = |line: &str| Running::start(&mut machine.shell("vm", line));
    let snapshot = |policy: &str, timeout: &str| {
        let line = format!("snapshot --name vm --json --timeout {timeout} --policy");
        let mut command = machine.line(&line);
        run(command.arg(policy).arg("--out").arg(machine.path(policy)))
    };
    // Blocks until the test writes to the pipe.
    let waiting = start("mkfifo /tmp/fifo; read line < /tmp/fifo; echo $line");
    machine.exec("vm", "until test -p /tmp/fifo; do :; done");
    let refused = snapshot("refuse", TIMEOUT).exits(6);
    assert_eq!(refused.json()["phase"], "quiesce", "{refused}");
    let late = snapshot("drain", "5s").exits(124);
    assert_eq!(late.json()["phase"], "quiesce", "{late}");
    for policy in ["refuse", "drain"] {
        assert!(!machine.path(policy).exists(), "an artifact after all");
    }
    machine.exec("vm", "echo released > /tmp/fifo");
    assert_eq!(waiting.finish().exits(0).out(), "released\n");

    // Counts for some seconds, during which the guest answers BUSY.
    let line = "touch /tmp/counting; n=0; until test $n = 300000; do n=$((n+1)); done; echo $n";
    let counting = start(line);
    machine.exec("vm", "until test -e /tmp/counting; do :; done");
    snapshot("drain", TIMEOUT).exits(0);
    assert_eq!(counting.finish().exits(0).out(), "300000\n");
    machine.end("vm");
    machine.is_clean();
}

/// Clones of clones, each of which is snapshotted twice in a row.
fn lineage(machine: &Machine, depth: usize) {
    let mut artifact = machine.artifact();
    let mut expected = names(machine, &artifact);
    let mut machine_ids = HashSet::new();
    let mut random = HashSet::new();
    for level in 0..depth {
        let name = format!("clone-{level}");
        machine.restore(&artifact, &name);
        assert!(machine_ids.insert(machine.exec(&name, "cat /etc/machine-id")));
        assert!(random.insert(machine.exec(&name, "head -c 16 /dev/urandom | od -An -tx1")));
        for twin in ["a", "b"] {
            artifact = machine.snapshot(&name, &format!("artifact-{level}{twin}"), &[]);
            let found = names(machine, &artifact);
            assert_eq!(found[1..], expected, "level {level}{twin}");
            expected = found;
        }
        machine.end(&name);
    }
    let distinct: HashSet<_> = expected.iter().collect();
    assert_eq!(distinct.len(), expected.len(), "{expected:?}");
    machine.is_clean();
}

/// The generations of an artifact's memory, the latest first.
fn names(machine: &Machine, artifact: &Path) -> Vec<String> {
    let inspected = inspect(machine, artifact);
    let ancestors = inspected["ancestors"].as_array().unwrap().iter();
    let names = std::iter::once(&inspected["generation"]).chain(ancestors);
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

fn inspect(machine: &Machine, artifact: &Path) -> Value {
    let args = ["snapshots", "inspect", "--json", artifact.to_str().unwrap()];
    machine.tool(args).exits(0).json()
}
