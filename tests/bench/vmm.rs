//! VMMs without host-tool: just enough of each API to boot the echo guest, save it and load it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};
use shared::limits::PORT_DEFAULT;
use tempfile::TempDir;

use crate::Failure;
use crate::footprint::pass;
use crate::wire::Endpoint;

/// How long a guest may take to answer. In the emulated lab a boot takes seconds.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Pause between two polls of something that has no event.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Memory of all guests, those of host-tool included.
pub(crate) const MEMORY_MIB: u32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Firecracker,
    Qemu,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Firecracker, Self::Qemu];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        }
    }

    fn program(self) -> PathBuf {
        let (variable, name) = match self {
            Self::Firecracker => ("FIRECRACKER", "firecracker"),
            Self::Qemu => ("QEMU", "qemu-system-x86_64"),
        };
        std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
    }

    /// Whether it is installed.
    pub(crate) fn is_here(self) -> bool {
        let found = Command::new(self.program()).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    }
}

/// A VMM process in its own folder, killed when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    kind: Kind,
    child: Child,
    folder: TempDir,
    cid: u32,
}

/// The files of a saved machine.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: TempDir,
}

#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Machine {
    pub(crate) fn boot(kind: Kind, image: &Image) -> Result<Self, Failure> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (kernel, initrd) = (text(&image.kernel), text(&image.initrd));
        let arguments = match kind {
            Kind::Firecracker => Vec::new(),
            Kind::Qemu => {
                let append = "console=ttyS0 reboot=t panic=-1 pci=off quiet";
                ["-append", append, "-kernel", &kernel, "-initrd", &initrd]
                    .map(str::to_owned)
                    .into()
            }
        };
        let machine = Self::spawn(kind, &arguments)?;
        let mut api = machine.api()?;
        match kind {
            Kind::Qemu => api.execute("cont", json!({})).map(drop)?,
            Kind::Firecracker => {
                let append = "console=ttyS0 reboot=k panic=-1 i8042.noaux i8042.nomux \
                              i8042.dumbkbd quiet";
                let size = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB });
                api.call("PUT", "/machine-config", &size)?;
                let source = json!({
                    "kernel_image_path": kernel, "initrd_path": initrd, "boot_args": append,
                });
                api.call("PUT", "/boot-source", &source)?;
                let vsock = json!({ "guest_cid": machine.cid, "uds_path": "v.sock" });
                api.call("PUT", "/vsock", &vsock)?;
                let start = json!({ "action_type": "InstanceStart" });
                api.call("PUT", "/actions", &start)?;
            }
        }
        Ok(machine)
    }

    /// Pauses the machine, saves it, and ends it.
    pub(crate) fn save(self) -> Result<Saved, Failure> {
        let folder = TempDir::new()?;
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let mut api = self.api()?;
        match self.kind {
            Kind::Firecracker => {
                api.call("PATCH", "/vm", &json!({ "state": "Paused" }))?;
                let create = json!({
                    "snapshot_type": "Full",
                    "snapshot_path": path("vmstate"),
                    "mem_file_path": path("memory"),
                });
                api.call("PUT", "/snapshot/create", &create)?;
            }
            Kind::Qemu => {
                api.execute("stop", json!({}))?;
                let uri = format!("exec:cat >{}", path("vmstate"));
                api.execute("migrate", json!({ "uri": uri }))?;
                let transient = ["setup", "active", "device"];
                let status = api.await_stable_state("query-migrate", &transient)?;
                if status != "completed" {
                    return Err(format!("QEMU saved nothing: {status}").into());
                }
            }
        }
        Ok(Saved { folder })
    }

    /// Loads a saved machine and resumes it. Returns when the VMM has answered.
    pub(crate) fn load(kind: Kind, saved: &Saved) -> Result<Self, Failure> {
        let path = |name: &str| saved.folder.path().join(name);
        match kind {
            Kind::Firecracker => {
                let machine = Self::spawn(kind, &[])?;
                let load = json!({
                    "snapshot_path": path("vmstate"),
                    "mem_backend": { "backend_type": "File", "backend_path": path("memory") },
                    "resume_vm": true,
                });
                machine.api()?.call("PUT", "/snapshot/load", &load)?;
                Ok(machine)
            }
            Kind::Qemu => {
                let state = File::open(path("vmstate"))?;
                // QEMU inherits it under its number.
                fcntl(state.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
                let incoming = format!("fd:{}", state.as_raw_fd());
                let machine = Self::spawn(kind, &["-incoming".to_owned(), incoming])?;
                let mut api = machine.api()?;
                api.await_stable_state("query-status", &["inmigrate"])?;
                api.execute("cont", json!({}))?;
                Ok(machine)
            }
        }
    }

    fn spawn(kind: Kind, arguments: &[String]) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        // A CID is unique on a host. Other guests of the lab have small ones.
        let cid = 0x4000_0000 | std::process::id();
        let mut command = Command::new(kind.program());
        match kind {
            Kind::Firecracker => {
                command.args(["--api-sock", "api.sock", "--id", "echo"]);
                command.args(["--log-path", "vmm.log", "--level", "Info"]);
                fs::write(folder.path().join("vmm.log"), "")?;
            }
            Kind::Qemu => {
                command.args(["-M", "microvm,acpi=on,rtc=on,pit=off,pic=off"]);
                command.args(["-accel", "kvm", "-cpu", "host", "-smp", "1"]);
                command.arg("-m").arg(format!("{MEMORY_MIB}M"));
                command.args(["-no-user-config", "-nodefaults", "-display", "none"]);
                command.args(["-no-reboot", "-serial", "stdio", "-S"]);
                command.args(["-qmp", "unix:api.sock,server=on,wait=off"]);
                command.arg("-device");
                command.arg(format!("vhost-vsock-device,guest-cid={cid}"));
            }
        }
        let console = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.path().join("console.log"))?;
        let child = command
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()?;
        Ok(Self {
            kind,
            child,
            folder,
            cid,
        })
    }

    fn api(&self) -> Result<Api, Failure> {
        let socket = self.folder.path().join("api.sock");
        let started_at = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if started_at.elapsed() > ANSWER_MAX => return Err(error.into()),
                Err(_) => pass(LOOK_EVERY)?,
            }
        };
        let mut api = Api {
            stream: BufReader::new(stream),
        };
        if self.kind == Kind::Qemu {
            api.line()?;
            api.execute("qmp_capabilities", json!({}))?;
        }
        Ok(api)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self.kind {
            Kind::Firecracker => Endpoint::Hybrid(self.folder.path().join("v.sock"), PORT_DEFAULT),
            Kind::Qemu => Endpoint::Vsock(self.cid, PORT_DEFAULT),
        }
    }

    /// One raw connection with one byte there and back, repeated until it succeeds.
    pub(crate) fn echo(&self) -> Result<(), Failure> {
        let started_at = Instant::now();
        loop {
            match echo_once(&self.endpoint()) {
                Ok(()) => return Ok(()),
                Err(error) if started_at.elapsed() > ANSWER_MAX => return Err(error),
                Err(_) => pass(LOOK_EVERY)?,
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn echo_once(endpoint: &Endpoint) -> Result<(), Failure> {
    let mut stream = endpoint.open(b"x")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(())
}

/// The API socket of either VMM.
struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// A call of Firecracker's.
    fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<(), Failure> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut len = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                len = value.trim().parse()?;
            }
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body)?;
        if status
            .split(' ')
            .nth(1)
            .is_some_and(|code| code.starts_with('2'))
        {
            return Ok(());
        }
        let body = String::from_utf8_lossy(&body);
        Err(format!("{method} {path}: {status}: {body}").into())
    }

    /// A command of QEMU's.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        loop {
            let answer: Value = serde_json::from_str(&self.line()?)?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if answer.get("error").is_some() {
                return Err(format!("{command}: {answer}").into());
            }
        }
    }

    /// Polls until the status is not one of `transient`, and returns it.
    fn await_stable_state(&mut self, command: &str, transient: &[&str]) -> Result<String, Failure> {
        loop {
            let answer = self.execute(command, json!({}))?;
            let status = answer["status"].as_str().unwrap_or("setup").to_owned();
            if !transient.contains(&status.as_str()) {
                return Ok(status);
            }
            pass(LOOK_EVERY)?;
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err("the VMM has ended".into());
        }
        Ok(line.trim_end().to_owned())
    }
}
