//! What takes a virtual machine: boot, restore, exec over vsock, clones. Run in `scripts/lab.sh`.
//!
//! Beside the agent's image there is one with the echo guest, saved and loaded by the same VMM with
//! the same kernel and memory: the floor. What the image holds besides is in `bench.sh`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use shared::limits::PORT_DEFAULT;
use tempfile::TempDir;
use tests::process::{Finished, finish, run};
use tests::program;

use crate::catalogue::Unit;
use crate::exec::{fresh_connection, read_to_end, timed};
use crate::peers::GuestAgentOfQemu;
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::stats::count;
use crate::vmm::{Image, Kind, MEMORY_MIB, Machine};
use crate::wire::Endpoint;
use crate::{Failure, Options, procfs};

/// How long a command may take that starts virtual machines.
const TIMEOUT: &str = "120s";

/// Where the others listen in the guest.
const SOCAT_PORT: u32 = 7000;
const QEMU_GA_PORT: u32 = 7001;

/// The no-op of the image.
const TRUE: &str = "/bin/true";

/// How many clones are restored at once.
const CLONES: [usize; 3] = [1, 2, 4];

pub(crate) fn measure(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let lab = std::env::var("LAB").map_err(|_| "not in the lab; use scripts/bench.sh lab")?;
    results.facts.insert("lab".to_owned(), lab);
    let run = options.run().to_owned();
    results.facts.insert("lab run".to_owned(), run);
    crate::facts::note_kernel("lab kernel", results);
    for kind in Kind::ALL {
        if !kind.is_here() {
            results.skip(&format!("lab/{}", kind.as_str()), "it is not installed");
            continue;
        }
        let tool = Tool::new(kind)?;
        // One VMM that cannot be measured costs nobody else.
        if let Err(failure) = tool.measure(options, results) {
            results.skip(&format!("lab/{}", kind.as_str()), failure);
        }
    }
    Ok(())
}

/// A path that `bench.sh` has set.
fn given(name: &str) -> Result<PathBuf, Failure> {
    let value = std::env::var_os(name).ok_or_else(|| format!("{name} is not set"))?;
    Ok(value.into())
}

/// host-tool with a state directory of its own.
struct Tool {
    kind: Kind,
    folder: TempDir,
}

impl Drop for Tool {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            if entry.path().join("state.json").exists() {
                let mut command = self.command("rm");
                let _ = command.arg(entry.file_name()).arg("--force").output();
            }
        }
    }
}

