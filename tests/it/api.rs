//! Goal: whatever comes over a VMM's API socket, a command ends within its time limit, in the right
//! phase, with its documented exit code and a message that names the request. It leaves no process,
//! socket, lock or half-written artifact, and a VM that ran before still runs. Method: the built
//! `host-tool`, a fake VMM that answers one request wrongly, and two tables: each [`Step`] meets
//! each [`Fault`].

mod faults;

use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tests::agent::Agent;
use tests::host::{Kind, Rule, TestHost, Then};
use tests::process::{Finished, run};

use faults::{COMMON_FAULTS, FAULTS, Fault, QMP_FAULTS};

/// Time limits to try in turn until one is long enough for the request to come on a slow machine.
const TIMEOUTS: [&str; 7] = ["500ms", "1s", "2s", "4s", "8s", "16s", "60s"];

/// For cases that are not about the time limit.
const LONG: &str = "60s";

/// A request to the VMM, and the command that sends it.
#[derive(Debug, Clone, Copy)]
struct Step {
    command: Command,
    request: &'static str,
    /// Which of the requests that begin so, from 1.
    nth: u64,
    phase: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Boot,
    Restore,
    /// `restore --api-sock`, with a VMM that the test has started.
    Adopt,
    Snapshot,
}

const fn step(command: Command, request: &'static str, nth: u64, phase: &'static str) -> Step {
    Step {
        command,
        request,
        nth,
        phase,
    }
}

const STEPS: [Step; 15] = [
    step(Command::Boot, "PUT /machine-config", 1, "start"),
    step(Command::Boot, "PUT /boot-source", 1, "start"),
    step(Command::Boot, "PUT /drives/drive0", 1, "start"),
    step(Command::Boot, "PUT /vsock", 1, "start"),
    step(Command::Boot, "PUT /actions", 1, "start"),
    step(Command::Restore, "PUT /snapshot/load", 1, "load"),
    step(Command::Adopt, "GET /version", 1, "version"),
    step(Command::Adopt, "GET / ", 1, "version"),
    step(Command::Adopt, "PUT /snapshot/load", 1, "load"),
    step(Command::Snapshot, "GET /version", 1, "version"),
    step(
        Command::Snapshot,
        "PATCH /vm {\"state\":\"Paused\"}",
        1,
        "pause",
    ),
    step(Command::Snapshot, "GET / ", 1, "save"),
    step(Command::Snapshot, "PUT /snapshot/create", 1, "save"),
    step(Command::Snapshot, "GET / ", 2, "resume"),
    step(
        Command::Snapshot,
        "PATCH /vm {\"state\":\"Resumed\"}",
        1,
        "resume",
    ),
];

/// Requests to QEMU.
const QMP_STEPS: [Step; 7] = [
    step(Command::Boot, "qmp_capabilities", 1, "start"),
    step(Command::Boot, "cont", 1, "start"),
    step(Command::Restore, "migrate-set-capabilities", 1, "load"),
    step(Command::Restore, "getfd", 1, "load"),
    step(Command::Restore, "migrate-incoming", 1, "load"),
    step(Command::Restore, "query-status", 1, "load"),
    step(Command::Restore, "cont", 1, "load"),
];

/// A host on which cases run one after the other.
struct Fixture {
    host: TestHost,
    kind: Kind,
    _agent: Agent,
}

impl Fixture {
    fn new(kind: Kind) -> Self {
        let agent = Agent::start();
        Self {
            host: TestHost::of_kind(kind, &agent),
            kind,
            _agent: agent,
        }
    }

    fn arguments(&self, command: Command, timeout: &str) -> Vec<String> {
        let path = |name: &str| self.host.path(name).display().to_string();
        let line = match command {
            Command::Boot => format!(
                "boot --name vm --kernel {} --initrd {} --drive {}",
                path("kernel"),
                path("initrd"),
                path("disk"),
            ),
            Command::Restore => format!("restore --name vm {}", self.host.artifact().display()),
            Command::Adopt => format!(
                "restore {} --api-sock {} --uds {}",
                self.host.artifact().display(),
                path("vmm/api.sock"),
                path("vmm/vsock.sock"),
            ),
            Command::Snapshot => format!("snapshot --name vm --out {}", path("snapshots/out")),
        };
        let mut line = format!("{line} --json --timeout {timeout}");
        if self.kind == Kind::Qemu {
            // Its guest is reached only over vsock, which this machine may not have.
            line += " --no-wait";
        }
        line.split(' ').map(str::to_owned).collect()
    }

