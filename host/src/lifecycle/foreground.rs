//! `--foreground`: the command waits until the VM ends, for a terminal or a service manager.

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

/// After a signal the guest has this long to power off, and after that the VMM has
/// [`KILL_TIMEOUT`]. Service managers kill after 30 s (Nomad) or 90 s (systemd).
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The signals that end the foreground, blocked and read from a descriptor.
///
/// They are taken before the VM is reported ready. A service manager may signal right after that
/// report, and the signal must power the guest off and not kill this process.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    pub(crate) fn take() -> Result<Self, Failure> {
        let taken = take_stop_signals();
        taken
            .map(Self)
            .or_fail(Exit::Internal, || "cannot take signals".to_owned())
    }
}

/// Waits until the VM ends. A signal powers it off.
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
            is_awaited: true,
        };
        if let Err(failure) = power_off(&guest) {
            log::warn!("the guest did not power off: {failure}");
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

/// Waits for either, and returns `true` when the VMM has ended, `false` when a signal came first.
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
