//! What the kernel counts for a process.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::Failure;

/// Index of the minor faults in `/proc/PID/stat`, counted from the state.
const MINOR_FAULTS_INDEX: usize = 7;

/// A number from `/proc/PID/FILE`: the first one behind `name`.
fn field(pid: u32, file: &str, name: &str) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    let number = value.and_then(|value| value.parse().ok());
    number.ok_or_else(|| format!("no {name} in /proc/{pid}/{file}").into())
}

/// Resident and proportional memory in KiB. The latter divides a page among the processes that map
/// it.
pub(crate) fn memory_kib(pid: u32) -> Result<(f64, f64), Failure> {
    Ok((
        field(pid, "smaps_rollup", "Rss:")?,
        field(pid, "smaps_rollup", "Pss:")?,
    ))
}

/// Voluntary and involuntary context switches.
pub(crate) fn context_switches(pid: u32) -> Result<f64, Failure> {
    let voluntary = field(pid, "status", "voluntary_ctxt_switches:")?;
    Ok(voluntary + field(pid, "status", "nonvoluntary_ctxt_switches:")?)
}

/// CPU time of the process's first thread in ms, exact to the nanosecond; `stat` counts in ticks.
pub(crate) fn cpu_ms(pid: u32) -> Result<f64, Failure> {
    Ok(field(pid, "schedstat", "")? / 1e6)
}

/// CPU time of all threads that the process has now, ms.
pub(crate) fn cpu_of_all_ms(pid: u32) -> Result<f64, Failure> {
    let mut all = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name();
        let task = task.to_str().ok_or("a task without a number")?;
        all += field(pid, &format!("task/{task}/schedstat"), "")? / 1e6;
    }
    Ok(all)
}

/// CPU time of this thread or of all children that have ended, ms.
pub(crate) fn cpu_used_ms(who: UsageWho) -> Result<f64, Failure> {
    let usage = getrusage(who)?;
    let us = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(f64::from(u32::try_from(us / 10)?) / 100.0)
}

/// Page faults without I/O since the process began.
pub(crate) fn minor_faults(pid: u32) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before the state can have any character, also a parenthesis.
    let (_, rest) = text.rsplit_once(')').ok_or("no /proc/PID/stat")?;
    let count = rest.split_whitespace().nth(MINOR_FAULTS_INDEX);
    Ok(count.ok_or("no page faults in /proc/PID/stat")?.parse()?)
}
