//! Restores: their time until READY by phase, beside the floor; the VMM's memory before and after;
//! and many clones at once.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use ::tests::process::{Finished, finish, run};
use ::tests::program;
use nix::sys::resource::UsageWho;
use serde_json::Value;

use super::ledger::Ledger;
use super::{TIMEOUT, Tool, ended_well, ms_since};
use crate::catalogue::Unit;
use crate::results::Results;
use crate::rounds::{Subject, interleave};
use crate::stats::count;
use crate::vmm::{Machine, Saved};
use crate::{Failure, Options, procfs};

/// How many clones are restored at once, and how often.
const CLONES: [(usize, usize); 3] = [(1, 5), (4, 3), (16, 2)];

/// How many commands run at once in a clone right after READY.
const FIRST_COUNT: &str = "10";

/// The phases of a restore, in order.
const PHASES: [&str; 8] = [
    "artifact", "version", "spawn", "load", "rebind", "probe", "hooks", "publish",
];

/// Name of the clone.
const CLONE: &str = "clone";

impl Tool {
    pub(super) fn restores(
        &self,
        options: &Options,
        artifact: &Path,
        saved: Option<&Saved>,
        ledger: &mut Ledger<'_>,
    ) -> Result<(), Failure> {
        self.piece(ledger, "restore", |results| {
            self.ready(options, artifact, saved, results)
        })?;
        self.piece(ledger, "memory", |results| {
            self.memory(options, artifact, saved, results)
        })?;
        self.piece(ledger, "syscalls", |results| {
            self.system_calls(options, artifact, results)
        })?;
        for (clones, repeats) in CLONES {
            self.piece(ledger, &format!("clones-{clones}"), |results| {
                self.clones(artifact, clones, options.count(repeats), results)
            })?;
        }
        Ok(())
    }

    fn ready(
        &self,
        options: &Options,
        artifact: &Path,
        saved: Option<&Saved>,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let mut subjects = vec![Subject::new("agent", || {
            let restored = self.restore(artifact)?;
            self.end(CLONE)?;
            Ok(vec![restored])
        })];
        if let Some(saved) = saved {
            subjects.push(Subject::new("echo", || Ok(vec![self.echo(saved)?])));
        }
        for outcome in interleave(options.count(20), subjects) {
            let Some((subject, all)) = results.measured(&self.case("ready"), outcome) else {
                continue;
            };
            let mut add = |case: &str, figure: fn(&Restored) -> f64| {
                let samples: Vec<f64> = all.iter().map(figure).collect();
                let unit = Unit::Milliseconds;
                results.add(&self.case(case), subject, None, unit, &samples);
            };
            add("ready", |it| it.ready_ms);
            add("restore", |it| it.restore_ms);
            add("cpu", |it| it.cpu.iter().map(|(_, ms)| ms).sum());
            self.parts(&all, results);
        }
        Ok(())
    }

    /// Restores a clone and runs ten commands at once in it.
    fn restore(&self, artifact: &Path) -> Result<Restored, Failure> {
        let started_at = Instant::now();
        let tool_before = procfs::cpu_used_ms(UsageWho::RUSAGE_CHILDREN)?;
        let mut command = self.restore_command(artifact, CLONE);
        let record = ended_well(run(command.arg("--wait-ready")))?.json();
        let restore_ms = ms_since(started_at);
        let tool_ms = procfs::cpu_used_ms(UsageWho::RUSAGE_CHILDREN)? - tool_before;
        let state = self.state(CLONE)?;
        let cpu = vec![
            ("host_tool", tool_ms),
            (
                "supervisor",
                procfs::cpu_of_all_ms(pid(&state, "supervisor")?)?,
            ),
            ("vmm", procfs::cpu_of_all_ms(pid(&state, "process")?)?),
        ];
        let mut stress = self.command("stress");
        stress.args(["--json", "--name", CLONE, "--timeout", TIMEOUT]);
        stress.args(["--parallel", FIRST_COUNT, "--total", FIRST_COUNT]);
        let first = ended_well(run(&mut stress))?.json();
        Ok(Restored {
            ready_ms: phase_ms(&record, "rebind") + phase_ms(&record, "probe"),
            restore_ms,
            cpu,
            first_ms: first["us"].as_f64().map(|us| us / 1e3),
            record,
        })
    }

