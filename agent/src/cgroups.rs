//! Control groups (cgroup v2): where they are, how they are called, and how much they may use. No
//! I/O.
//!
//! ```text
//! the cgroup that the agent was started in
//! ├─ guest-agent                      the agent, if it could move there
//! └─ guest-agent.vsock-5252           all sessions of the agent that listens on this address
//!    ├─ 1                             a session, by its number
//!    └─ 2
//! ```
//!
//! The folder of the sessions is named after the agent's address, so that an agent finds what its
//! predecessor has left, and several agents on one machine stay apart.

pub(crate) mod limits;

use std::path::{Component, Path, PathBuf};

/// The agent's own cgroup.
pub(crate) const AGENT_NAME: &str = "guest-agent";

/// What the names of the folders with sessions begin with.
pub(crate) const SESSIONS_PREFIX: &str = "guest-agent.";

/// The folder of the cgroup that a process is in: `mounts` is its `/proc/self/mountinfo`, `own` its
/// `/proc/self/cgroup`. `None` if cgroup v2 is not mounted, or not the part with this cgroup.
pub(crate) fn locate(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A process whose cgroup was removed has this behind its path.
    let own = Path::new(own.strip_suffix(" (deleted)").unwrap_or(own));
    mounts.lines().find_map(|line| {
        let (root, target) = cgroup_mount(line)?;
        let below = own.strip_prefix(&root).ok()?;
        // Paths outside of a cgroup namespace begin with "..".
        let is_below = below
            .components()
            .all(|it| matches!(it, Component::Normal(_)));
        is_below.then(|| PathBuf::from(target).join(below))
    })
}

/// Root and mount point of a line of `mountinfo` (`proc_pid_mountinfo(5)`) about cgroup v2.
fn cgroup_mount(line: &str) -> Option<(String, String)> {
    let (fields, kind) = line.split_once(" - ")?;
    if kind.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    Some((unescaped(fields.next()?), unescaped(fields.next()?)))
}

/// The kernel writes blanks, line ends and backslashes in paths as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|it| u8::from_str_radix(it, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => out.push_str(part),
        }
    }
    out
}

/// The name of the folder with the sessions of the agent that listens on a vsock port.
pub(crate) fn name_of_port(port: u32) -> String {
    format!("{SESSIONS_PREFIX}vsock-{port}")
}

/// The same for a Unix socket, whose path is absolute. A name has at most 255 bytes and no slash,
/// so it is the path's digest (FNV-1a, 64 bits).
pub(crate) fn name_of_path(path: &[u8]) -> String {
    let digest = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{SESSIONS_PREFIX}unix-{digest:016x}")
}

/// Whether a cgroup or one below it has a process, as its `cgroup.events` says. What cannot be read
/// counts as one.
pub(crate) fn is_populated(events: &str) -> bool {
    !events.lines().any(|line| line == "populated 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_agents_cgroup_is_found_below_the_mount() {
        let part = "41 31 0:38 /box /my\\040mount rw - cgroup2 none rw\n";
        let cases = [
            (ROOT, "9:pids:/x\n0::/\n", Some("/sys/fs/cgroup/unified")),
            (ROOT, "0::/a/b\n", Some("/sys/fs/cgroup/unified/a/b")),
            (ROOT, "0::/a (deleted)\n", Some("/sys/fs/cgroup/unified/a")),
            (ROOT, "0::/../x\n", None),
            (ROOT, "9:pids:/x\n", None),
            (part, "0::/box/a\n", Some("/my mount/a")),
            (part, "0::/boxes\n", None),
            (part, "0::/\n", None),
            ("", "0::/\n", None),
            ("x - cgroup2", "0::/\n", None),
        ];
        for (mounts, own, expected) in cases {
            let expected = expected.map(PathBuf::from);
            assert_eq!(locate(mounts, own), expected, "{own:?} in {mounts:?}");
        }
    }

    #[test]
    fn each_address_has_a_name_of_its_own() {
        assert_eq!(name_of_port(5252), "guest-agent.vsock-5252");
        let name = name_of_path(b"/run/a.sock");
        assert_eq!(name.len(), "guest-agent.unix-".len() + 16);
        assert_ne!(name, name_of_path(b"/run/b.sock"));
        assert_eq!(name_of_path(b""), "guest-agent.unix-cbf29ce484222325");
    }

    #[test]
    fn only_a_cgroup_that_says_so_is_empty() {
        assert!(!is_populated("populated 0\nfrozen 0\n"));
        for events in ["populated 1\nfrozen 0\n", "", "populated 01\n"] {
            assert!(is_populated(events), "{events:?}");
        }
    }
}
