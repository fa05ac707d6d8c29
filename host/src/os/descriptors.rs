//! The limit on open files of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;

/// Descriptors that this process has open in any case, with a margin.
const BASE: u64 = 64;

/// Raises the soft limit to `count` descriptors beside the usual few. It is 1024 nearly everywhere,
/// because programs that call `select(2)` cannot use more.
///
/// # Errors
///
/// If the hard limit is lower. `what` is the subject of the message.
pub(crate) fn make_room(count: u64, what: &str) -> Result<(), Failure> {
    let needed = count.saturating_add(BASE);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).or_fail(Exit::Internal, || {
        "cannot read the limit of open files".to_owned()
    })?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        let text = format!(
            "{what} needs {needed} open files and the hard limit is {hard}; raise it (ulimit -Hn)"
        );
        return Err(Failure::usage(text));
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).or_fail(Exit::Internal, || {
        format!("cannot allow {needed} open files")
    })
}
