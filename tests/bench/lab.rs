//! What needs a virtual machine: boot, restore, exec over vsock, clones. Runs in `scripts/lab.sh`.
//!
//! The floor is an image with the echo guest, saved and loaded by the same VMM with the same kernel
//! and memory. `bench.sh` makes the images.
//!
//! Each piece is measured separately; see [`ledger`].

mod guest;
mod ledger;
mod restores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use shared::limits::PORT_DEFAULT;
use tempfile::TempDir;
use tests::process::{Finished, run};
use tests::program;

use self::ledger::Ledger;
use crate::catalogue::Unit;
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::vmm::{Image, Kind, MEMORY_MIB, Machine};
use crate::wire::Endpoint;
use crate::{Failure, Options};

/// Limit of a host-tool command that starts virtual machines.
const TIMEOUT: &str = "120s";

/// The VM that runs commands and is saved.
const ORIGIN: &str = "origin";

/// Measures with the VMM `only`, or with all.
pub(crate) fn measure(
    options: &Options,
    only: Option<&str>,
    results: &mut Results,
    out: &Path,
) -> Result<(), Failure> {
    let lab = std::env::var("LAB").map_err(|_| "not in the lab; use scripts/bench.sh lab")?;
    let mut ledger = Ledger::open(results, out)?;
    let facts = &mut ledger.results.facts;
    facts.insert("lab".to_owned(), lab);
    facts.insert("lab run".to_owned(), options.run().to_owned());
    let cores = std::thread::available_parallelism()?;
    facts.insert("lab processors".to_owned(), cores.to_string());
    if let Ok(emulator) = std::env::var("LAB_EMULATOR") {
        facts.insert("lab emulator".to_owned(), emulator);
    }
    crate::facts::note_kernel("lab kernel", ledger.results);
    crate::facts::note_programs(ledger.results);
    ledger.measure("lab/image", images)?;
    for kind in Kind::ALL {
        if only.is_some_and(|only| only != kind.as_str()) {
            continue;
        }
        if !kind.is_here() {
            let name = format!("lab/{}", kind.as_str());
            ledger.results.skip(&name, "it is not installed");
            continue;
        }
        Tool::new(kind)?.measure(options, &mut ledger)?;
    }
    ledger.results.write(out)
}

/// Sizes of the image with the agent as its only program, and of the floor.
fn images(results: &mut Results) -> Result<(), Failure> {
    for (subject, variable) in [
        ("agent", "TEST_BENCH_ALONE_INITRD"),
        ("echo", "TEST_BENCH_ECHO_INITRD"),
    ] {
        let kib = fs::metadata(given(variable)?)?.len().div_ceil(1024);
        let kib = f64::from(u32::try_from(kib)?);
        results.add("lab/image", subject, None, Unit::Kibibytes, &[kib]);
    }
    Ok(())
}

/// A path that `bench.sh` has set.
fn given(name: &str) -> Result<PathBuf, Failure> {
    let value = std::env::var_os(name).ok_or_else(|| format!("{name} is not set"))?;
    Ok(value.into())
}

/// host-tool with its own state directory.
struct Tool {
    kind: Kind,
    folder: TempDir,
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Tool {
    fn new(kind: Kind) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        Ok(Self { kind, folder })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program("host-tool"));
        command.arg(name);
        command.env("HOST_TOOL_STATE_DIR", self.folder.path());
        command
    }

    /// Ends every VM in the state directory.
    fn clear(&self) {
        for entry in fs::read_dir(self.folder.path()).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            if entry.path().join("state.json").exists() {
                let mut command = self.command("rm");
                let _ = command.arg(entry.file_name()).arg("--force").output();
            }
        }
    }

    fn measure(&self, options: &Options, ledger: &mut Ledger<'_>) -> Result<(), Failure> {
        let image = Image {
            kernel: given("TEST_BENCH_KERNEL")?,
            initrd: given("TEST_BENCH_ECHO_INITRD")?,
        };
        self.piece(ledger, "boot", |results| {
            self.boots(options.count(4), &image, results)
        })?;
        let artifact = self.folder.path().join("artifact.d");
        let made = ledger.make(&self.case("snapshot"), |ledger| {
            self.boot(ORIGIN)?;
            self.guest(options, ledger)?;
            let mut snapshot = self.command("snapshot");
            snapshot.args(["--stop", "--timeout", TIMEOUT, "--name", ORIGIN, "--out"]);
            ended_well(run(snapshot.arg(&artifact)))
        });
        self.clear();
        if made.is_none() {
            return Ok(());
        }
        let saved = ledger.make(&self.case("echo"), |_| {
            let echo = Machine::boot(self.kind, &image)?;
            echo.echo()?;
            echo.save()
        });
        self.restores(options, &artifact, saved.as_ref(), ledger)
    }

    /// Measures a piece about this VMM. VMs that a failed piece left are ended.
    fn piece(
        &self,
        ledger: &mut Ledger<'_>,
        name: &str,
        piece: impl FnOnce(&mut Results) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if !ledger.measure(&self.case(name), piece)? {
            self.clear();
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
        command.args(["--json", "--timeout", TIMEOUT, "--name", name]);
        command.arg(artifact);
        command
    }

    /// The `state.json` of a VM.
    fn state(&self, name: &str) -> Result<Value, Failure> {
        let path = self.folder.path().join(name).join("state.json");
        Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
    }

    /// Where the agent of a VM listens.
    fn endpoint(&self, name: &str) -> Result<Endpoint, Failure> {
        Ok(match self.kind {
            Kind::Firecracker => {
                let folder = self.folder.path().join(name);
                Endpoint::Hybrid(folder.join("vsock.sock"), PORT_DEFAULT)
            }
            Kind::Qemu => {
                let cid = self.state(name)?["machine"]["guest_cid"].as_u64();
                Endpoint::Vsock(u32::try_from(cid.ok_or("no CID")?)?, PORT_DEFAULT)
            }
        })
    }
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
