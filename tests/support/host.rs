//! A host without virtual machines: a folder in which `host-tool` finds the program `fake-vmm`
//! instead of Firecracker or QEMU. That program serves the VMM's API, answers as the real one does
//! or as the test says, and its guest is an agent on a Unix socket, behind a [`Muxer`].
//!
//! Test and fake VMM share the folder: `rules.json` says what to answer, `log` lists what was asked
//! and done, and `guest.sock` is the guest's vsock socket.

mod rule;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::muxer::Muxer;
use crate::process::{Finished, run};
use crate::program;

pub use rule::{Rule, Then};

/// Environment variable with the folder.
pub const FOLDER_VARIABLE: &str = "FAKE_VMM";

/// File with the [`Rule`]s.
pub const RULES: &str = "rules.json";

/// File with the requests that came, one to a line, and what was done.
pub const LOG: &str = "log";

/// The guest's vsock socket.
pub const GUEST_SOCKET: &str = "guest.sock";

/// In the log, in front of the id of a fake VMM's process.
pub const PID_MARK: &str = "process ";

/// In the log, in front of a request that a rule matched.
pub const MET_MARK: &str = "met ";

/// The file that says that host-tool made a folder, and its content.
pub const MARK: (&str, &str) = (
    "made-by-host-tool",
    "host-tool made this directory, and removes it with its own files in it.\n",
);

/// Marks a folder as one that host-tool made.
pub fn mark(folder: &Path) {
    fs::write(folder.join(MARK.0), MARK.1).expect("a file");
}

/// Which VMM the fake one plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Firecracker 1.16.1.
    Firecracker,
    /// QEMU 7.2.0.
    Qemu,
}

impl Kind {
    /// The name in manifests and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }

    /// Files of an artifact beside the manifest, and what is in them.
    const fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Firecracker => &[("vmstate", "state"), ("memory", "memory")],
            Self::Qemu => &[("vmstate", "state")],
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Firecracker => "1.16.1",
            Self::Qemu => "7.2.0",
        }
    }
}

/// The folder and what runs in it.
#[derive(Debug)]
pub struct TestHost {
    // Dropped before the folder, in which its socket lies.
    muxer: Muxer,
    folder: TempDir,
    kind: Kind,
}

impl TestHost {
    /// A host with Firecracker, whose guests are all `agent`.
    pub fn new(agent: &Agent) -> Self {
        Self::of_kind(Kind::Firecracker, agent)
    }

    /// The same with either VMM.
    pub fn of_kind(kind: Kind, agent: &Agent) -> Self {
        Self::before(kind, &agent.socket())
    }

    /// The same with the guest that listens at this socket.
    pub fn before(kind: Kind, guest: &Path) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        for name in ["state", "bin", "vmm", "snapshots"] {
            private.create(folder.path().join(name)).expect("a folder");
        }
        // The fake VMM plays QEMU when it is started by that name.
        let named = folder.path().join("bin").join(kind.as_str());
        symlink(program("fake-vmm"), named).expect("a link");
        for name in ["kernel", "initrd", "disk"] {
            fs::write(folder.path().join(name), b"\x7fELF").expect("a file");
        }
        let socket = folder.path().join(GUEST_SOCKET);
        Self {
            muxer: Muxer::start(socket, guest),
            folder,
            kind,
        }
    }

    /// The vsock device between host and agent.
    pub const fn muxer(&self) -> &Muxer {
        &self.muxer
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sets how the fake VMM answers from now on, and clears the log.
    pub fn script(&self, rules: &[Rule]) {
        let rules: Vec<Value> = rules.iter().map(Rule::to_value).collect();
        let fresh = self.path("rules.new");
        fs::write(&fresh, Value::from(rules).to_string()).expect("a file");
        drop(fs::remove_file(self.path(LOG)));
        fs::rename(fresh, self.path(RULES)).expect("a file to replace");
    }

    /// The lines of the log that begin with this mark, without it.
    fn logged(&self, mark: &str) -> Vec<String> {
        let log = fs::read_to_string(self.path(LOG)).unwrap_or_default();
        let lines = log.lines().filter_map(|line| line.strip_prefix(mark));
        lines.map(str::to_owned).collect()
    }

    /// Whether a request has come that a rule matches.
    #[must_use]
    pub fn is_met(&self) -> bool {
        !self.logged(MET_MARK).is_empty()
    }

    /// The requests since the last [`TestHost::script`].
    pub fn requests(&self) -> Vec<String> {
        self.logged("asked ")
    }

    /// `host-tool ARGS…` on this host.
    pub fn tool<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut tool = self.command(&program("host-tool"));
        tool.args(args);
        tool
    }

    /// `host-tool ARGS…`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.tool(args))
    }

    /// The fake VMM as a program that the test starts itself, with its API at `vmm/api.sock`.
    pub fn vmm(&self) -> Command {
        let mut vmm = self.command(&self.path("bin").join(self.kind.as_str()));
        vmm.args(["--api-sock", "api.sock"])
            .current_dir(self.path("vmm"));
        vmm
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let vmm = self.path("bin").join(self.kind.as_str());
        command
            .env_clear()
            .env("PATH", self.path("bin"))
            .env(self.kind.as_str().to_uppercase(), vmm)
            .env("HOST_TOOL_STATE_DIR", self.path("state"))
            .env("HOST_TOOL_SKIP_KVM_CHECK", "1")
            .env(FOLDER_VARIABLE, self.folder.path());
        command
    }

    /// An artifact that the fake VMM can load.
    pub fn artifact(&self) -> PathBuf {
        let folder = self.path("base.snap");
        drop(fs::remove_dir_all(&folder));
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).create(&folder).expect("a folder");
        for (name, text) in self.kind.files() {
            fs::write(folder.join(name), text).expect("a file");
        }
        let manifest = manifest(self.kind);
        fs::write(folder.join("manifest.json"), manifest.to_string()).expect("a file");
        folder
    }

    /// Fails when a fake VMM still runs, or when a VM or a half-written artifact is left.
    #[track_caller]
    pub fn is_clean(&self) {
        self.has_ended();
        for folder in ["state", "snapshots"] {
            let left: Vec<_> = self.names(folder);
            assert!(left.is_empty(), "left in {folder}: {left:?}");
        }
    }

    /// Fails when a fake VMM still runs.
    #[track_caller]
    pub fn has_ended(&self) {
        for pid in self.logged(PID_MARK) {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            assert!(!proc.exists(), "process {pid} is left");
        }
    }

    /// The names in a folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries
            .map(|entry| name(entry.expect("an entry")))
            .collect()
    }
}

/// What `host-tool snapshot` writes for a machine without drives.
pub fn manifest(kind: Kind) -> Value {
    let files = kind.files().iter();
    let files = files.map(|(name, text)| json!({ "name": name, "len": text.len() }));
    json!({
        "format": 1,
        "vmm": { "kind": kind.as_str(), "version": kind.version() },
        "agent": { "version": "0.1.0", "protocol_min": 1, "protocol_max": 1 },
        "generation": "00112233445566778899aabbccddeeff",
        "machine": {
            "kernel": "/kernel", "initrd": "/initrd", "memory_mib": 128, "vcpu_count": 1,
            "drives": [], "append": "", "guest_cid": 3,
        },
        "files": files.collect::<Vec<_>>(),
        "created_ms": 1_800_000_000_000_u64,
        "host_version": "0.1.0",
    })
}

impl Drop for TestHost {
    fn drop(&mut self) {
        // What a failed test has left must not outlive it.
        for name in self.names("state") {
            self.run(["rm", "--force", &name]);
        }
    }
}
