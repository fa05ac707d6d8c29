//! Measures the throughput of a command's streams, with the client that `exec` uses.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;
use shared::message::{ByteString, Exec};

use super::Report;
use crate::commands::load::latency::Summary;
use crate::commands::load::{Streams, open_sink, run_once};
use crate::commands::target::Target;
use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::os::random;
use crate::values::MIB;

/// How many times each stream is transferred.
const RUNS: usize = 5;

/// Most bytes read of what `wc -c` prints.
const COUNT_LEN_MAX: u64 = 64;

/// Transfers `size_mib` MiB in each direction; 0 skips both.
pub(super) fn measure(target: &Target, size_mib: u32, deadline: Instant, report: &mut Report) {
    if size_mib == 0 {
        return;
    }
    let flow = Flow {
        target,
        size_mib,
        len: u64::from(size_mib) * MIB,
        deadline,
    };
    flow.report("stdout", Flow::stdout, report);
    flow.report("stdin", Flow::stdin, report);
}

/// A transfer of `len` zero bytes to or from a guest.
#[derive(Debug, Clone, Copy)]
struct Flow<'a> {
    target: &'a Target,
    size_mib: u32,
    len: u64,
    deadline: Instant,
}

impl Flow<'_> {
    fn report(
        &self,
        name: &str,
        once: impl Fn(&Self) -> Result<Duration, Failure>,
        report: &mut Report,
    ) {
        let took: Result<Vec<Duration>, Failure> = (0..RUNS).map(|_| once(self)).collect();
        let summary = match took.map(Summary::of) {
            Ok(Some(summary)) => summary,
            Ok(None) => return,
            Err(failure) => return report.fail(name, failure),
        };
        let mib_per_second = f64::from(self.size_mib) / summary.p50.as_secs_f64();
        let what = format!("{name}, {} MiB", self.size_mib);
        report.row(&what, RUNS, &summary, format!("{mib_per_second:.1} MiB/s"));
        report.set(
            name,
            json!({
                "bytes": self.len,
                "runs": RUNS,
                "latency_us": summary.to_value(),
                // Repeated runs agree to one decimal at best.
                "mib_per_second": (mib_per_second * 10.0).round() / 10.0,
            }),
        );
    }

    /// The duration of a command that writes zeros.
    fn stdout(&self) -> Result<Duration, Failure> {
        let len = self.len.to_string();
        let sink = open_sink()?;
        let streams = Streams {
            stdin: None,
            stdout: sink.as_fd(),
            stderr: sink.as_fd(),
        };
        let started_at = Instant::now();
        let exited = self.run(&["head", "-c", &len, "/dev/zero"], streams)?;
        let took = started_at.elapsed();
        self.check(exited.stdout_end)?;
        Ok(took)
    }

    /// The duration of a command that reads zeros and counts them.
    fn stdin(&self) -> Result<Duration, Failure> {
        let zeros = memory_file("zeros")?;
        zeros
            .set_len(self.len)
            .or_fail(Exit::Internal, || "cannot make standard input".to_owned())?;
        let mut answer = memory_file("count")?;
        let sink = open_sink()?;
        let streams = Streams {
            stdin: Some(zeros.as_fd()),
            stdout: answer.as_fd(),
            stderr: sink.as_fd(),
        };
        let started_at = Instant::now();
        self.run(&["wc", "-c"], streams)?;
        let took = started_at.elapsed();
        let mut text = String::new();
        answer
            .rewind()
            .and_then(|()| answer.take(COUNT_LEN_MAX).read_to_string(&mut text))
            .or_fail(Exit::Guest, || "'wc -c' printed no number".to_owned())?;
        self.check(text.trim().parse().unwrap_or(0))?;
        Ok(took)
    }

    fn run(&self, argv: &[&str], streams: Streams<'_>) -> Result<shared::message::Exited, Failure> {
        let argv = argv
            .iter()
            .filter_map(|argument| ByteString::new(*argument));
        let id = random::exec_id();
        let id = id.or_fail(Exit::Internal, || "cannot draw a request id".to_owned())?;
        let exec = Exec::new(id, argv.collect());
        run_once(self.target, exec, streams, self.deadline)
            .map_err(|failed| Failure::new(failed.exit, failed.text))
    }

    /// Fails unless all bytes arrived, and no more.
    fn check(&self, len: u64) -> Result<(), Failure> {
        if len == self.len {
            return Ok(());
        }
        let text = format!("{len} of {} bytes arrived", self.len);
        Err(Failure::new(Exit::Guest, text))
    }
}

/// An empty file in memory.
fn memory_file(name: &str) -> Result<File, Failure> {
    let made = memfd_create(name, MFdFlags::MFD_CLOEXEC);
    let made = made.or_fail(Exit::Internal, || "cannot make a file in memory".to_owned())?;
    Ok(made.into())
}
