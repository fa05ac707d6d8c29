//! Goal: an address without a guest is told at once, with its remedy, and never as something that
//! is unknown. Method: the built program, and paths at which nothing listens.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use tempfile::TempDir;
use tests::process::{Finished, run};
use tests::{program, skip};

use crate::host::logs::Workload;

/// What is told of a path where there is nothing.
const NO_SOCKET: &str = "there is no such socket: check the path";

/// Commands about a guest, and their exit codes where there is none.
const COMMANDS: [(&str, i32); 13] = [
    ("exec -- true", 125),
    ("exec -d -- true", 125),
    ("exec --timeout 5m -- true", 125),
    ("attach 1", 125),
    ("attach --observe workload", 125),
    ("wait 1", 125),
    ("probe", 2),
    ("kill 1", 1),
    ("ps", 1),
    ("ps --json --timeout 5m", 1),
    ("logs", 1),
    ("stress", 1),
    ("bench", 1),
];

/// `host-tool COMMAND TARGET ADDRESS [-- ARGV]`.
fn tool(command: &str, target: &str, address: &str) -> Command {
    let (options, argv) = command.split_once(" -- ").unwrap_or((command, ""));
    let mut tool = Command::new(program("host-tool"));
    tool.args(options.split(' ')).args([target, address]);
    if !argv.is_empty() {
        tool.args(["--", argv]);
    }
    tool
}

fn run_on(command: &str, target: &str, address: &str) -> Finished {
    run(&mut tool(command, target, address))
}

/// Fails unless the command has this exit code and text, and says only what is certain.
#[track_caller]
fn is_told(command: &str, code: i32, target: &str, address: &str, text: &str) {
    let ended = run_on(command, target, address).exits(code);
    let ended = ended.complains(address).complains(text);
    let err = ended.err();
    assert!(!err.contains("unknown"), "{command}: {ended}");
    if command.starts_with("exec") {
        ended.complains("the command did not run");
    }
}

#[test]
fn every_command_tells_at_once_that_there_is_no_guest() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("typo");
    for (command, code) in COMMANDS {
        for target in ["--unix", "--uds"] {
            is_told(command, code, target, missing.to_str().unwrap(), NO_SOCKET);
        }
    }
}

#[test]
fn what_is_at_the_path_is_told() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("file"), "").unwrap();
    drop(UnixListener::bind(path("left")).unwrap());
    let _other = UnixDatagram::bind(path("datagrams")).unwrap();
    let long = "long".repeat(60);
    let cases = [
        ("none/typo", NO_SOCKET),
        ("file/typo", NO_SOCKET),
        (&long, NO_SOCKET),
        ("file", "it is not a stream socket"),
        (".", "it is not a stream socket"),
        ("datagrams", "it is not a stream socket"),
        ("left", "no program listens on the socket"),
    ];
    for (name, text) in cases {
        // Not `Path::join`, which keeps the dot, but the listing would not show why.
        let path = format!("{}/{name}", folder.path().display());
        is_told("exec -- true", 125, "--unix", &path, text);
        is_told("ps", 1, "--uds", &path, text);
    }
}

/// The id may be that of an earlier run, of which this one knows nothing.
#[test]
fn a_run_with_a_chosen_id_stays_unknown() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("typo");
    let command = format!("exec --id {} -- true", "7".repeat(32));
    let ended = run_on(&command, "--unix", missing.to_str().unwrap());
    ended
        .exits(125)
        .complains(NO_SOCKET)
        .complains("whether the command ran is unknown");
}

/// A context id that no VM has, by the kernel's own word.
fn cid_without_guest() -> Option<u32> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    [987_654_321, 3].into_iter().find(|cid| {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None);
        let connect = |fd: OwnedFd| connect(fd.as_raw_fd(), &VsockAddr::new(*cid, 5252));
        fd.and_then(connect) == Err(Errno::ENODEV)
    })
}

#[test]
fn a_context_id_without_a_guest_is_told() {
    let Some(cid) = cid_without_guest() else {
        return skip("absent::a_context_id_without_a_guest", "no such vsock");
    };
    for (command, code) in COMMANDS {
        let text = "there is no guest with this vsock context id";
        is_told(command, code, "--cid", &cid.to_string(), text);
    }
}

/// The VMM runs, but its socket was removed.
#[test]
fn a_vm_without_its_socket_is_told() {
    let workload = Workload::start();
    let vm = crate::host::logs::VmDir::new(&workload);
    let socket = vm.path().join("vsock.sock");
    std::fs::remove_file(&socket).unwrap();
    for (command, code) in COMMANDS {
        let mut tool = tool(command, "--name", "vm");
        tool.env("HOST_TOOL_STATE_DIR", vm.path().parent().unwrap());
        let ended = run(&mut tool).exits(code);
        ended.complains("vsock.sock").complains(NO_SOCKET);
    }
}

/// A caller that sets a time for `probe` waits for a guest that is still to come.
#[test]
fn a_probe_with_a_time_limit_waits() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("later");
    let ended = run_on("probe --timeout 200ms", "--unix", missing.to_str().unwrap());
    ended.exits(2).complains("was not answered in time");
}
