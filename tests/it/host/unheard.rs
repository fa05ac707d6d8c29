//! Goal: a command whose record cannot be printed leaves no VM of which the user was not told. It
//! ends with the exit code of a fault of this machine, or that of a closed output, and says what
//! became of its work. Method: a fake VMM, and a standard output that is full or closed.

use std::fs::{File, OpenOptions};
use std::io;
use std::process::{Command, Stdio};

use tests::DEADLINE;
use tests::agent::Agent;
use tests::host::{Kind, TestHost};
use tests::process::{Finished, finish};

/// A standard output, the exit code, and a part of the message.
type Output = (fn() -> Stdio, i32, &'static str);

const OUTPUTS: [Output; 2] = [
    (full, 1, "No space left on device"),
    (closed, 141, "Broken pipe"),
];

fn full() -> Stdio {
    let full: File = OpenOptions::new().write(true).open("/dev/full").unwrap();
    full.into()
}

fn closed() -> Stdio {
    io::pipe().unwrap().1.into()
}

fn run_into(stdout: Stdio, command: &mut Command) -> Finished {
    let text = format!("{command:?}");
    let command = command.stdin(Stdio::null()).stdout(stdout);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    finish(child, Vec::new(), &text, DEADLINE * 3)
}

struct Fixture {
    host: TestHost,
    artifact: String,
    _agent: Agent,
}

impl Fixture {
    fn new() -> Self {
        let agent = Agent::start();
        let host = TestHost::of_kind(Kind::Firecracker, &agent);
        host.script(&[]);
        Self {
            artifact: host.artifact().display().to_string(),
            host,
            _agent: agent,
        }
    }

    /// The commands that start VMs, and what they say about them afterwards.
    fn starts(&self) -> Vec<(String, &'static str)> {
        let path = |name: &str| self.host.path(name).display().to_string();
        let boot = format!(
            "boot --kernel {} --initrd {}",
            path("kernel"),
            path("initrd")
        );
        let restore = format!("restore {}", self.artifact);
        let taken = "the VM was taken away again";
        vec![
            (format!("{boot} --name vm"), taken),
            (boot, taken),
            (restore.clone(), taken),
            (format!("{restore} --no-wait"), taken),
            (format!("{restore} --foreground"), taken),
            (
                // All of them have the same guest, so none is asked.
                format!("{restore} --count 3 --no-wait"),
                "the clones were taken away again",
            ),
        ]
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn a_vm_whose_record_is_lost_is_taken_away_again() {
    let fixture = Fixture::new();
    for (stdout, code, text) in OUTPUTS {
        for (line, taken) in fixture.starts() {
            for json in ["", " --json"] {
                let line = format!("{line} --timeout 60s{json}");
                let ended = run_into(stdout(), &mut fixture.host.tool(words(&line)));
                let ended = ended.exits(code).complains(text).complains(taken);
                ended.complains("publish failed");
                fixture.host.is_clean();
            }
        }
    }
}

#[test]
fn a_vm_that_is_kept_is_named() {
    let fixture = Fixture::new();
    for (stdout, code, text) in OUTPUTS {
        for count in ["", " --count 2 --no-wait"] {
            let line = format!("restore {} --keep-on-failure{count}", fixture.artifact);
            let ended = run_into(stdout(), &mut fixture.host.tool(words(&line)));
            let ended = ended.exits(code).complains(text);
            let names = fixture.host.names("state");
            assert_eq!(
                names.len(),
                if count.is_empty() { 1 } else { 2 },
                "{names:?}"
            );
            for name in names {
                let removal = format!("'host-tool rm --force {name}' removes it");
                assert!(ended.err().contains(&removal), "{ended}");
                let shown = fixture.host.run(["inspect", &name, "--json"]).exits(0);
                let is_ready = shown.json()["status"] == "ready";
                assert_eq!(is_ready, count.is_empty(), "{shown}");
                fixture.host.run(["rm", "--force", &name]).exits(0);
            }
            fixture.host.is_clean();
        }
    }
}

#[test]
fn a_snapshot_whose_record_is_lost_is_good_and_said_to_be() {
    let fixture = Fixture::new();
    let out = fixture.host.path("snapshots/out");
    for (stdout, code, text) in OUTPUTS {
        for stop in ["", " --stop"] {
            let restore = format!("restore {} --name vm", fixture.artifact);
            fixture.host.run(words(&restore)).exits(0);
            let line = format!("snapshot --name vm --out {}{stop}", out.display());
            let ended = run_into(stdout(), &mut fixture.host.tool(words(&line)));
            let ended = ended.exits(code).complains(text);
            ended.complains(&format!("the artifact {} is good", out.display()));
            let mut verify = fixture.host.tool(["snapshots", "verify"]);
            tests::process::run(verify.arg(&out)).exits(0);
            let probed = fixture.host.run(["probe", "--name", "vm"]);
            assert_eq!(probed.code() == 0, stop.is_empty(), "{probed}");
            fixture.host.run(["rm", "--force", "vm"]).exits(0);
            std::fs::remove_dir_all(&out).unwrap();
            fixture.host.is_clean();
        }
    }
}
