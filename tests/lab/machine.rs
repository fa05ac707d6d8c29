//! The environment of a case: a state directory of its own, the built `host-tool`, and checks of
//! what is left behind.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;
use tests::process::{Finished, run};
use tests::program;

use crate::standstill;

/// Time limit of commands that start a virtual machine. The emulated lab boots one in 5 s.
pub(crate) const TIMEOUT: &str = "120s";

/// A VMM that cases run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vmm {
    Qemu,
    Firecracker,
}

impl Vmm {
    pub(crate) const ALL: [Self; 2] = [Self::Qemu, Self::Firecracker];

    /// Why cases cannot run on this VMM, if they cannot.
    pub(crate) fn missing(self) -> Option<String> {
        if std::env::var_os("LAB").is_none() {
            return Some("not in the lab; use scripts/test.sh lab".to_owned());
        }
        for variable in [
            "TEST_KERNEL",
            "TEST_INITRD",
            "TEST_INITRD_SILENT",
            "TEST_INITRD_WORKLOAD",
            "TEST_INITRD_FAILPOINTS",
        ] {
            if std::env::var_os(variable).is_none() {
                return Some(format!("{variable} is not set; use scripts/test.sh lab"));
            }
        }
        let (variable, name) = match self {
            Self::Qemu => ("QEMU", "qemu-system-x86_64"),
            Self::Firecracker => ("FIRECRACKER", "firecracker"),
        };
        if std::env::var_os(variable).is_some() {
            return None;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_here = std::env::split_paths(&path).any(|folder| folder.join(name).exists());
        (!is_here).then(|| format!("no {name} on PATH and {variable} names none"))
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        })
    }
}

/// Artifacts that several cases read and do not change, one for each VMM.
static ARTIFACTS: Mutex<Vec<(Vmm, TempDir)>> = Mutex::new(Vec::new());

/// The environment of one case. Everything that the case has started is ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vmm: Vmm,
    folder: TempDir,
}

impl Machine {
    pub(crate) fn new(vmm: Vmm) -> Self {
        let machine = Self {
            vmm,
            folder: TempDir::new().unwrap(),
        };
        fs::create_dir(machine.state_dir()).unwrap();
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// A `host-tool` command.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut tool = Command::new(program("host-tool"));
        tool.args(arguments)
            .env("HOST_TOOL_STATE_DIR", self.state_dir());
        tool
    }

    /// A `host-tool` command whose arguments are separated by blanks.
    pub(crate) fn line(&self, line: &str) -> Command {
        self.command(line.split_whitespace())
    }

    /// A shell line in a guest.
    pub(crate) fn shell(&self, name: &str, line: &str) -> Command {
        let mut command = self.line(&format!("exec --name {name} --timeout {TIMEOUT} --"));
        command.args(["sh", "-c", line]);
        command
    }