    fn echo(&self, saved: &Saved) -> Result<Restored, Failure> {
        let started_at = Instant::now();
        let machine = Machine::load(self.kind, saved)?;
        let loaded_at = Instant::now();
        machine.echo()?;
        Ok(Restored {
            ready_ms: ms_since(loaded_at),
            restore_ms: ms_since(started_at),
            cpu: vec![("vmm", procfs::cpu_of_all_ms(machine.pid())?)],
            first_ms: None,
            record: Value::Null,
        })
    }

    /// The time of a restore by phase and by step, and its CPU time by process.
    fn parts(&self, all: &[Restored], results: &mut Results) {
        let Some(first) = all.first().filter(|it| it.record.is_object()) else {
            return;
        };
        let record = &first.record;
        let mut add = |case: &str, name: &str, unit, samples: &[f64]| {
            results.add(&self.case(case), name, None, unit, samples);
        };
        for name in PHASES {
            let samples: Vec<f64> = all.iter().map(|it| phase_ms(&it.record, name)).collect();
            if record["phases_us"].get(name).is_some() {
                add("phases", name, Unit::Milliseconds, &samples);
            }
        }
        let steps = record["guest"]["steps"].as_array();
        for (index, step) in steps.into_iter().flatten().enumerate() {
            let us = |it: &Restored| it.record["guest"]["steps"][index]["us"].as_f64();
            let samples: Vec<f64> = all.iter().filter_map(us).collect();
            let name = step["name"].as_str().unwrap_or_default();
            add("steps", name, Unit::Microseconds, &samples);
        }
        let us = |it: &Restored| it.record["guest"]["exec_us"].as_f64();
        let samples: Vec<f64> = all.iter().filter_map(us).collect();
        add("steps", "exec (probe)", Unit::Microseconds, &samples);
        for (index, (name, _)) in first.cpu.iter().enumerate() {
            let samples: Vec<f64> = all.iter().map(|it| it.cpu[index].1).collect();
            add("cpu_parts", name, Unit::Milliseconds, &samples);
        }
        let samples: Vec<f64> = all.iter().filter_map(|it| it.first_ms).collect();
        add("first", "agent", Unit::Milliseconds, &samples);
    }

    /// Resident memory of the VMM when the vCPUs run, and when the guest is ready.
    fn memory(
        &self,
        options: &Options,
        artifact: &Path,
        saved: Option<&Saved>,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let mut subjects = vec![Subject::new("agent", || {
            let mut command = self.restore_command(artifact, CLONE);
            ended_well(run(command.arg("--no-wait")))?;
            let vmm = pid(&self.state(CLONE)?, "process")?;
            let loaded = procfs::memory_kib(vmm)?.0;
            let mut probe = self.command("probe");
            ended_well(run(probe.args(["--name", CLONE, "--timeout", TIMEOUT])))?;
            let ready = procfs::memory_kib(vmm)?.0;
            self.end(CLONE)?;
            Ok(vec![(loaded, ready)])
        })];
        if let Some(saved) = saved {
            subjects.push(Subject::new("echo", || {
                let machine = Machine::load(self.kind, saved)?;
                let loaded = procfs::memory_kib(machine.pid())?.0;
                machine.echo()?;
                let ready = procfs::memory_kib(machine.pid())?.0;
                Ok(vec![(loaded, ready)])
            }));
        }
        for outcome in interleave(options.count(5), subjects) {
            let Some((subject, all)) = results.measured(&self.case("memory"), outcome) else {
                continue;
            };
            let mut add = |case: &str, figure: fn(&(f64, f64)) -> f64| {
                let samples: Vec<f64> = all.iter().map(figure).collect();
                let unit = Unit::Kibibytes;
                results.add(&self.case(case), subject, None, unit, &samples);
            };
            add("memory_at_load", |it| it.0);
            add("memory", |it| it.1);
            add("memory_touched", |it| it.1 - it.0);
        }
        Ok(())
    }

