//! How much memory the agent takes for what others make it hold: a share of what there is.
//!
//! The smallest of these counts: the machine's memory, the limits of the agent's control groups,
//! and its own limits on address space and data. They are read once, at the start. A clone has the
//! memory of its source.

use std::fs;
use std::iter;

use crate::sys::memory;

/// The agent's share: one part in so many.
const SHARE: u64 = 8;

/// What it takes in a machine of any size: a few commands can run.
const LEN_MIN: u64 = 1024 * 1024;

/// What it takes at most, however large the machine is: both outputs of every session that may run
/// have their longest ring.
const LEN_MAX: u64 = 512 * 1024 * 1024;

/// Folder of the control groups (version 2).
const CGROUPS: &str = "/sys/fs/cgroup";

/// Bytes of the agent's budget.
pub(crate) fn budget() -> usize {
    let list = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |group: &str| fs::read_to_string(format!("{CGROUPS}{group}/memory.max")).ok();
    let sizes = memory::total().into_iter().chain(memory::limit());
    share_of(sizes.chain(cgroup_limits(&list, read)))
}

/// The agent's share of the smallest of these sizes.
fn share_of(sizes: impl Iterator<Item = u64>) -> usize {
    let share = sizes.min().map_or(0, |size| size / SHARE);
    usize::try_from(share.clamp(LEN_MIN, LEN_MAX)).unwrap_or(usize::MAX)
}

/// The memory limits of the control group that a process is in and of those around it, given the
/// process's list of groups (`cgroups(7)`). The group of version 2 is the last of the list. The
/// outermost has no limit.
fn cgroup_limits<'a>(
    list: &'a str,
    read: impl Fn(&str) -> Option<String> + 'a,
) -> impl Iterator<Item = u64> + 'a {
    let last = list.lines().next_back();
    let mut group = last.and_then(|line| line.strip_prefix("0::"));
    let around = iter::from_fn(move || {
        let found = group.filter(|it| it.len() > 1)?;
        group = found.rsplit_once('/').map(|(parent, _)| parent);
        Some(found)
    });
    // Without a limit the text is "max".
    around.filter_map(move |group| read(group)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_smallest_size_is_shared() {
        let cases: [(&[u64], u64); 7] = [
            (&[], LEN_MIN),
            (&[0], LEN_MIN),
            (&[LEN_MIN * SHARE], LEN_MIN),
            (&[128 * MIB], 16 * MIB),
            (&[1024 * MIB, 64 * MIB, 512 * MIB], 8 * MIB),
            (&[LEN_MAX * SHARE], LEN_MAX),
            (&[u64::MAX], LEN_MAX),
        ];
        for (sizes, expected) in cases {
            let found = share_of(sizes.iter().copied());
            assert_eq!(found as u64, expected, "{sizes:?}");
        }
    }

    #[test]
    fn limits_of_control_groups_are_found() {
        let files = [("/a/b", "max\n"), ("/a", "4096\n"), ("/z", "no number")];
        let read = |group: &str| {
            let found = files.iter().find(|it| it.0 == group);
            found.map(|it| it.1.to_owned())
        };
        let cases: [(&str, &[u64]); 8] = [
            ("", &[]),
            ("0::/\n", &[]),
            ("0::\n", &[]),
            ("0::/a/b\n", &[4096]),
            ("0::/a/b/c/d\n", &[4096]),
            ("0::/z\n", &[]),
            ("3:cpu:/q\n2:memory:/x/y\n0::/a\n", &[4096]),
            ("3:cpu:/a\n", &[]),
        ];
        for (list, expected) in cases {
            let found: Vec<u64> = cgroup_limits(list, read).collect();
            assert_eq!(found, expected, "{list:?}");
        }
    }

    #[test]
    fn this_machine_has_a_size() {
        assert!(memory::total().is_some_and(|total| total > MIB));
        assert!(budget() as u64 >= LEN_MIN);
    }
}
