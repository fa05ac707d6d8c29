//! The rebind of a guest that was started with `--no-wait`, or that failed its proof and was kept.
//!
//! A clone wakes quiesced and refuses all work until a host has rebound it. After `--no-wait` the
//! first `probe` does that, with the generation from `naming.json` in the VM directory. A guest
//! that is rebound twice with one generation acts once. So any command may try again, wherever an
//! earlier one stopped.

use std::time::Instant;

use shared::message::{Rebind, Rebound};

use crate::error::Failure;
use crate::guest::answer::Answer;
use crate::values::VmName;
use crate::vmdir::StateDir;
use crate::vmdir::pending_rebind::{read_pending, remove_pending};
use crate::vmdir::state::Stage;

/// Rebinds a guest that still waits for its generation; `ask` sends the request. Does nothing for
/// any other VM.
pub(crate) fn rebind_pending(
    state_dir: &StateDir,
    name: &VmName,
    deadline: Instant,
    ask: impl FnOnce(Rebind) -> Result<Answer<Rebound>, Failure>,
) -> Result<(), Failure> {
    let dir = state_dir.vm(name)?;
    if read_pending(&dir)?.is_none() {
        return Ok(());
    }
    // Another command may be rebinding the guest, so read again under the lock.
    let lock = dir.lock(deadline)?;
    let Some(plan) = read_pending(&dir)? else {
        return Ok(());
    };
    let mut vm = dir.running_under(&lock)?;
    if vm.state.generation.is_none() {
        let answer = ask(plan.request()?)?;
        vm.state.generation = Some(plan.generation);
        vm.state.agent_version = Some(answer.hello.version);
        vm.state.stage = Stage::Ready;
        vm.dir.write_state(&vm.state)?;
    }
    remove_pending(&vm.dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_vm_without_a_pending_rebind_is_left_alone() {
        let temp = TempDir::new("rebind");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, _lock) = state_dir.create_vm(None).unwrap();
        let rebound = rebind_pending(&state_dir, dir.name(), Instant::now(), |_| {
            panic!("the guest is asked")
        });
        rebound.unwrap();
    }
}
