//! Naming a guest that was started without the proof, or kept although it failed it.
//!
//! A clone wakes quiesced and refuses all work until a host has named it, so that somebody has to
//! after `--no-wait`: the first `probe` does. `naming.json` in the VM directory holds the name that
//! was meant for the guest. A guest that is named twice with one name acts once, which makes every
//! later try safe, whoever makes it and wherever an earlier one broke off.

use std::time::Instant;

use shared::message::{Rebind, Rebound};

use crate::error::Failure;
use crate::guest::answer::Answer;
use crate::values::VmName;
use crate::vmdir::StateDir;
use crate::vmdir::pending_rebind::{read_pending, remove_pending};
use crate::vmdir::state::Stage;

/// Names the guest of a VM that waits for a name; `ask` carries the request. Does nothing for any
/// other VM.
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
    // Whoever holds the lock may be naming the guest, or have done it.
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
    fn a_vm_that_waits_for_no_name_is_left_alone() {
        let temp = TempDir::new("naming");
        let state_dir = StateDir::open(Some(&temp.path().join("state"))).unwrap();
        let (dir, _lock) = state_dir.create_vm(None).unwrap();
        let settled = rebind_pending(&state_dir, dir.name(), Instant::now(), |_| {
            panic!("nothing is asked")
        });
        settled.unwrap();
    }
}