impl Tool {
    fn new(kind: Kind) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        Ok(Self { kind, folder })
    }

    fn command(&self, word: &str) -> Command {
        let mut command = Command::new(program("host-tool"));
        command.arg(word);
        command.env("HOST_TOOL_STATE_DIR", self.folder.path());
        command
    }

    fn measure(&self, options: &Options, results: &mut Results) -> Result<(), Failure> {
        let rounds = if options.is_quick { 2 } else { 15 };
        let image = Image {
            kernel: given("TEST_BENCH_KERNEL")?,
            initrd: given("TEST_BENCH_ECHO_INITRD")?,
        };
        self.boots(rounds.min(4), &image, results)?;
        self.boot("origin")?;
        self.execs(options, results)?;
        let artifact = self.folder.path().join("artifact.d");
        let mut snapshot = self.command("snapshot");
        snapshot.args(["--stop", "--timeout", TIMEOUT, "--name", "origin", "--out"]);
        ended_well(run(snapshot.arg(&artifact)))?;
        self.end("origin")?;
        self.restores(rounds, &artifact, &image, results)?;
        for clones in CLONES {
            let repeats = if options.is_quick { 1 } else { 5 };
            let times: Vec<f64> = (0..repeats)
                .map(|_| self.clones(&artifact, clones))
                .collect::<Result<_, _>>()?;
            let x = Some(count(clones));
            results.add(&self.case("clones"), "agent", x, Unit::Milliseconds, &times);
        }
        Ok(())
    }

    fn case(&self, name: &str) -> String {
        format!("lab/{name}/{}", self.kind.as_str())
    }

    fn boot(&self, name: &str) -> Result<Value, Failure> {
        let mut command = self.command("boot");
        command.args(["--json", "--vmm", self.kind.as_str(), "--name", name]);
        command.args(["--mem", &format!("{MEMORY_MIB}M"), "--timeout", TIMEOUT]);
        command.arg("--kernel").arg(given("TEST_BENCH_KERNEL")?);
        command.arg("--initrd").arg(given("TEST_BENCH_INITRD")?);
        ended_well(run(&mut command)).map(|ended| ended.json())
    }

    fn end(&self, name: &str) -> Result<(), Failure> {
        ended_well(run(self.command("rm").args([name, "--force"]))).map(drop)
    }

    fn boots(&self, rounds: usize, image: &Image, results: &mut Results) -> Result<(), Failure> {
        let subjects = vec![
            Subject::new("agent", || {
                let started_at = Instant::now();
                self.boot("booted")?;
                let took = ms_since(started_at);
                self.end("booted")?;
                Ok(vec![took])
            }),
            Subject::new("echo", || {
                let started_at = Instant::now();
                let machine = Machine::boot(self.kind, image)?;
                machine.echo()?;
                Ok(vec![ms_since(started_at)])
            }),
        ];
        let outcomes = interleave(rounds, subjects);
        results.add_all(&self.case("boot"), None, Unit::Milliseconds, outcomes);
        Ok(())
    }

    fn restore_command(&self, artifact: &Path, name: &str) -> Command {
        let mut command = self.command("restore");
        command.args([
            "--wait-ready",
            "--json",
            "--timeout",
            TIMEOUT,
            "--name",
            name,
        ]);
        command.arg(artifact);
        command
    }

    fn restores(
        &self,
        rounds: usize,
        artifact: &Path,
        image: &Image,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let echo = Machine::boot(self.kind, image)?;
        echo.echo()?;
        let saved = echo.save()?;
        let ours = Subject::new("agent", || {
            let started_at = Instant::now();
            let ended = ended_well(run(&mut self.restore_command(artifact, "clone")))?;
            let restore_ms = ms_since(started_at);
            let record = ended.json();
            let pid = record["vmm"]["pid"].as_u64().ok_or("no pid of the VMM")?;
            let memory_kib = procfs::memory_kib(u32::try_from(pid)?)?.0;
            self.end("clone")?;
            Ok(vec![Restored {
                ready_ms: phase_ms(&record, "rebind") + phase_ms(&record, "probe"),
                restore_ms,
                memory_kib,
                record,
            }])
        });
        let floor = Subject::new("echo", || {
            let started_at = Instant::now();
            let machine = Machine::load(self.kind, &saved)?;
            let loaded_at = Instant::now();
            machine.echo()?;
            Ok(vec![Restored {
                ready_ms: ms_since(loaded_at),
                restore_ms: ms_since(started_at),
                memory_kib: machine.memory_kib()?,
                record: Value::Null,
            }])
        });
        for (subject, outcome) in interleave(rounds, vec![ours, floor]) {
            let all = outcome?;
            let mut add = |case: &str, unit, figure: fn(&Restored) -> f64| {
                let samples: Vec<f64> = all.iter().map(figure).collect();
                results.add(&self.case(case), subject, None, unit, &samples);
            };
            add("ready", Unit::Milliseconds, |it| it.ready_ms);
            add("restore", Unit::Milliseconds, |it| it.restore_ms);
            add("memory", Unit::Kibibytes, |it| it.memory_kib);
            self.phases(&all, results);
        }
        Ok(())
    }

    /// The parts of a restore, by host-tool's record.
    fn phases(&self, all: &[Restored], results: &mut Results) {
        let Some(record) = all.first().map(|it| &it.record) else {
            return;
        };
        for name in record["phases_us"].as_object().into_iter().flatten() {
            let samples: Vec<f64> = all.iter().map(|it| phase_ms(&it.record, name.0)).collect();
            let case = self.case("phases");
            results.add(&case, name.0, None, Unit::Milliseconds, &samples);
        }
        let steps = record["guest"]["steps"].as_array();
        for (index, step) in steps.into_iter().flatten().enumerate() {
            let us = |it: &Restored| it.record["guest"]["steps"][index]["us"].as_f64();
            let samples: Vec<f64> = all.iter().filter_map(us).collect();
            let name = step["name"].as_str().unwrap_or_default();
            let case = self.case("steps");
            results.add(&case, name, None, Unit::Microseconds, &samples);
        }
        let us = |it: &Restored| it.record["guest"]["exec_us"].as_f64();
        let samples: Vec<f64> = all.iter().filter_map(us).collect();
        let case = self.case("steps");
        results.add(&case, "exec (probe)", None, Unit::Microseconds, &samples);
    }

    /// From the start of the first command to the last READY.
    fn clones(&self, artifact: &Path, clones: usize) -> Result<f64, Failure> {
        let name = |index: usize| format!("clone-{index}");
        let started_at = Instant::now();
        let running: Vec<Child> = (0..clones)
            .map(|index| {
                let mut command = self.restore_command(artifact, &name(index));
                let piped = Stdio::piped;
                command.stdin(piped()).stdout(piped()).stderr(piped());
                command.spawn()
            })
            .collect::<Result<_, _>>()?;
        for child in running {
            ended_well(finish(child, Vec::new(), "restore", tests::DEADLINE * 3))?;
        }
        let took = ms_since(started_at);
        for index in 0..clones {
            self.end(&name(index))?;
        }
        Ok(took)
    }

    /// The others run in the same guest, as commands that a client holds.
    fn execs(&self, options: &Options, results: &mut Results) -> Result<(), Failure> {
        let agent = self.endpoint("origin")?;
        let (socat, qemu_ga) = (agent.with_port(SOCAT_PORT), agent.with_port(QEMU_GA_PORT));
        let listen = format!("VSOCK-LISTEN:{SOCAT_PORT},fork");
        let exec = format!("EXEC:{TRUE}");
        let words = ["socat", "-t0", "-b65536", &listen, &exec];
        let held_socat = self.hold(&words, || read_to_end(&socat));
        let path = format!("4294967295:{QEMU_GA_PORT}");
        let words = ["qemu-ga", "-m", "vsock-listen", "-p", &path, "-t", "/run"];
        let held_qemu_ga = self.hold(&words, || {
            let client = GuestAgentOfQemu::connect(&qemu_ga)?;
            client.exec(TRUE)
        });
        let client = held_qemu_ga.and_then(|held| {
            let client = GuestAgentOfQemu::connect(&qemu_ga)?;
            Ok((held, client))
        });
        let mut subjects = vec![Subject::new("agent", || {
            Ok(vec![timed(|| fresh_connection(&agent, TRUE))?])
        })];
        match &held_socat {
            Ok(_) => subjects.push(Subject::new("socat", || {
                Ok(vec![timed(|| read_to_end(&socat))?])
            })),
            Err(failure) => results.skip(&format!("{}/socat", self.case("exec")), failure),
        }
        match &client {
            Ok((_, client)) => subjects.push(Subject::new("qemu_ga", || {
                Ok(vec![timed(|| client.exec(TRUE))?])
            })),
            Err(failure) => results.skip(&format!("{}/qemu_ga", self.case("exec")), failure),
        }
        let rounds = if options.is_quick { 10 } else { 100 };
        let outcomes = interleave(rounds, subjects);
        results.add_all(&self.case("exec"), None, Unit::Microseconds, outcomes);
        Ok(())
    }

    /// Runs a server in the guest until this is dropped, once `is_there` has succeeded.
    fn hold(
        &self,
        words: &[&str],
        is_there: impl Fn() -> Result<(), Failure>,
    ) -> Result<Held, Failure> {
        let mut command = self.command("exec");
        command.args(["--name", "origin", "--"]).args(words);
        let null = Stdio::null;
        let child = command
            .stdin(null())
            .stdout(null())
            .stderr(null())
            .spawn()?;
        let mut held = Held(child);
        loop {
            match is_there() {
                Ok(()) => return Ok(held),
                Err(failure) if held.0.try_wait()?.is_some() => {
                    return Err(format!("{} ended: {failure}", words[0]).into());
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Where the agent of a machine listens.
    fn endpoint(&self, name: &str) -> Result<Endpoint, Failure> {
        let folder = self.folder.path().join(name);
        Ok(match self.kind {
            Kind::Firecracker => Endpoint::Hybrid(folder.join("vsock.sock"), PORT_DEFAULT),
            Kind::Qemu => {
                let state = std::fs::read_to_string(folder.join("state.json"))?;
                let state: Value = serde_json::from_str(&state)?;
                let cid = state["machine"]["guest_cid"].as_u64();
                Endpoint::Vsock(u32::try_from(cid.ok_or("no CID")?)?, PORT_DEFAULT)
            }
        })
    }
}

/// A client that holds a command, killed when dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One restore.
struct Restored {
    ready_ms: f64,
    restore_ms: f64,
    memory_kib: f64,
    record: Value,
}

fn phase_ms(record: &Value, name: &str) -> f64 {
    record["phases_us"][name].as_f64().unwrap_or(0.0) / 1e3
}

fn ms_since(started_at: Instant) -> f64 {
    started_at.elapsed().as_secs_f64() * 1e3
}

fn ended_well(ended: Finished) -> Result<Finished, Failure> {
    if ended.code() == 0 {
        return Ok(ended);
    }
    Err(ended.to_string().into())
}