    /// Sets up what the command needs, and runs it with a rule for one of its requests.
    fn meet(&self, command: Command, rule: &Rule, timeout: &str) -> (Finished, Option<Child>) {
        self.host.script(&[]);
        let mut vmm = None;
        match command {
            Command::Boot | Command::Restore => {}
            Command::Adopt => {
                let mut program = self.host.vmm();
                program.stdin(Stdio::null()).stdout(Stdio::null());
                vmm = Some(program.spawn().unwrap());
            }
            Command::Snapshot => {
                let boot = self.arguments(Command::Boot, LONG);
                self.host.run(boot).exits(0);
            }
        }
        let rules = std::slice::from_ref(rule);
        self.host.script(rules);
        let arguments = self.arguments(command, timeout);
        (run(&mut self.host.tool(arguments)), vmm)
    }

    /// The same, with the shortest time limit in which the request comes.
    fn meet_in_time(&self, step: Step, rule: &Rule, is_slow: bool) -> (Finished, Option<Child>) {
        let timeouts: &[&str] = if is_slow { &TIMEOUTS } else { &[LONG] };
        for timeout in timeouts {
            let (ended, vmm) = self.meet(step.command, rule, timeout);
            // A limit is also too short when no time is left to resume the source. After a failed
            // resume the command tries that once.
            let has_lost_source =
                step.phase != "resume" && ended.out().contains(r#""source":"failed""#);
            if timeout == &LONG || (self.host.is_met() && !has_lost_source) {
                return (ended, vmm);
            }
            self.clean_up(vmm);
        }
        unreachable!("the last time limit is the long one")
    }

    /// Removes what a command may leave.
    fn clean_up(&self, vmm: Option<Child>) {
        self.host.script(&[]);
        if let Some(mut vmm) = vmm {
            drop(vmm.kill());
            drop(vmm.wait());
            for socket in ["vmm/api.sock", "vmm/vsock.sock"] {
                drop(std::fs::remove_file(self.host.path(socket)));
            }
        }
        for name in self.host.names("state") {
            self.host.run(["rm", "--force", &name]);
        }
        drop(std::fs::remove_dir_all(self.host.path("snapshots/out")));
    }

    /// Runs one case. The error says what is wrong with it.
    fn check(&self, step: Step, fault: &Fault) -> Result<(), String> {
        let rule = (fault.make)(Rule::on(step.request).nth(step.nth));
        let (ended, vmm) = self.meet_in_time(step, &rule, fault.code == 124);
        assert!(
            self.host.is_met(),
            "{step:?}: the request does not come: {ended}"
        );
        let answer = self.check_answer(step, fault, rule.then, &ended);
        let left = self.check_left(step, fault, rule.then, &ended);
        self.clean_up(vmm);
        self.host.is_clean();
        let wrong = [answer, left].into_iter().filter_map(Result::err);
        let wrong: Vec<_> = wrong.collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{step:?}, {}: {}: {ended}",
            fault.name,
            wrong.join(", ")
        ))
    }

    /// Checks exit code, phase and message.
    fn check_answer(
        &self,
        step: Step,
        fault: &Fault,
        then: Then,
        ended: &Finished,
    ) -> Result<(), String> {
        let expected = |what: &str, is_so: bool| is_so.then_some(()).ok_or_else(|| what.to_owned());
        if fault.code == 0 {
            return expected("exit code", ended.code() == 0);
        }
        let record: Value = serde_json::from_slice(&ended.stdout).map_err(|e| e.to_string())?;
        expected("exit code", ended.code() == fault.code)?;
        expected("recorded exit code", record["exit"] == fault.code)?;
        expected("event", record["event"] == "failed")?;
        expected("phase", record["phase"] == step.phase)?;
        let request = step.request.split(" {").next().unwrap_or_default().trim();
        expected("request in the message", ended.err().contains(request))?;
        expected(fault.text, ended.err().contains(fault.text))?;
        expected("no control characters", !ended.err().contains('\u{1b}'))?;
        // `host-tool` knows the exit code only of a VMM that it has started.
        let is_ours = matches!(step.command, Command::Boot | Command::Restore);
        let says_end = ended.err().contains("ended with exit code 1");
        let is_gone = fault.code == 8 && then == Then::Exit;
        expected("the VMM's end", says_end || !is_gone || !is_ours)
    }

    /// Checks what is left on the host.
    fn check_left(
        &self,
        step: Step,
        fault: &Fault,
        then: Then,
        ended: &Finished,
    ) -> Result<(), String> {
        let expected = |what: &str, is_so: bool| is_so.then_some(()).ok_or_else(|| what.to_owned());
        let artifacts = self.host.names("snapshots");
        let has_artifact = artifacts == ["out"];
        let is_source_fault = step.phase == "resume" || fault.code == 0;
        match step.command {
            // A failed command leaves nothing.
            Command::Boot | Command::Restore if fault.code != 0 => self.host.is_clean(),
            Command::Boot | Command::Restore | Command::Adopt => {}
            Command::Snapshot if is_source_fault => expected("artifact", has_artifact)?,
            Command::Snapshot => expected("no artifact", artifacts.is_empty())?,
        }
        if step.command != Command::Snapshot || then == Then::Exit {
            return Ok(());
        }
        // The source runs on: this command resumes it, or else the next command does.
        if fault.code != 0 && !is_source_fault && step.phase != "version" {
            let record: Value = serde_json::from_slice(&ended.stdout).map_err(|e| e.to_string())?;
            expected("source is ready", record["source"] == "ready")?;
        }
        self.host.script(&[]);
        let probed = self.host.run(["probe", "--name", "vm", "--timeout", LONG]);
        expected("guest answers", probed.code() == 0)
    }
}

