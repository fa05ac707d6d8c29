//! Goal: over real vsock the agent serves the host only. Method: the built programs and the
//! kernel's loopback, whose peers do not have the host's context id.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use shared::message::{Hello, Message};
use tests::process::{Running, run};
use tests::{DEADLINE, program, skip};

/// The context id of the kernel's loopback (`VMADDR_CID_LOCAL`).
const CID_LOOPBACK: u32 = 1;

/// A stream to a port of this machine. `UnixStream` stands for any stream socket here: it only
/// reads and writes the descriptor.
fn connect_loopback(port: u32) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &VsockAddr::new(CID_LOOPBACK, port))?;
    Ok(UnixStream::from(fd))
}

/// An unused port, or why there is no loopback.
fn free_port() -> Result<u32, String> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None);
    let fd = fd.map_err(|errno| format!("no AF_VSOCK ({errno})"))?;
    // Far from the default port, and different for each test process.
    let port = 20_000 + std::process::id() % 40_000;
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, port);
    bind(fd.as_raw_fd(), &address).map_err(|errno| format!("cannot bind vsock ({errno})"))?;
    listen(&fd, Backlog::new(1).unwrap()).map_err(|errno| errno.to_string())?;
    let connected = connect_loopback(port);
    connected.map_err(|errno| format!("no vsock loopback, module vsock_loopback ({errno})"))?;
    Ok(port)
}

#[test]
fn a_peer_that_is_not_the_host_is_closed_without_a_word() {
    let port = match free_port() {
        Ok(port) => port,
        Err(why) => return skip("vsock::a_peer_that_is_not_the_host_is_closed", &why),
    };
    let mut agent = Command::new(program("guest-agent"));
    agent.args(["--listen", &format!("vsock:{port}"), "--unprivileged"]);
    let agent = Running::start_as_it_is(agent.stderr(Stdio::piped()));
    let started = Instant::now();
    let mut stream = loop {
        match connect_loopback(port) {
            Ok(stream) => break stream,
            Err(errno) => assert!(started.elapsed() < DEADLINE, "the agent is deaf: {errno}"),
        }
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The agent may have closed the connection already.
    let _ = stream.write_all(&Message::Hello(Hello::host("test")).encode());
    match stream.read(&mut [0; 64]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("a stranger hears {other:?}"),
    }
    let mut probe = Command::new(program("host-tool"));
    let port = port.to_string();
    probe.args(["probe", "--cid", "1", "--port", &port, "--timeout", "2s"]);
    run(&mut probe).exits(2);
    assert!(agent.status("Threads") > 0, "it runs on");
}
