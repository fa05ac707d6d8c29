//! How much memory this machine has, and how much of it this process may take.

#![expect(unsafe_code, reason = "sysinfo and getrlimit take raw structures")]

use super::check;

/// Bytes of memory that the kernel manages. `None` if it does not say.
pub(crate) fn total() -> Option<u64> {
    // SAFETY: an all-zero `sysinfo` is a valid value of that plain C struct.
    let mut found: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `sysinfo`.
    check(unsafe { libc::sysinfo(&raw mut found) }).ok()?;
    #[expect(
        clippy::useless_conversion,
        reason = "the field is shorter on 32-bit machines"
    )]
    let total = u64::try_from(found.totalram).ok()?;
    total.checked_mul(found.mem_unit.into())
}

/// The lower of the limits on address space and on data (`RLIMIT_AS`, `RLIMIT_DATA`), in bytes.
pub(crate) fn limit() -> Option<u64> {
    let limit_of = |resource| {
        let mut found = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the pointer is to a live `rlimit`.
        check(unsafe { libc::getrlimit(resource, &raw mut found) }).ok()?;
        (found.rlim_cur != libc::RLIM_INFINITY).then_some(found.rlim_cur)
    };
    [libc::RLIMIT_AS, libc::RLIMIT_DATA]
        .into_iter()
        .filter_map(limit_of)
        .min()
}
