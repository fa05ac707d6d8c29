//! Footprint: what the agent and its alternatives cost while idle, and after many commands.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shared::message::Message;
use tests::program;

use crate::catalogue::Unit;
use crate::exec::{NOOP, at_once, fresh_connection, read_to_end};
use crate::peers::{self, GuestAgentOfQemu, Server, sbin};
use crate::results::Results;
use crate::wire::{Endpoint, Wire};
use crate::{Failure, Options, procfs};

/// How often each server is started.
const STARTS: usize = 20;

pub(crate) fn measure(options: &Options, results: &mut Results) -> Result<(), Failure> {
    sizes(results)?;
    if let Some(crates) = std::env::var("BENCH_CRATES")
        .ok()
        .and_then(|it| it.parse().ok())
    {
        results.add("footprint/crates", "agent", None, Unit::Count, &[crates]);
    }
    starts(options, results);
    at_rest(options, results)
}

fn sizes(results: &mut Results) -> Result<(), Failure> {
    let mut files = vec![
        ("agent", program("guest-agent")),
        ("dropbear", sbin("dropbear")),
        ("qemu_ga", sbin("qemu-ga")),
        ("socat", PathBuf::from("/usr/bin/socat")),
        ("busybox", PathBuf::from("/bin/busybox")),
    ];
    // An empty program, built like the agent: what Rust and libc alone cost.
    if let Some(path) = std::env::var_os("BENCH_EMPTY") {
        files.push(("empty", path.into()));
    }
    for (subject, path) in files {
        if !path.exists() {
            results.skip(&format!("footprint/file/{subject}"), "it is not installed");
            continue;
        }
        let len = |path: &Path| -> Result<f64, Failure> {
            let blocks = fs::metadata(path)?.len().div_ceil(16);
            Ok(f64::from(u32::try_from(blocks)?) / 64.0)
        };
        let own = len(&path)?;
        results.add("footprint/file", subject, None, Unit::Kibibytes, &[own]);
        let mut all = own;
        for library in libraries(&path)? {
            all += len(&library)?;
        }
        let case = "footprint/file_with_libraries";
        results.add(case, subject, None, Unit::Kibibytes, &[all]);
    }
    Ok(())
}

/// The shared libraries and the dynamic linker of a program.
fn libraries(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let output = Command::new("ldd").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_path = |word: &&str| word.starts_with('/');
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(is_path));
    Ok(paths.map(PathBuf::from).collect())
}

/// The servers that are compared, each started by itself.
type Start = fn() -> Result<Server, Failure>;

const SERVERS: [(&str, Start); 4] = [
    ("agent", peers::agent),
    ("socat", || peers::socat(&[NOOP])),
    ("qemu_ga", || {
        let server = GuestAgentOfQemu::start()?.server;
        server.ok_or_else(|| "it was not started here".into())
    }),
    ("dropbear", peers::dropbear_daemon),
];

fn starts(options: &Options, results: &mut Results) {
    let count = if options.is_quick { STARTS / 4 } else { STARTS };
    for (subject, start) in SERVERS {
        let mut times = Vec::new();
        let mut faults = Vec::new();
        for _ in 0..count {
            let figures = start()
                .and_then(|server| Ok((server.start_us, procfs::minor_faults(server.pid())?)));
            match figures {
                Ok((time, fault)) => {
                    times.push(time);
                    faults.push(fault);
                }
                Err(failure) => {
                    results.skip(&format!("footprint/start/{subject}"), failure);
                    break;
                }
            }
        }
        results.add("footprint/start", subject, None, Unit::Microseconds, &times);
        results.add(
            "footprint/start_faults",
            subject,
            None,
            Unit::Count,
            &faults,
        );
    }
}

/// Memory and wake-ups idle, and memory and descriptors after many commands.
fn at_rest(options: &Options, results: &mut Results) -> Result<(), Failure> {
    let init: (&str, Start) = ("busybox_init", peers::busybox_init);
    let mut servers = Vec::new();
    for (subject, start) in SERVERS.into_iter().chain([init]) {
        match start() {
            Ok(server) => servers.push((subject, server)),
            Err(failure) => results.skip(&format!("footprint/rss_idle/{subject}"), failure),
        }
    }
    let mut note = |case: &str, subject: &str, unit, sample: f64| {
        results.add(&format!("footprint/{case}"), subject, None, unit, &[sample]);
    };
    for (subject, server) in &servers {
        let (rss, pss) = procfs::memory_kib(server.pid())?;
        note("rss_idle", subject, Unit::Kibibytes, rss);
        note("pss_idle", subject, Unit::Kibibytes, pss);
    }
    // All are idle at once, so that one wait is enough.
    let wait = Duration::from_secs(if options.is_quick { 10 } else { 60 });
    let before: Vec<_> = servers
        .iter()
        .map(|(_, server)| procfs::context_switches(server.pid()))
        .collect::<Result<_, _>>()?;
    pass(wait)?;
    for ((subject, server), before) in servers.iter().zip(before) {
        let switches = procfs::context_switches(server.pid())? - before;
        let per_minute = switches * 60.0 / wait.as_secs_f64();
        note("wake_ups", subject, Unit::Count, per_minute);
    }
    let count = if options.is_quick { 1_000 } else { 10_000 };
    for (subject, server) in &servers {
        let endpoint = server.endpoint();
        match *subject {
            "agent" => {
                let open = descriptors(&endpoint)?;
                note("descriptors_idle", subject, Unit::Count, open);
                at_once(10, count / 10, || fresh_connection(&endpoint, NOOP))?;
            }
            "qemu_ga" => {
                let client = GuestAgentOfQemu::connect(&endpoint)?;
                at_once(1, count / 10, || client.exec(NOOP))?;
            }
            "socat" => drop(at_once(1, count / 10, || read_to_end(&endpoint))?),
            _ => continue,
        }
        let (rss, pss) = procfs::memory_kib(server.pid())?;
        note("rss_after", subject, Unit::Kibibytes, rss);
        note("pss_after", subject, Unit::Kibibytes, pss);
        if *subject == "agent" {
            let open = descriptors(&endpoint)?;
            note("descriptors_after", subject, Unit::Count, open);
        }
    }
    Ok(())
}

/// The agent's own count of open descriptors, asked for until it has closed all other connections.
fn descriptors(endpoint: &Endpoint) -> Result<f64, Failure> {
    let mut wire = Wire::open(endpoint, &[])?;
    let started_at = Instant::now();
    while started_at.elapsed() < tests::DEADLINE {
        match wire.ask(&Message::InfoRequest)? {
            Message::Info(info) if info.connections == 1 => return Ok(f64::from(info.fds)),
            Message::Info(_) => {}
            other => return Err(format!("no INFO but {other:?}").into()),
        }
    }
    Err("connections stay open".into())
}

/// Waits without doing anything: while an agent has to be idle, or between two polls of something
/// without an event.
pub(crate) fn pass(limit: Duration) -> Result<(), Failure> {
    let (reader, _writer) = nix::unistd::pipe()?;
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).map_err(|_| "too long a wait")?;
    poll(&mut fds, limit)?;
    Ok(())
}
