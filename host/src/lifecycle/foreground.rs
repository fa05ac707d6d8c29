//! Staying with a VM until it ends, for a terminal or a service manager.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;
use crate::guest::address::Endpoint;
use crate::guest::requests::Guest;
use crate::lifecycle::ending::power_off;
use crate::os::deadline::Watch;
use crate::os::notify::{STOPPING, notify};
use crate::os::signals::take_stop_signals;
use crate::supervisor::client::Supervisor;
use crate::supervisor::link::Order;

/// How long the guest is given after a signal, and the VMM after that. Service managers kill after
/// 30 s (Nomad) or 90 s (systemd).
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The signals that end the foreground, which wait to be read from now on.
///
/// Taken before the VM is reported ready: whoever reads that may send one at once, and the guest
/// shall then be powered off and not just be gone.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Holds the signals back.
    pub(crate) fn take() -> Result<Self, Failure> {
        let taken = take_stop_signals();
        taken
            .map(Self)
            .or_fail(Exit::Internal, || "cannot take signals".to_owned())
    }
}

/// Waits for the end of the VM. A signal powers it off first.
pub(crate) fn wait(
    signals: &Signals,
    mut supervisor: Supervisor,
    endpoint: &Endpoint,
    process: &OwnedFd,
) -> Result<(), Failure> {
    let local = |error: io::Error| Failure::new(Exit::Internal, error);
    let has_ended = await_end(&signals.0, process).map_err(local)?;
    notify(STOPPING);
    if !has_ended {
        log::info!("powering off");
        let guest = Guest {
            endpoint: endpoint.clone(),
            watch: Watch::with_process(Instant::now() + STOP_TIMEOUT, Some(process.as_fd())),
        };
        if let Err(failure) = power_off(&guest) {
            log::warn!("the guest does not power off by itself: {failure}");
            let ordered = supervisor.order(Order::End);
            ordered.or_fail(Exit::Internal, || "the VM's supervisor is gone".to_owned())?;
        }
        supervisor.await_ended(&Watch::until(Instant::now() + KILL_TIMEOUT))?;
        return supervisor.join().map_err(local);
    }
    let exit = supervisor.await_ended(&Watch::until(Instant::now() + KILL_TIMEOUT))?;
    supervisor.join().map_err(local)?;
    if exit.is_clean() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::VmmEnded,
        format!("the VMM ended: {exit}"),
    ))
}

/// `true` once the VMM has ended, `false` when a signal came first.
fn await_end(signals: &SignalFd, process: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[0].any().unwrap_or(true) => return Ok(true),
            Ok(_) if fds[1].any().unwrap_or(true) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
