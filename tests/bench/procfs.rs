//! What the kernel counts for a process.

use std::fs;

use crate::Failure;

/// Fields of `/proc/PID/stat` in front of the one that counts minor faults, from the state on.
const MINOR_FAULTS_INDEX: usize = 7;

/// A number from `/proc/PID/FILE`: the first word behind `name`.
fn field(pid: u32, file: &str, name: &str) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    let number = word.and_then(|word| word.parse().ok());
    number.ok_or_else(|| format!("no {name} in /proc/{pid}/{file}").into())
}

/// Resident memory in KiB: all of it, and the share that is this process's alone where pages are
/// divided among those that map them.
pub(crate) fn memory_kib(pid: u32) -> Result<(f64, f64), Failure> {
    Ok((
        field(pid, "smaps_rollup", "Rss:")?,
        field(pid, "smaps_rollup", "Pss:")?,
    ))
}

/// How often the process was put on a processor again, of its own will or not.
pub(crate) fn context_switches(pid: u32) -> Result<f64, Failure> {
    let voluntary = field(pid, "status", "voluntary_ctxt_switches:")?;
    Ok(voluntary + field(pid, "status", "nonvoluntary_ctxt_switches:")?)
}

/// CPU time of the process's first thread, ms. Exact to the nanosecond, where `stat` has ticks.
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

/// Page faults since the process began that needed no I/O.
pub(crate) fn minor_faults(pid: u32) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in front may hold anything, a parenthesis too.
    let (_, rest) = text.rsplit_once(')').ok_or("no /proc/PID/stat")?;
    let word = rest.split_whitespace().nth(MINOR_FAULTS_INDEX);
    Ok(word.ok_or("no page faults in /proc/PID/stat")?.parse()?)
}
