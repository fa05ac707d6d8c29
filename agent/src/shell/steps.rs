//! The steps of a rebind, as system calls.
//!
//! No fork, no name service, and no link is taken down. The files written are one or two lines on
//! the image's own root or on a tmpfs, and are not synced.

use std::io;
use std::path::Path;

use shared::message::{Identity, Network};

use super::{Shell, network};
use crate::agent::{StepAction, StepFailure, StepOutcome};
use crate::sys::{clock, entropy};

/// `machine-id(5)`.
const MACHINE_ID_PATH: &str = "/etc/machine-id";

impl Shell {
    pub(crate) fn perform_step(&mut self, action: StepAction) -> StepOutcome {
        if let Some(failure) = self.failpoints.take_step(&action) {
            if action == StepAction::RearmListener {
                // As after a failed registration: out of the poll set.
                let _ = self.registry.deregister(&mut self.listener);
            }
            return StepOutcome::Failed(failure);
        }
        match action {
            StepAction::CloseConnections(connections) => {
                for id in connections {
                    self.close_connection(id);
                }
                StepOutcome::Done
            }
            StepAction::RearmListener => match self.rearm_listener() {
                Ok(()) => StepOutcome::Done,
                Err(err) => failed("cannot register the listener", &err),
            },
            StepAction::SetClock { .. }
            | StepAction::Reseed { .. }
            | StepAction::SetIdentity(_)
                if self.options.is_unprivileged =>
            {
                StepOutcome::Unprivileged
            }
            StepAction::SetClock { wall_ns } => set_clock(wall_ns),
            StepAction::Reseed { entropy } => match entropy::reseed(&entropy) {
                // Before its first initialization the generator has produced nothing that a clone
                // could share, and the bytes are credited: the purpose is met.
                Ok(entropy::Reseed::Done | entropy::Reseed::NotReadyYet) => StepOutcome::Done,
                Err(err) => failed("cannot reseed /dev/urandom", &err),
            },
            StepAction::SetIdentity(identity) => set_identity(&identity),
        }
    }
}

fn set_clock(wall_ns: i64) -> StepOutcome {
    let moved = clock::wall_ns().and_then(|before| {
        clock::set_wall_ns(wall_ns)?;
        Ok(wall_ns.saturating_sub(before))
    });
    match moved {
        Ok(step_ns) => StepOutcome::ClockMoved { step_ns },
        Err(err) => failed("cannot set the wall clock", &err),
    }
}

fn set_identity(identity: &Identity) -> StepOutcome {
    if let Some(hostname) = &identity.hostname
        && let Err(err) = nix::unistd::sethostname(hostname)
    {
        return failed("cannot set the host name", &err.into());
    }
    if let Some(machine_id) = &identity.machine_id
        && let Err(err) = write_machine_id(Path::new(MACHINE_ID_PATH), machine_id)
    {
        return failed(&format!("cannot write {MACHINE_ID_PATH}"), &err);
    }
    if identity.network != Network::default()
        && let Err(failure) = network::set(&identity.network)
    {
        return StepOutcome::Failed(failure);
    }
    StepOutcome::Done
}

/// Replaces the file by rename, so that no reader sees half of it. An image without the directory
/// has no reader.
fn write_machine_id(path: &Path, machine_id: &str) -> io::Result<()> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, format!("{machine_id}\n"))?;
    std::fs::rename(&temporary, path)
}

fn failed(what: &str, err: &io::Error) -> StepOutcome {
    StepOutcome::Failed(StepFailure {
        errno: err.raw_os_error(),
        text: format!("{what}: {err}"),
    })
}