    /// System calls of `host-tool restore` itself, by strace, which detaches from its children when
    /// they execute a program.
    fn system_calls(
        &self,
        options: &Options,
        artifact: &Path,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let mut all = Vec::new();
        for _ in 0..options.count(3) {
            let table = self.folder.path().join("strace.txt");
            let restore = self.restore_command(artifact, CLONE);
            let mut strace = Command::new("strace");
            strace.args(["-f", "-b", "execve", "-c", "-o"]).arg(&table);
            strace.arg(program("host-tool")).args(restore.get_args());
            strace.env("HOST_TOOL_STATE_DIR", self.folder.path());
            let ended = strace.stdin(Stdio::null()).output();
            let ended = ended.map_err(|error| format!("cannot run strace: {error}"))?;
            if !ended.status.success() {
                let text = String::from_utf8_lossy(&ended.stderr).into_owned();
                return Err(format!("under strace: {}", text.trim()).into());
            }
            let calls = total_calls(&fs::read_to_string(&table)?);
            all.push(calls.ok_or("strace has counted nothing")?);
            self.end(CLONE)?;
        }
        results.add(&self.case("syscalls"), "host_tool", None, Unit::Count, &all);
        Ok(())
    }

    /// Time from the start of the command to the last READY, and the memory of each clone then.
    fn clones(
        &self,
        artifact: &Path,
        clones: usize,
        repeats: usize,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let (mut times, mut memory, mut supervisors) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..repeats {
            let number = clones.to_string();
            let started_at = Instant::now();
            let mut command = self.restore_command(artifact, CLONE);
            command.args(["--count", &number, "--parallel", &number]);
            let record = finish_slowly(&mut command)?.json();
            times.push(ms_since(started_at));
            let names: Vec<String> = record["clones"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|clone| clone["name"].as_str().map(str::to_owned))
                .collect();
            for name in &names {
                let state = self.state(name)?;
                memory.push(procfs::memory_kib(pid(&state, "process")?)?.1);
                supervisors.push(procfs::memory_kib(pid(&state, "supervisor")?)?.1);
            }
            for name in &names {
                self.end(name)?;
            }
        }
        let x = Some(count(clones));
        results.add(&self.case("clones"), "agent", x, Unit::Milliseconds, &times);
        let case = self.case("clone_memory");
        results.add(&case, "vmm", x, Unit::Kibibytes, &memory);
        results.add(&case, "supervisor", x, Unit::Kibibytes, &supervisors);
        Ok(())
    }
}

/// Runs a command whose own limit is longer than that of [`run`].
fn finish_slowly(command: &mut Command) -> Result<Finished, Failure> {
    let piped = Stdio::piped;
    command.stdin(piped()).stdout(piped()).stderr(piped());
    let text = format!("{command:?}");
    let child = command.spawn()?;
    ended_well(finish(child, Vec::new(), &text, ::tests::DEADLINE * 3))
}

/// One restore.
struct Restored {
    ready_ms: f64,
    restore_ms: f64,
    /// CPU time on this machine until READY, by process.
    cpu: Vec<(&'static str, f64)>,
    /// Ten commands at once right after READY.
    first_ms: Option<f64>,
    record: Value,
}

fn phase_ms(record: &Value, name: &str) -> f64 {
    record["phases_us"][name].as_f64().unwrap_or(0.0) / 1e3
}

/// The pid of `name` in a VM's state.
fn pid(state: &Value, name: &str) -> Result<u32, Failure> {
    let pid = state[name]["pid"].as_u64();
    let pid = pid.ok_or_else(|| format!("no {name} in the state"))?;
    Ok(u32::try_from(pid)?)
}

/// The number of all calls in the table that `strace -c` prints.
fn total_calls(table: &str) -> Option<f64> {
    let line = table.lines().rev().find(|line| line.ends_with(" total"))?;
    // Columns: share, seconds, µs for each call, calls, errors if there are any.
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_off_the_last_line() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     60.00    0.000600         300         2           read\n\
                     100.00    0.001000           5       183        12 total\n";
        assert_eq!(total_calls(table), Some(183.0));
        assert_eq!(total_calls("strace: nothing"), None);
    }
}
