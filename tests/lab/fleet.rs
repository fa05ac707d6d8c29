//! Many clones with one command, VMMs that other programs started, traces, states, and a service
//! manager.

use std::collections::HashSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::process::{Finished, Running, run, signal};

use crate::Case;
use crate::machine::{Machine, TIMEOUT, Vmm};

pub(crate) const CASES: &[Case] = &[
    (
        "three_clones_with_one_command",
        three_clones_with_one_command,
    ),
    ("a_clone_that_fails_alone", a_clone_that_fails_alone),
    (
        "an_interrupted_fleet_leaves_nothing",
        an_interrupted_fleet_leaves_nothing,
    ),
    (
        "a_vmm_that_somebody_else_started",
        a_vmm_that_somebody_else_started,
    ),
    (
        "a_clone_is_named_by_its_first_probe",
        a_clone_is_named_by_its_first_probe,
    ),
    ("a_service_manager_is_told", a_service_manager_is_told),
];

/// A command that restores `count` clones.
fn fleet_command(machine: &Machine, artifact: &Path, count: &str) -> Command {
    let mut command = machine.restore_command(artifact, "job");
    command.args(["--count", count, "--parallel", "2"]);
    command
}

/// The events of a trace that have this kind.
fn events(trace: &Value, kind: &str) -> Vec<Value> {
    let events = trace["traceEvents"].as_array().unwrap().iter();
    events
        .filter(|event| event["ph"] == kind)
        .cloned()
        .collect()
}

fn three_clones_with_one_command(machine: &Machine) {
    let artifact = machine.artifact();
    let (trace, picture) = (machine.path("trace.json"), machine.path("timeline.svg"));
    let mut command = fleet_command(machine, &artifact, "3");
    command
        .arg("--trace")
        .arg(&trace)
        .arg("--timeline")
        .arg(&picture);
    let record = run(&mut command).exits(0).json();
    assert_eq!(
        (&record["event"], &record["ready"]),
        (&"ready".into(), &3.into())
    );

    let clones = record["clones"].as_array().unwrap();
    let (mut names, mut generations) = (Vec::new(), HashSet::new());
    let (mut machine_ids, mut random) = (HashSet::new(), HashSet::new());
    for clone in clones {
        let name = clone["name"].as_str().unwrap();
        let inside = machine.exec(name, "hostname; cat /etc/machine-id");
        let machine_id = clone["machine_id"].as_str().unwrap();
        assert_eq!(inside, format!("{name}\n{machine_id}\n"), "{clone}");
        names.push(name.to_owned());
        generations.insert(clone["generation"].to_string());
        machine_ids.insert(machine_id.to_owned());
        random.insert(machine.exec(name, "head -c 16 /dev/urandom | od -An -tx1"));
    }
    assert_eq!(names, ["job-1", "job-2", "job-3"]);
    let counts = [generations.len(), machine_ids.len(), random.len()];
    assert_eq!(counts, [3, 3, 3], "clones are alike: {record}");
    for name in &names {
        is_whole(&trace, name);
        let picture = fs::read_to_string(&picture).unwrap();
        assert!(picture.contains(name.as_str()), "no {name} in the picture");
    }

    // A name that is in use is found before any clone is started.
    machine.end("job-1");
    let again = run(&mut fleet_command(machine, &artifact, "3")).exits(2);
    again.complains("job-2");
    let listed = machine.tool(["ls"]).exits(0).out();
    assert!(!listed.contains("job-1"), "{listed}");
    machine.end("job-2");
    machine.end("job-3");
    machine.is_clean();
}

