//! The time of day, and durations as protocols and records have them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, in ms since 1970 UTC.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    to_ms(since)
}

/// In whole ms.
pub(crate) fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// In whole µs.
pub(crate) fn to_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
