//! How much the sessions of a guest may use, relative to what it has. No I/O.
//!
//! ```text
//! all of it
//! ├─ kept back for the agent: its budget for rings, and a little for itself
//! └─ all sessions together
//!    ├─ kept back for the others: an eighth
//!    └─ one session, unless its request says otherwise
//! ```
//!
//! So a command that takes all it can get leaves enough for another one and for the agent.

/// The part of the memory that the agent may hold for its clients: one part in so many.
const AGENT_SHARE: u64 = 8;

/// The most that it holds, on a machine of any size.
const AGENT_LEN_MAX: u64 = 512 * 1024 * 1024;

/// What the agent itself and the probe's process need.
const AGENT_LEN: u64 = 8 * 1024 * 1024;

/// Process ids that are kept back: one part in so many. Most are those of the kernel's threads.
const PIDS_SHARE: u64 = 4;

/// What one session leaves to the others of what all may use: one part in so many.
const OTHERS_SHARE: u64 = 8;

/// What may be used. `None` is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) pids: Option<u64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
}

/// What the sessions may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// All together.
    pub(crate) all: Share,
    /// One, by default.
    pub(crate) one: Share,
    /// Bytes that the agent keeps.
    pub(crate) agent_memory: Option<u64>,
}

/// Divides what there is: process ids and bytes.
pub(crate) fn divide(total: Share) -> Shares {
    let agent_memory = total
        .memory
        .map(|len| (len / AGENT_SHARE).min(AGENT_LEN_MAX) + AGENT_LEN)
        // Of a machine that is smaller than an agent needs, half.
        .zip(total.memory)
        .map(|(kept, len)| kept.min(len / 2));
    let all = Share {
        pids: total.pids.map(|count| count - count / PIDS_SHARE),
        memory: total.memory.zip(agent_memory).map(|(len, kept)| len - kept),
    };
    let one = |all: Option<u64>| all.map(|all| all - all / OTHERS_SHARE);
    Shares {
        all,
        one: Share {
            pids: one(all.pids),
            memory: one(all.memory),
        },
        agent_memory,
    }
}

/// A number of bytes in `/proc/meminfo`.
pub(crate) fn memory_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: u64 = line?.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn one_session_leaves_room_for_others_and_all_for_the_agent() {
        for (mib, agent, all, one) in [
            (8, 4, 4, 4),
            (96, 20, 76, 67),
            (1024, 136, 888, 777),
            (65536, 520, 65016, 56889),
        ] {
            let total = Share {
                pids: Some(1000),
                memory: Some(mib * MIB),
            };
            let shares = divide(total);
            let found = [shares.agent_memory, shares.all.memory, shares.one.memory];
            let in_mib = found.map(|it| it.map(|it| it.div_ceil(MIB)));
            assert_eq!(in_mib, [agent, all, one].map(Some), "{mib}");
            assert_eq!((shares.all.pids, shares.one.pids), (Some(750), Some(657)));
        }
        assert_eq!(divide(Share::default()), Shares::default());
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:         129 kB\nMemAvailable:       7 kB\nHugePages_Total:  0\n";
        assert_eq!(memory_of(text, "MemTotal"), Some(129 * 1024));
        assert_eq!(memory_of(text, "MemAvailable"), Some(7 * 1024));
        assert_eq!(memory_of(text, "Mem"), None);
        assert_eq!(memory_of(text, "HugePages_Total"), None);
    }
}