/// Fails unless the trace shows all phases of this clone, its attempts, and its guest's steps.
#[track_caller]
fn is_whole(trace: &Path, name: &str) {
    let trace: Value = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    let process = |side: &str| {
        let named = events(&trace, "M").into_iter().find(|event| {
            event["name"] == "process_name" && event["args"]["name"] == format!("{name} ({side})")
        });
        named.unwrap_or_else(|| panic!("no {name} ({side})"))["pid"].clone()
    };
    let slices = |side: &str, category: &str| -> Vec<String> {
        let pid = process(side);
        let slices = events(&trace, "X").into_iter();
        slices
            .filter(|slice| slice["pid"] == pid && slice["cat"] == category)
            .map(|slice| slice["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let phases = ["spawn", "load", "rebind", "probe", "publish"];
    assert_eq!(slices("host", "phase"), phases);
    assert!(slices("host", "attempt").len() >= 2);
    assert_eq!(slices("guest", "request"), ["rebind", "probe"]);
    let steps = [
        "connections",
        "listener",
        "clock",
        "entropy",
        "identity",
        "spawn and reap",
    ];
    assert_eq!(slices("guest", "step"), steps);
}

fn a_clone_that_fails_alone(machine: &Machine) {
    let artifact = machine.artifact();
    let trace = machine.path("trace.json");
    let mut command = fleet_command(machine, &artifact, "3");
    let mut restore = Running::start(command.arg("--trace").arg(&trace));
    let log = machine.state_dir().join("job-2").join("vmm.log");
    let vmm = loop {
        let of_the_second = |pid: u32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.ends_with("job-2"))
        };
        let vmm = machine
            .processes()
            .into_iter()
            .find(|(pid, comm)| !comm.starts_with("host-tool") && of_the_second(*pid));
        if let (true, Some((pid, _))) = (log.exists(), vmm) {
            break pid;
        }
        assert!(!restore.is_over(), "it ended early");
    };
    signal(vmm, Signal::SIGKILL);
    let ended = restore.finish();
    assert!([5, 8].contains(&ended.code()), "{ended}");
    let record = ended.json();
    assert_eq!(
        (&record["event"], &record["ready"]),
        (&"failed".into(), &2.into())
    );
    let events_of: Vec<_> = record["clones"].as_array().unwrap().iter().collect();
    let ends: Vec<_> = events_of
        .iter()
        .map(|clone| clone["event"].as_str())
        .collect();
    assert_eq!(
        ends,
        [Some("ready"), Some("failed"), Some("ready")],
        "{record}"
    );
    ended.complains("1 of 3 clones failed, the first of them is job-2");
    let trace: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    assert!(!events(&trace, "i").is_empty(), "a failure is in the trace");
    for name in ["job-1", "job-3"] {
        assert_eq!(machine.exec(name, "echo here"), "here\n");
        machine.end(name);
    }
    machine.is_clean();
}

fn an_interrupted_fleet_leaves_nothing(machine: &Machine) {
    let artifact = machine.artifact();
    // The third clone begins when another one is ready already.
    for sign in ["job-1/api.sock", "job-3/api.sock"] {
        let mut restore = Running::start(&mut fleet_command(machine, &artifact, "3"));
        let path = machine.state_dir().join(sign);
        while !path.exists() {
            assert!(!restore.is_over(), "it ended early");
        }
        restore.signal(Signal::SIGTERM);
        assert_eq!(restore.finish().code(), 128 + 15, "at {sign}");
        machine.await_processes();
        machine.is_clean();
    }
}

/// A VMM that the test starts itself, as another program would.
struct Foreign {
    child: Child,
    folder: PathBuf,
    /// The options with which `host-tool` reaches its guest.
    target: [String; 2],
}

impl Foreign {
    fn start(machine: &Machine, artifact: &Path) -> Self {
        let folder = machine.path("foreign");
        fs::create_dir(&folder).unwrap();
        let (program, args) = match machine.vmm {
            Vmm::Firecracker => {
                let program = std::env::var("FIRECRACKER").unwrap_or_else(|_| "firecracker".into());
                (
                    program,
                    ["--api-sock", "api.sock"].map(str::to_owned).to_vec(),
                )
            }
            Vmm::Qemu => qemu_arguments(machine, artifact),
        };
        let mut command = Command::new(program);
        let log = fs::File::create(folder.join("log")).unwrap();
        let errors = log.try_clone().unwrap();
        command.args(args).current_dir(&folder).stdin(Stdio::null());
        let child = command.stdout(log).stderr(errors).spawn().unwrap();
        let target = match machine.vmm {
            Vmm::Firecracker => {
                let path = folder.join("vsock.sock");
                ["--uds".to_owned(), path.display().to_string()]
            }
            Vmm::Qemu => ["--cid".to_owned(), FOREIGN_CID.to_owned()],
        };
        Self {
            child,
            folder,
            target,
        }
    }

    fn restore(&self, machine: &Machine, artifact: &Path) -> Finished {
        let mut command = machine.command(["restore", "--json", "--timeout", TIMEOUT]);
        command.arg(artifact).args(&self.target);
        run(command.arg("--api-sock").arg(self.folder.join("api.sock")))
    }
}

const FOREIGN_CID: &str = "4711";

/// QEMU's command line as `host-tool` writes it for a clone, with another context id.
fn qemu_arguments(machine: &Machine, artifact: &Path) -> (String, Vec<String>) {
    machine.restore(artifact, "model");
    let path = machine.state_dir().join("model").join("launch.json");
    let launch: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    machine.end("model");
    let args = launch["args"].as_array().unwrap().iter();
    let args = args.map(|arg| match arg.as_str().unwrap() {
        arg if arg.contains("guest-cid=") => format!("vhost-vsock-device,guest-cid={FOREIGN_CID}"),
        arg => arg.to_owned(),
    });
    (
        launch["program"].as_str().unwrap().to_owned(),
        args.collect(),
    )
}

fn a_vmm_that_somebody_else_started(machine: &Machine) {
    let artifact = machine.artifact();
    let mut foreign = Foreign::start(machine, &artifact);
    let record = foreign.restore(machine, &artifact).exits(0).json();
    assert_eq!(record["event"], "ready", "{record}");
    assert!(record["name"].is_null(), "{record}");
    let mut exec = machine.command(["exec", "--timeout", TIMEOUT]);
    exec.args(&foreign.target)
        .args(["--", "sh", "-c", "echo here"]);
    assert_eq!(run(&mut exec).exits(0).out(), "here\n");

    // A running machine is not replaced, and a failure does not end it.
    let again = foreign.restore(machine, &artifact);
    again.exits(5).complains("has a machine already");
    assert_eq!(run(&mut exec).exits(0).out(), "here\n");
    assert!(foreign.child.try_wait().unwrap().is_none());
    foreign.child.kill().unwrap();
    foreign.child.wait().unwrap();
    machine.is_clean();
}

fn a_clone_is_named_by_its_first_probe(machine: &Machine) {
    let artifact = machine.artifact();
    let mut command = machine.line("restore --no-wait --json --name clone --hostname late");
    let started = run(command.arg(&artifact)).exits(0).json();
    assert_eq!(started["event"], "started", "{started}");
    let probe = || {
        let line = format!("probe --name clone --watch --json --timeout {TIMEOUT}");
        run(&mut machine.line(&line)).exits(0).json()
    };
    let first = probe();
    assert_eq!(first["event"], "ready", "{first}");
    assert!(first["changes"].is_array(), "{first}");
    let generation = &first["generation"];
    assert_eq!(probe()["generation"], *generation);
    let inspected = machine.tool(["inspect", "clone", "--json"]).exits(0).json();
    let state = &inspected["state"];
    assert_eq!(
        (&state["generation"], &state["stage"]),
        (generation, &"ready".into())
    );
    assert_eq!(machine.exec("clone", "hostname"), "late\n");
    machine.end("clone");

    // Without a guest the time limit ends the command, which reports what it saw.
    let path = machine.path("none");
    let mut command = machine.command(["probe", "--watch", "--json", "--timeout", "1500ms"]);
    let ended = run(command.arg("--unix").arg(path)).exits(2);
    let changes = &ended.json()["changes"];
    assert_eq!(changes[0]["state"], "no answer", "{ended}");
    ended.complains("no answer (connection closed");
    machine.is_clean();
}

fn a_service_manager_is_told(machine: &Machine) {
    let path = machine.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(tests::DEADLINE * 3)).unwrap();
    let told = || {
        let mut bytes = [0; 64];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let mut command = machine.restore_command(&machine.artifact(), "service");
    command.arg("--foreground").env("NOTIFY_SOCKET", &path);
    let restore = Running::start(&mut command);
    assert_eq!(told(), "READY=1");
    assert_eq!(machine.exec("service", "echo here"), "here\n");
    restore.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(restore.finish().code(), 0);
    assert_eq!(machine.processes(), []);
    machine.tool(["rm", "service"]).exits(0);
    machine.is_clean();
}
