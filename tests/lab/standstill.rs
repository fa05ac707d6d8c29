//! What a machine does when its case has failed: whether its processor moves, and whether its guest
//! can be reached.
//!
//! A guest that does not answer may be deaf, which is our defect, or may stand still under an
//! emulator, which is not. Its console tells neither. QEMU's monitor tells where its processor is,
//! and the kernel how much its threads have run meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How often the processor is looked at.
const LOOKS: usize = 20;

/// How long an answer of the monitor may take. It is given by a thread that the guest does not
/// hold up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A QEMU's monitor, by QMP.
struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut monitor = Self {
            reader: BufReader::new(stream),
        };
        monitor.ask(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// What a line of the human monitor gives.
    fn command(&mut self, line: &str) -> io::Result<String> {
        let arguments = json!({ "command-line": line });
        let answer = self.ask(&json!({
            "execute": "human-monitor-command",
            "arguments": arguments,
        }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn ask(&mut self, request: &Value) -> io::Result<Value> {
        self.reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // The greeting and events come in between.
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }
}

/// Where the processor of the QEMU behind this socket was, and how often.
pub(crate) fn processor(socket: &Path) -> io::Result<String> {
    let mut monitor = Monitor::connect(socket)?;
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..LOOKS {
        let registers = monitor.command("info registers")?;
        let place = registers.lines().find(|line| line.starts_with("RIP="));
        *places
            .entry(place.unwrap_or("no RIP").to_owned())
            .or_default() += 1;
    }
    let mut text = String::new();
    for (place, count) in places {
        text.push_str(&format!("{count} of {LOOKS} times at {place}\n"));
    }
    text.push_str(&monitor.command("info registers")?);
    text.push_str(&monitor.command("info lapic")?);
    Ok(text)
}

/// The threads of a process: name, state, and clock ticks in user and in kernel mode.
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
