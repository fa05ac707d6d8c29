//! Finds the guest that a command is about.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::TargetArguments;
use crate::error::Failure;
use crate::guest::address::{Endpoint, GuestAddress};
use crate::guest::requests::Guest;
use crate::lifecycle::snapshot::finish_interrupted;
use crate::os::deadline::Watch;
use crate::vmdir::StateDir;

/// Time limit for the repair of an interrupted snapshot. A command without `--timeout` has its own
/// time after it.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// A guest, with its address.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: Endpoint,
    /// The VMM's pidfd, for a VM of this host.
    process: Option<OwnedFd>,
    /// When the command must be done, by its `--timeout`.
    pub(crate) end: Option<Instant>,
}

impl Target {
    /// A guest at `endpoint`, in the VMM that the pidfd `process` refers to.
    pub(crate) const fn new(endpoint: Endpoint, process: Option<OwnedFd>) -> Self {
        Self {
            endpoint,
            process,
            end: None,
        }
    }

    /// Finds the guest that the command line selects.
    pub(crate) fn find(
        arguments: TargetArguments<'_>,
        state_dir: Option<&Path>,
    ) -> Result<Self, Failure> {
        let TargetArguments {
            name,
            uds,
            cid,
            unix,
            port,
            timeout,
        } = arguments;
        let begun_at = Instant::now();
        let end = timeout.map(|timeout| begun_at + timeout);
        let address = match (name, uds, cid, unix) {
            (Some(name), None, None, None) => {
                let vm = StateDir::existing(state_dir)?.vm(name)?.running()?;
                let repaired_by = begun_at + REPAIR_TIMEOUT;
                let vm =
                    finish_interrupted(vm, end.map_or(repaired_by, |end| end.min(repaired_by)))?;
                return Ok(Self {
                    end,
                    ..Self::new(vm.endpoint(port), Some(vm.process))
                });
            }
            (None, Some(path), None, None) => GuestAddress::HybridVsock {
                uds_path: path.clone(),
            },
            (None, None, Some(cid), None) => GuestAddress::Vsock { cid },
            (None, None, None, Some(path)) => GuestAddress::Unix { path: path.clone() },
            _ => {
                let text = "select the guest with exactly one of --name, --uds, --cid and --unix";
                return Err(Failure::usage(text));
            }
        };
        Ok(Self {
            end,
            ..Self::new(Endpoint { address, port }, None)
        })
    }

    /// When the command must be done: by its `--timeout`, or else `default` from now.
    pub(crate) fn deadline(&self, default: Duration) -> Instant {
        self.end.unwrap_or_else(|| Instant::now() + default)
    }

    /// A client for the guest, which must be there. Its requests end at `deadline` or when the VMM
    /// ends.
    pub(crate) fn guest(&self, deadline: Instant) -> Guest<'_> {
        Guest {
            endpoint: self.endpoint.clone(),
            watch: self.watch(deadline),
            is_awaited: false,
        }
    }

    /// Ends waits for this guest at `deadline` or when the VMM ends.
    pub(crate) fn watch(&self, deadline: Instant) -> Watch<'_> {
        Watch::with_process(deadline, self.process.as_ref().map(AsFd::as_fd))
    }
}
