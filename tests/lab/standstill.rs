//! What a machine does whose case has failed: whether its processor moves, and how much its threads
//! run.
//!
//! A guest that does not answer may be defective, which is our fault, or its processor may stand
//! still under an emulator, which is not. Its console does not tell them apart. QEMU's monitor
//! shows where its processor is, and the kernel how much its threads have run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::json;

use crate::vmms::Qmp;

const LOOKS: usize = 20;

/// Where the processor of the QEMU behind this socket was, and how often.
///
/// An idle guest stays at one address as well, but shows `HLT=1`.
pub(crate) fn processor(socket: &Path) -> io::Result<String> {
    let mut qmp = Qmp::connect(socket)?;
    let mut ask = |line: &str| -> io::Result<String> {
        let answer = qmp.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    };
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..LOOKS {
        let registers = ask("info registers")?;
        let place = registers.lines().find(|line| line.starts_with("RIP="));
        *places
            .entry(place.unwrap_or("no RIP").to_owned())
            .or_default() += 1;
    }
    let mut text = String::new();
    for (place, count) in places {
        text.push_str(&format!("{count} of {LOOKS} times at {place}\n"));
    }
    text.push_str(&ask("info registers")?);
    text.push_str(&ask("info lapic")?);
    Ok(text)
}

/// The threads of a process: name, state, and clock ticks in user and kernel mode.
pub(crate) fn threads(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        // proc_pid_stat(5): state is field 3, utime and stime are 14 and 15.
        Some(format!(
            "{name} {} {} {}",
            fields.first()?,
            fields.get(11)?,
            fields.get(12)?
        ))
    });
    threads.collect::<Vec<_>>().join("; ")
}