    /// Runs a `host-tool` command to its end.
    #[track_caller]
    pub(crate) fn tool<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        run(&mut self.command(arguments))
    }

    /// Arguments that boot the test image.
    pub(crate) fn boot_arguments(&self, name: &str) -> Vec<String> {
        let variable = |name: &str| std::env::var(name).unwrap();
        self.boot_image(name, &variable("TEST_INITRD"))
    }

    /// Arguments that boot another image.
    pub(crate) fn boot_image(&self, name: &str, initrd: &str) -> Vec<String> {
        let kernel = std::env::var("TEST_KERNEL").unwrap();
        let line = format!(
            "boot --json --name {name} --vmm {} --kernel {kernel} --initrd {initrd} --mem 128M \
             --timeout {TIMEOUT}",
            self.vmm
        );
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Boots the test image. Gives the command's record.
    #[track_caller]
    pub(crate) fn boot(&self, name: &str) -> serde_json::Value {
        let record = self.tool(self.boot_arguments(name)).exits(0).json();
        assert_eq!(record["event"], "ready", "{record}");
        record
    }

    /// Runs a shell line in the guest. Gives its output.
    #[track_caller]
    pub(crate) fn exec(&self, name: &str, line: &str) -> String {
        run(&mut self.shell(name, line)).exits(0).out()
    }

    /// Takes a snapshot into a new folder. Gives the folder.
    #[track_caller]
    pub(crate) fn snapshot(&self, name: &str, artifact: &str, more: &[&str]) -> PathBuf {
        let path = self.path(artifact);
        let line = format!("snapshot --name {name} --timeout {TIMEOUT} --json --out");
        let mut command = self.line(&line);
        let ended = run(command.arg(&path).args(more)).exits(0);
        assert!(path.join("manifest.json").exists(), "{ended}");
        path
    }

    /// Restores an artifact. Gives the command's record.
    #[track_caller]
    pub(crate) fn restore(&self, artifact: &Path, name: &str) -> serde_json::Value {
        let record = run(&mut self.restore_command(artifact, name))
            .exits(0)
            .json();
        assert_eq!(record["event"], "ready", "{record}");
        record
    }

    pub(crate) fn restore_command(&self, artifact: &Path, name: &str) -> Command {
        let line = format!("restore --wait-ready --json --timeout {TIMEOUT} --name {name}");
        let mut command = self.line(&line);
        command.arg(artifact);
        command
    }

    /// Stops and removes a machine.
    #[track_caller]
    pub(crate) fn end(&self, name: &str) {
        self.tool(["stop", name, "--timeout", TIMEOUT]).exits(0);
        self.tool(["rm", name]).exits(0);
    }

    /// An artifact of an idle machine, made once for all cases that only read it.
    pub(crate) fn artifact(&self) -> PathBuf {
        let mut artifacts = ARTIFACTS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, folder)) = artifacts.iter().find(|(vmm, _)| *vmm == self.vmm) {
            return folder.path().join("artifact");
        }
        let maker = Self::new(self.vmm);
        maker.boot("origin");
        let made = maker.snapshot("origin", "artifact", &["--stop"]);
        let folder = TempDir::new().unwrap();
        fs::rename(made, folder.path().join("artifact")).unwrap();
        let path = folder.path().join("artifact");
        artifacts.push((self.vmm, folder));
        path
    }

    /// Processes that work in the state directory: VMMs and supervisors.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(folder) = fs::read_link(entry.path().join("cwd")) else {
                continue;
            };
            if folder.starts_with(self.state_dir()) {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push((pid, name.trim().to_owned()));
            }
        }
        found
    }

    /// Waits until all processes in the state directory have ended.
    pub(crate) fn await_processes(&self) {
        for (pid, _) in self.processes() {
            let pid = format!("--pid={pid}");
            run(Command::new("tail").args([&pid, "--follow", "/dev/null"])).exits(0);
        }
    }

    /// Fails when something of a machine is left.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.processes(), [], "processes are left");
        let left: Vec<_> = fs::read_dir(self.state_dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// The logs of all machines, for a case that failed.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for folder in fs::read_dir(self.state_dir()).unwrap().flatten() {
            for name in ["state.json", "supervisor.log", "vmm.log", "console.log"] {
                let bytes = fs::read(folder.path().join(name)).unwrap_or_default();
                let tail = &bytes[bytes.len().saturating_sub(3000)..];
                let (path, tail) = (folder.path(), String::from_utf8_lossy(tail));
                text.push_str(&format!("--- {} {name}\n{tail}\n", path.display()));
            }
        }
        text
    }

    /// What running machines do: whether a guest does not answer or its processor stands still.
    pub(crate) fn look_at_processors(&self) -> String {
        let mut text = String::new();
        let list_threads = || {
            let threads = |(pid, name): (u32, String)| {
                format!("--- {name} {pid}: {}\n", standstill::threads(pid))
            };
            self.processes()
                .into_iter()
                .map(threads)
                .collect::<String>()
        };
        text.push_str(&list_threads());
        for folder in fs::read_dir(self.state_dir()).unwrap().flatten() {
            let name = folder.file_name().into_string().unwrap();
            if self.vmm == Vmm::Qemu {
                let processor = standstill::processor(&folder.path().join("api.sock"));
                let processor = processor.unwrap_or_else(|err| err.to_string());
                text.push_str(&format!("--- {name} processor\n{processor}\n"));
            }
            let probe = self.tool(["probe", "--name", &name, "--timeout", "5s", "-vvv"]);
            text.push_str(&format!("--- {name} probe: {probe}\n"));
        }
        text.push_str(&list_threads());
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            tests::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
