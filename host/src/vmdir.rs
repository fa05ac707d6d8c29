//! Where VMs are kept: one private directory per VM under the state directory.
//!
//! ```text
//! STATE_DIR/NAME/made-by-host-tool  says that the directory may be removed; see [`mark`]
//!                lock             held by a command that changes the VM
//!                supervisor.lock  held by the VM's supervisor while it runs
//!                launch.json      what the supervisor runs
//!                state.json       what is known about the VM, replaced by rename
//!                state.next.json  the state that the supervisor publishes when the VM is in use
//!                exit.json        how the VMM ended, once it has
//!                health-check.json, health.json  see [`health`]
//!                vmm.log, console.log, supervisor.log
//!                output.log …     the workload's output; see [`output_log`]
//!                api.sock, vsock.sock, drive0 …  the VMM's own, by relative names
//! ```
//!
//! Each file has one writer: the holder of `lock` writes `state.json`, the supervisor `exit.json`
//! and the logs. A directory appears and disappears by rename, so no name is ever half there.

mod error;
pub(crate) mod health;
pub(crate) mod launch_file;
mod lock;
pub(crate) mod log_tails;
pub(crate) mod names;
pub(crate) mod output_log;
pub(crate) mod pending_rebind;
pub(crate) mod state;
mod state_dir;
pub(crate) mod stray;
#[cfg(test)]
mod tests;
mod vm_dir;

pub(crate) use self::error::VmDirError;
pub(crate) use self::lock::Lock;
pub(crate) use self::names::{CONSOLE_LOG, SUPERVISOR_LOG};
pub(crate) use self::state_dir::{Found, StateDir};
pub(crate) use self::vm_dir::{RunningVm, VmDir, VmStatus};

/// Prefixes of directories that are being made or removed. No VM name begins with a dot.
const NEW_PREFIX: &str = ".new-";
const TRASH_PREFIX: &str = ".trash-";
