//! The monotonic clock, and reading and setting the wall clock.

use std::io;
use std::time::Instant;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock, ns since 1970 UTC.
pub(crate) fn wall_ns() -> io::Result<i64> {
    Ok(clock_gettime(ClockId::CLOCK_REALTIME)?.num_nanoseconds())
}

/// Sets the wall clock at once. Slewing would take too long: a restored machine may be behind by
/// hours, and its programs check certificates.
pub(crate) fn set_wall_ns(ns: i64) -> io::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(ns))?;
    Ok(())
}
