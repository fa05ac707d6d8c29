//! The smallest useful guest: an `/init` that loads the image's modules, listens on the agent's
//! vsock port and echoes, one connection after the other. Its restore is the floor for a restore of
//! the agent.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, VsockAddr, accept, bind, listen, recv,
    send, socket,
};
use nix::unistd::close;
use shared::limits::PORT_DEFAULT;

fn main() -> std::io::Result<()> {
    let list = fs::read_to_string("/etc/guest-agent/modules").unwrap_or_default();
    for path in list.lines().filter(|line| line.starts_with('/')) {
        finit_module(File::open(path)?, c"", ModuleInitFlags::empty())?;
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(
        listener.as_raw_fd(),
        &VsockAddr::new(VMADDR_CID_ANY, PORT_DEFAULT),
    )?;
    listen(&listener, Backlog::MAXCONN)?;
    loop {
        let Ok(peer) = accept(listener.as_raw_fd()) else {
            continue;
        };
        let mut bytes = [0; 64];
        // An error of one peer must not keep the next one from being served.
        while let Ok(len @ 1..) = recv(peer, &mut bytes, MsgFlags::empty()) {
            if send(peer, &bytes[..len], MsgFlags::MSG_NOSIGNAL).is_err() {
                break;
            }
        }
        let _ = close(peer);
    }
}
