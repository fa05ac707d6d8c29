//! Checks whether this machine can run microVMs, before a VMM fails with a worse message.

use std::env;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::VmmKind;

/// If this is set and not empty, [`host_problem`] checks nothing.
const SKIP_VARIABLE: &str = "HOST_TOOL_SKIP_KVM_CHECK";

/// Why VMs cannot run here, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostProblem {
    pub(crate) reason: String,
    /// What the user can do.
    pub(crate) remedy: &'static str,
}

impl fmt::Display for HostProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// Checks what a VMM of this kind needs: a usable /dev/kvm, a processor that virtualizes, and for
/// QEMU vhost-vsock. `HOST_TOOL_SKIP_KVM_CHECK=1` skips the check.
pub(crate) fn host_problem(kind: VmmKind) -> Option<HostProblem> {
    if env::var_os(SKIP_VARIABLE).is_some_and(|value| !value.is_empty()) {
        return None;
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    find_problem(kind, Path::new("/dev"), &cpuinfo)
}

fn find_problem(kind: VmmKind, dev: &Path, cpuinfo: &str) -> Option<HostProblem> {
    let kvm_remedy = "load kvm_intel or kvm_amd, on a machine with hardware virtualization enabled";
    device_problem(&dev.join("kvm"), kvm_remedy)
        .or_else(|| cpu_problem(cpuinfo))
        .or_else(|| match kind {
            VmmKind::Firecracker => None,
            VmmKind::Qemu => device_problem(
                &dev.join("vhost-vsock"),
                "run 'modprobe vhost_vsock' as root",
            ),
        })
}

/// Opens the device as a VMM does: mode bits alone do not tell whether this process may use it.
fn device_problem(device: &Path, remedy: &'static str) -> Option<HostProblem> {
    let err = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .err()?;
    let remedy = match err.kind() {
        io::ErrorKind::PermissionDenied => {
            "become a member of the device's group (usually kvm), or run as root"
        }
        _ => remedy,
    };
    Some(HostProblem {
        reason: format!("cannot open {}: {err}", device.display()),
        remedy,
    })
}

/// A paravirtual KVM has /dev/kvm and creates VMs, but cannot run a stock guest. There the flags
/// contain neither svm nor vmx. Processors other than x86 have no flags line, and no such KVM.
fn cpu_problem(cpuinfo: &str) -> Option<HostProblem> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let virtualizes = flags
        .split_whitespace()
        .any(|flag| flag == "svm" || flag == "vmx");
    (!virtualizes).then(|| HostProblem {
        reason: "the processor flags show neither svm nor vmx: /dev/kvm exists, but cannot run \
                 stock guests"
            .to_owned(),
        remedy: "use a machine with (nested) hardware virtualization, or set \
                 HOST_TOOL_SKIP_KVM_CHECK=1 to try",
    })
}

#[cfg(test)]
mod tests {
    use super::VmmKind::{Firecracker, Qemu};
    use super::*;
    use crate::testing::TempDir;

    const AMD: &str = "processor\t: 0\nflags\t\t: fpu svm nx\nbugs\t\t: none\n";

    #[track_caller]
    fn reason(kind: VmmKind, dev: &Path, cpuinfo: &str) -> String {
        find_problem(kind, dev, cpuinfo).expect("a problem").reason
    }

    #[test]
    fn each_missing_requirement_is_reported() {
        let temp = TempDir::new("kvm");
        let dev = temp.path();
        assert!(reason(Firecracker, dev, AMD).contains("/kvm: No such file"));
        fs::write(dev.join("kvm"), "").unwrap();
        assert_eq!(find_problem(Firecracker, dev, AMD), None);
        assert_eq!(
            find_problem(Firecracker, dev, &AMD.replace("svm", "vmx")),
            None
        );
        assert!(reason(Firecracker, dev, &AMD.replace("svm", "svm_lock")).contains("neither"));
        // A processor other than x86.
        assert_eq!(find_problem(Firecracker, dev, "processor\t: 0\n"), None);

        let problem = find_problem(Qemu, dev, AMD).expect("vhost-vsock is missing");
        assert!(
            problem.to_string().contains("/vhost-vsock: No such file"),
            "{problem}"
        );
        assert!(
            problem
                .to_string()
                .ends_with("; run 'modprobe vhost_vsock' as root"),
            "{problem}"
        );
        fs::write(dev.join("vhost-vsock"), "").unwrap();
        assert_eq!(find_problem(Qemu, dev, AMD), None);
    }
}