/// Runs each step with each fault, on four hosts at once.
#[track_caller]
fn check_all(kind: Kind, steps: &[Step], faults: &[Fault]) {
    let faults = COMMON_FAULTS.iter().chain(faults);
    let with_all = |step: &Step| {
        faults
            .clone()
            .map(|fault| (*step, fault))
            .collect::<Vec<_>>()
    };
    let cases: Vec<_> = steps.iter().flat_map(with_all).collect();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let work = || {
        let fixture = Fixture::new(kind);
        while let Some((step, fault)) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
            if let Err(text) = fixture.check(*step, fault) {
                wrong.lock().unwrap().push(text);
            }
        }
    };
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(work)));
    });
    tests::assert_none("wrong", &wrong.into_inner().unwrap());
}

#[test]
fn each_request_meets_each_fault() {
    check_all(Kind::Firecracker, &STEPS, &FAULTS);
}

#[test]
fn each_line_meets_each_fault() {
    check_all(Kind::Qemu, &QMP_STEPS, &QMP_FAULTS);
}

/// A VMM that fails before it opens its socket.
#[test]
fn a_vmm_that_does_not_come_up_is_taken_away() {
    for kind in [Kind::Firecracker, Kind::Qemu] {
        let fixture = Fixture::new(kind);
        for command in [Command::Boot, Command::Restore] {
            for (then, timeout, code, text) in [
                (Then::Exit, LONG, 8, "the VMM ended with exit code 1"),
                (
                    Then::Hang,
                    "500ms",
                    124,
                    "nothing listened there before the deadline",
                ),
            ] {
                let (ended, _) = fixture.meet(command, &Rule::on("START").then(then), timeout);
                let ended = ended.exits(code).complains(text);
                assert_eq!(ended.json()["phase"], "spawn", "{ended}");
                fixture.host.is_clean();
            }
        }
    }
}

/// QEMU sends the first message.
#[test]
fn a_greeting_that_is_none_is_named() {
    let fixture = Fixture::new(Kind::Qemu);
    for (send, then, timeout, code, text) in [
        (
            "",
            Then::Hang,
            "500ms",
            124,
            "no answer to qmp_capabilities",
        ),
        (
            "",
            Then::Close,
            LONG,
            8,
            "before it answered qmp_capabilities",
        ),
        (
            "hello\n",
            Then::Hang,
            LONG,
            5,
            "unusable answer to qmp_capabilities",
        ),
        (
            "{\"event\": \"STOP\"}\n",
            Then::Repeat,
            LONG,
            5,
            "without a greeting",
        ),
    ] {
        let rule = Rule::on("GREETING").send(send).then(then);
        let (ended, _) = fixture.meet(Command::Boot, &rule, timeout);
        let ended = ended.exits(code).complains(text);
        assert_eq!(ended.json()["phase"], "start", "{ended}");
        fixture.host.is_clean();
    }
}

/// The VMM's message tells whether the artifact is at fault.
#[test]
fn a_load_that_fails_for_the_artifacts_sake_says_so() {
    let fixture = Fixture::new(Kind::Firecracker);
    let reason = "Failed to get snapshot state from file: CRC64 validation failed";
    let body = format!(r#"{{"fault_message":"Load snapshot error: {reason}"}}"#);
    let len = body.len();
    let answer = format!("HTTP/1.1 400 \r\nContent-Length: {len}\r\n\r\n{body}");
    for command in [Command::Restore, Command::Adopt] {
        let rule = Rule::on("PUT /snapshot/load")
            .send(&answer)
            .then(Then::Exit);
        let (ended, vmm) = fixture.meet(command, &rule, LONG);
        let ended = ended.exits(3).complains(reason);
        assert_eq!(ended.json()["phase"], "load", "{ended}");
        fixture.clean_up(vmm);
        fixture.host.is_clean();
    }
}
