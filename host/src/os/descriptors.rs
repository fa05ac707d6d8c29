//! How many files this process may have open at once.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::{Failure, FailureContext};
use crate::exit::Exit;

/// Descriptors that a process has open whatever it does, with room to spare.
const BASE: u64 = 64;

/// Makes room for `count` descriptors beside the usual few, as far as the hard limit goes: the
/// soft one is 1024 nearly everywhere, for the sake of programs that call `select(2)`.
///
/// # Errors
///
/// With `what` needs them when the hard limit is lower.
pub fn make_room(count: u64, what: &str) -> Result<(), Failure> {
    let needed = count.saturating_add(BASE);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).or_fail(Exit::Internal, || {
        "cannot read the limit of open files".to_owned()
    })?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        let text = format!(
            "{what} needs {needed} open files, and no more than {hard} are allowed here; \
             raise the hard limit (ulimit -Hn)"
        );
        return Err(Failure::usage(text));
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).or_fail(Exit::Internal, || {
        format!("cannot allow {needed} open files")
    })
}
