//! The two clocks: monotonic for deciding, wall clock for setting.

use std::io;
use std::time::Instant;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

/// Reads the monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds since the epoch on the wall clock.
pub(crate) fn wall_ns() -> io::Result<i64> {
    Ok(clock_gettime(ClockId::CLOCK_REALTIME)?.num_nanoseconds())
}

/// Steps the wall clock. Never slews: a restored machine is off by hours, and certificates are
/// checked at once.
pub(crate) fn set_wall_ns(ns: i64) -> io::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(ns))?;
    Ok(())
}
