//! Firecracker and QEMU as other programs use them, through their own APIs.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// Sends a request to Firecracker, which must succeed.
#[track_caller]
pub(crate) fn http(api_socket: &Path, method: &str, path: &str, body: &Value) {
    let mut stream = UnixStream::connect(api_socket).unwrap();
    let body = body.to_string();
    let len = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: vmm\r\nContent-Length: {len}\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = vec![0; 4096];
    let len = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..len]);
    assert!(
        answer.starts_with("HTTP/1.1 204"),
        "{method} {path}: {answer}"
    );
}

/// A Firecracker with the test image, ended when dropped.
#[derive(Debug)]
pub(crate) struct Firecracker {
    folder: PathBuf,
    child: Child,
}

impl Firecracker {
    /// Boots the test image in a new folder.
    #[track_caller]
    pub(crate) fn boot(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        let program = std::env::var_os("FIRECRACKER").unwrap_or_else(|| "firecracker".into());
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(program)
            .args(["--api-sock", "api.sock"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut vmm = Self {
            folder: folder.to_owned(),
            child,
        };
        while UnixStream::connect(vmm.api_socket()).is_err() {
            assert!(vmm.child.try_wait().unwrap().is_none(), "it ended");
        }
        let put = |path: &str, body: Value| http(&vmm.api_socket(), "PUT", path, &body);
        let variable = |name: &str| std::env::var(name).unwrap();
        put(
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
        );
        put(
            "/boot-source",
            json!({
                "kernel_image_path": variable("TEST_KERNEL"),
                "initrd_path": variable("TEST_INITRD"),
                "boot_args": "console=ttyS0 reboot=k panic=-1 i8042.noaux quiet",
            }),
        );
        put("/vsock", json!({ "guest_cid": 3, "uds_path": vmm.uds() }));
        put("/actions", json!({ "action_type": "InstanceStart" }));
        vmm
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    pub(crate) fn uds(&self) -> PathBuf {
        self.folder.join("v.sock")
    }
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read(self.folder.join("log")).unwrap_or_default();
            eprintln!("--- log\n{}", String::from_utf8_lossy(&log));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Qmp {
    lines: io::Lines<BufReader<UnixStream>>,
    stream: UnixStream,
}

impl Qmp {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(tests::DEADLINE))?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let mut qmp = Self { lines, stream };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returns. The greeting and events are skipped.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{line}")?;
        loop {
            let line = self.lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer.get("error").is_some() {
                return Err(io::Error::other(format!("{command}: {answer}")));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}
