//! `host-tool doctor`: checks whether this machine can run microVMs, and says how to repair what is
//! missing.

use std::fs;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};

use crate::cli::Doctor;
use crate::error::Failure;
use crate::exit::Exit;
use crate::report::output::print;
use crate::vmdir::StateDir;
use crate::vmm::{Gate, Purpose, VmmKind, find_binary, gate, host_problem};

/// Less free disk space or memory than this is noted. A small guest and its memory file need it.
const SPACE_LOW_MIB: u64 = 1024;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    what: String,
    status: Status,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Good,
    /// Usable, with a limit or a known bug.
    Note,
    Missing,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

fn finding(what: impl Into<String>, status: Status, text: impl Into<String>) -> Finding {
    Finding {
        what: what.into(),
        status,
        text: text.into(),
    }
}

pub(crate) fn run(command: &Doctor) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let mut usable = Vec::new();
    for kind in VmmKind::ALL {
        let host = check_host(kind);
        let binary = check_binary(kind);
        let is_usable = host.status != Status::Missing
            && binary
                .iter()
                .all(|finding| finding.status != Status::Missing);
        if is_usable {
            usable.push(kind.to_string());
        }
        findings.push(host);
        findings.extend(binary);
    }
    findings.push(check_vsock());
    let state_dir = check_state_dir(command);
    let can_keep_vms = state_dir
        .iter()
        .all(|finding| finding.status != Status::Missing);
    findings.extend(state_dir);
    findings.push(check_memory());

    let can_run = can_keep_vms && !usable.is_empty();
    let event = if can_run { "ready" } else { "failed" };
    if command.json {
        let checks: Vec<Value> = findings.iter().map(to_value).collect();
        let exit = if can_run { 0 } else { 1 };
        let value = json!({ "event": event, "exit": exit, "usable": usable, "checks": checks });
        print(&value.to_string())?;
    } else {
        let line = |finding: &Finding| {
            format!(
                "{:<8} {:<22} {}",
                finding.status.as_str(),
                finding.what,
                finding.text
            )
        };
        let lines: Vec<String> = findings.iter().map(line).collect();
        print(&lines.join("\n"))?;
    }
    if can_run {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Internal,
        "no VMM can run here; the lines marked 'missing' say why",
    ))
}

fn to_value(finding: &Finding) -> Value {
    json!({ "check": finding.what, "status": finding.status.as_str(), "text": finding.text })
}

fn check_host(kind: VmmKind) -> Finding {
    let what = format!("{kind}: host");
    match host_problem(kind) {
        None => finding(
            what,
            Status::Good,
            "KVM and the devices that the VMM needs are usable",
        ),
        Some(problem) => finding(what, Status::Missing, problem.to_string()),
    }
}

fn check_binary(kind: VmmKind) -> Vec<Finding> {
    let what = format!("{kind}: program");
    let binary = match find_binary(Some(kind)) {
        Ok(binary) => binary,
        Err(error) => {
            return vec![finding(
                what,
                Status::Missing,
                Failure::new(Exit::Start, error).to_string(),
            )];
        }
    };
    let text = format!("{} {}", binary.path.display(), binary.version);
    let mut findings = vec![finding(what, Status::Good, text)];
    for (action, purpose) in [
        ("boot", Purpose::Boot),
        ("snapshot", Purpose::Snapshot),
        ("restore", Purpose::Restore),
    ] {
        let what = format!("{kind}: {action}");
        match gate(kind, &binary.version, purpose, false) {
            Gate::Allow => {}
            Gate::Warn(symptoms) => {
                findings.push(finding(what, Status::Note, symptoms.join("; ")));
            }
            Gate::Refuse { reason, remedy } => {
                findings.push(finding(
                    what,
                    Status::Missing,
                    format!("{reason}; {remedy}"),
                ));
            }
        }
    }
    findings
}

/// Only `--cid` and QEMU need the host's AF_VSOCK: Firecracker's guests are reached over a Unix
/// socket.
fn check_vsock() -> Finding {
    let what = "AF_VSOCK";
    match socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    ) {
        Ok(_) => finding(what, Status::Good, "guests with vhost-vsock can be reached"),
        Err(errno) => {
            let text = format!("{errno}; for QEMU and --cid, run 'modprobe vhost_vsock' as root");
            finding(what, Status::Note, text)
        }
    }
}

fn check_state_dir(command: &Doctor) -> Vec<Finding> {
    let what = "state directory";
    let state_dir = match StateDir::open(command.state_dir.as_deref()) {
        Ok(state_dir) => state_dir,
        Err(error) => {
            return vec![finding(
                what,
                Status::Missing,
                Failure::from(error).to_string(),
            )];
        }
    };
    let path = state_dir.path().display().to_string();
    let probe = state_dir
        .path()
        .join(format!(".doctor-{}", std::process::id()));
    let written = fs::write(&probe, "").and_then(|()| fs::remove_file(&probe));
    if let Err(error) = written {
        let text = format!("cannot write to {path}: {error}; give another one with --state-dir");
        return vec![finding(what, Status::Missing, text)];
    }
    let mut findings = vec![finding(what, Status::Good, path)];
    if let Ok(space) = statvfs(state_dir.path()) {
        let free_mib = space.blocks_available() * space.fragment_size() / (1024 * 1024);
        let status = if free_mib < SPACE_LOW_MIB {
            Status::Note
        } else {
            Status::Good
        };
        findings.push(finding(
            "state directory: space",
            status,
            format!("{free_mib} MiB free"),
        ));
    }
    findings
}

fn check_memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available_mib(&meminfo) {
        Some(mib) => {
            let status = if mib < SPACE_LOW_MIB {
                Status::Note
            } else {
                Status::Good
            };
            finding("memory", status, format!("{mib} MiB available"))
        }
        None => finding("memory", Status::Note, "/proc/meminfo has no MemAvailable"),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:  16000 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(available_mib(meminfo), Some(8));
        assert_eq!(available_mib("MemTotal: 1 kB\n"), None);
        assert_eq!(available_mib("MemAvailable: many\n"), None);
    }
}
