//! The agent, and what people would use instead of it, as servers on Unix sockets.
//!
//! Each listens on the same kind of socket and runs the same program. The functions that start them
//! explain their options, because a comparison has to give each alternative its best ones.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::program;

use crate::Failure;
use crate::wire::Endpoint;

/// How long a server may take until it listens.
const START_MAX: Duration = Duration::from_secs(20);

/// A server in its own process group, ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// The server itself, if it is a child of `child`.
    inner: Option<u32>,
    folder: TempDir,
    /// From the start of the process to its first accepted connection, µs.
    pub(crate) start_us: f64,
}

impl Server {
    /// Starts the command that `command` makes for a socket, and waits until it listens there.
    pub(crate) fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("socket");
        let command = command(&socket);
        Self::start_until(folder, command, |_| UnixStream::connect(&socket).is_ok())
    }

    fn start_until(
        folder: TempDir,
        mut command: Command,
        is_listening: impl Fn(u32) -> bool,
    ) -> Result<Self, Failure> {
        let text = format!("{command:?}");
        let log = fs::File::create(folder.path().join("log"))?;
        let started_at = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot run {text}: {error}"))?;
        let mut server = Self {
            child,
            inner: None,
            folder,
            start_us: 0.0,
        };
        while !is_listening(server.child.id()) {
            let has_ended = server.child.try_wait()?.is_some();
            if has_ended || started_at.elapsed() > START_MAX {
                let log = fs::read_to_string(server.folder.path().join("log"))?;
                return Err(format!("{text} does not listen: {}", log.trim()).into());
            }
            std::thread::yield_now();
        }
        server.start_us = started_at.elapsed().as_secs_f64() * 1e6;
        Ok(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.inner.unwrap_or_else(|| self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // The group may have ended already.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        drop(self.child.wait());
    }
}

/// The agent, with `--unprivileged` so that it does not touch this machine's clock and names.
pub(crate) fn agent() -> Result<Server, Failure> {
    agent_from(&program("guest-agent"))
}

fn agent_from(path: &Path) -> Result<Server, Failure> {
    Server::start(|socket| {
        let mut agent = Command::new(path);
        agent.arg("--listen").arg(prefixed("unix:", socket));
        agent.args(["--unprivileged", "--log", "warn"]);
        agent
    })
}

/// socat, which forks for each connection and runs `argv` with the socket as its input and output.
///
/// `-t0`: once one direction has ended, socat waits half a second for the other by default. One
/// client that reads to the end does not see that wait, but many see the processes that wait.
/// `-b`: the largest block that helps it; by default it copies 8 KiB at a time.
pub(crate) fn socat(argv: &[&str]) -> Result<Server, Failure> {
    Server::start(|socket| socat_command(socket, ",fork", &format!("EXEC:{}", argv.join(" "))))
}

/// socat for one connection, which ends with it, so that its CPU time becomes known.
///
/// `-t30`: it waits for a command that has not read all input when the client closes its side.
pub(crate) fn socat_once(argv: &[&str]) -> Result<OnceServer, Failure> {
    let address = format!("EXEC:{}", argv.join(" "));
    OnceServer::start(|socket| {
        let mut socat = Command::new("socat");
        socat.args(["-t30", "-b65536"]);
        socat.arg(format!("UNIX-LISTEN:{}", socket.display()));
        socat.arg(address);
        socat
    })
}

fn socat_command(socket: &Path, options: &str, address: &str) -> Command {
    let mut socat = Command::new("socat");
    socat.args(["-t0", "-b65536"]);
    let listen = format!("UNIX-LISTEN:{}{options},backlog=256", socket.display());
    socat.arg(listen).arg(address);
    socat
}

/// A server that takes one connection and ends with it.
#[derive(Debug)]
pub(crate) struct OnceServer {
    child: Child,
    _folder: TempDir,
    /// The one connection, and when the client connected.
    pub(crate) stream: UnixStream,
    pub(crate) opened_at: Instant,
}

impl OnceServer {
    fn start(command: impl FnOnce(&Path) -> Command) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let socket = folder.path().join("socket");
        let mut child = command(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let started_at = Instant::now();
        loop {
            let opened_at = Instant::now();
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    return Ok(Self {
                        child,
                        _folder: folder,
                        stream,
                        opened_at,
                    });
                }
                Err(error) if started_at.elapsed() > START_MAX => {
                    drop(child.kill());
                    drop(child.wait());
                    return Err(error.into());
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<(), Failure> {
        drop(self.stream);
        self.child.wait()?;
        Ok(())
    }
}

/// The QEMU guest agent. It takes one connection at a time, and clients poll for a command's end:
/// here without a pause, which is its best case.
#[derive(Debug)]
pub(crate) struct GuestAgentOfQemu {
    pub(crate) server: Option<Server>,
    connection: Mutex<BufReader<fs::File>>,
}

impl GuestAgentOfQemu {
    pub(crate) fn start() -> Result<Self, Failure> {
        let server = Server::start(|socket| {
            let mut agent = Command::new(sbin("qemu-ga"));
            agent
                .args(["--method", "unix-listen", "--path"])
                .arg(socket);
            agent.arg("--statedir");
            agent.arg(socket.parent().unwrap_or_else(|| Path::new("/")));
            agent
        })?;
        let mut agent = Self::connect(&server.endpoint())?;
        agent.server = Some(server);
        Ok(agent)
    }

    /// Connects to an agent that already listens.
    pub(crate) fn connect(endpoint: &Endpoint) -> Result<Self, Failure> {
        Ok(Self {
            server: None,
            connection: Mutex::new(BufReader::new(endpoint.open(b"")?)),
        })
    }

    fn ask(&self, request: &Value) -> Result<Value, Failure> {
        let mut connection = self
            .connection
            .lock()
            .map_err(|_| "another thread failed")?;
        let line = format!("{request}\n");
        connection.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        connection.read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer)?;
        answer
            .get("return")
            .cloned()
            .ok_or_else(|| format!("qemu-ga: {answer}").into())
    }

    /// Runs a program without arguments to its end.
    pub(crate) fn exec(&self, path: &str) -> Result<(), Failure> {
        let request = json!({ "execute": "guest-exec", "arguments": { "path": path } });
        let pid = self.ask(&request)?["pid"].clone();
        let status = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        while self.ask(&status)?["exited"] != true {
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// dropbear, started for each connection with the accepted socket as its own (`-i`, and socat's
/// `nofork`), so that no process copies in between.
///
/// The client's key is in a home directory that exists only in dropbear's mount namespace, so that
/// no file of this machine is touched.
#[derive(Debug)]
pub(crate) struct Dropbear {
    server: Server,
    keys: TempDir,
}

impl Dropbear {
    pub(crate) fn start() -> Result<Self, Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err("dropbear needs root for a login".into());
        }
        let keys = TempDir::new()?;
        let key = |name: &str| keys.path().join(name);
        let home = key("home");
        let ssh = home.join(".ssh");
        fs::create_dir_all(&ssh)?;
        make_key(&key("host"))?;
        let public = make_key(&key("client"))?;
        fs::write(ssh.join("authorized_keys"), public)?;
        for path in [&home, &ssh] {
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
        }
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.ok_or("no such user")?;
        let server = Server::start(|socket| {
            let mut shell = Command::new("unshare");
            shell.args(["--mount", "--propagation", "private", "sh", "-c"]);
            shell.arg("mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"");
            shell.arg("sh").arg(&home).arg(&user.dir);
            let address = format!(
                "EXEC:{} -i -s -j -k -r {},nofork",
                sbin("dropbear").display(),
                key("host").display()
            );
            let socat = socat_command(socket, ",fork", &address);
            shell.arg(socat.get_program()).args(socat.get_args());
            shell
        })?;
        Ok(Self { server, keys })
    }

    /// The client, which inherits a connected descriptor.
    ///
    /// Returns the command and the descriptor, which must stay open until the command has started.
    pub(crate) fn client(&self, command: &str) -> Result<(Command, UnixStream), Failure> {
        let stream = UnixStream::connect(self.server.socket())?;
        fcntl(stream.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut client = Command::new("dbclient");
        client.args(["-y", "-y", "-i"]);
        client.arg(self.keys.path().join("client"));
        let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
        client.arg("-J").arg(format!("&{fd}"));
        client.args(["root@localhost", command]);
        Ok((client, stream))
    }
}

/// Makes a key and returns its public half as a line of `authorized_keys`.
fn make_key(path: &Path) -> Result<String, Failure> {
    let output = Command::new("dropbearkey")
        .args(["-t", "ed25519", "-f"])
        .arg(path)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find(|line| line.starts_with("ssh-"));
    Ok(format!("{}\n", line.ok_or("dropbearkey made no key")?))
}

/// The path in `/usr/sbin`, which may not be on `PATH`, or the name itself.
pub(crate) fn sbin(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    if path.exists() { path } else { name.into() }
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// dropbear as a daemon, to measure it while idle. It does not support Unix sockets, so it listens
/// on a loopback port; `start_us` is the time until that accepts.
pub(crate) fn dropbear_daemon() -> Result<Server, Failure> {
    let folder = TempDir::new()?;
    let key = folder.path().join("host");
    make_key(&key)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut dropbear = Command::new(sbin("dropbear"));
    dropbear.args(["-F", "-s", "-j", "-k", "-p"]);
    dropbear.arg(address.to_string()).arg("-r").arg(key);
    Server::start_until(folder, dropbear, |_| {
        std::net::TcpStream::connect(address).is_ok()
    })
}

/// busybox as init. It has to be process 1, so it gets its own PID namespace and root, with an
/// inittab that starts nothing.
pub(crate) fn busybox_init() -> Result<Server, Failure> {
    let folder = TempDir::new()?;
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(root.join("dev"))?;
    fs::copy("/bin/busybox", root.join("init"))?;
    fs::write(root.join("etc/inittab"), "::ctrlaltdel:/init true\n")?;
    // Without /dev/null, init does not start.
    let null = fs::metadata("/dev/null")?.rdev();
    let all = Mode::from_bits_truncate(0o666);
    mknod(&root.join("dev/null"), SFlag::S_IFCHR, all, null)
        .map_err(|error| format!("cannot make a device: {error}"))?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "chroot"]);
    unshare.arg(&root).arg("/init");
    let inner = Cell::new(None);
    let mut server = Server::start_until(folder, unshare, |outer| {
        inner.set(init_below(outer));
        inner.get().is_some()
    })?;
    server.inner = inner.get();
    Ok(server)
}

/// The child of `outer`, once it has executed init.
fn init_below(outer: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
    let child = children.split_whitespace().next()?;
    let path = fs::read_link(format!("/proc/{child}/exe")).ok()?;
    path.ends_with("init").then(|| child.parse().ok())?
}
