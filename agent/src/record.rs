//! The record of the commands that run, for an agent without cgroups: what its successor ends if it
//! is killed. No I/O.
//!
//! A file of [`SLOTS`] lines, each a command's process id and a time. The child writes its line
//! before it executes the program, so that none runs unrecorded, and the agent clears the line when
//! it has reaped the child. The time guards against a process id that was used again: this can
//! only be after the agent's end, because before that the id is free only once its line is clear.

use crate::agent::SESSIONS_MAX;

/// Lines of the record: every session, and as many again that have just ended.
pub(crate) const SLOTS: usize = 2 * SESSIONS_MAX;

/// Digits of a process id.
pub(crate) const PID_LEN: usize = 10;

/// Bytes of a line: two numbers, a blank and a line end.
pub(crate) const LINE_LEN: usize = 32;

/// A line that names no command.
pub(crate) const LINE_UNUSED: [u8; LINE_LEN] = *b"0000000000 00000000000000000000\n";

/// Ticks of `/proc/PID/stat` in a second: the kernel's `USER_HZ`, which is this everywhere.
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// A command in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) pid: i32,
    /// When it executed its program, in ticks since the machine's start, rounded up.
    pub(crate) at: u64,
}

/// A command's line. It is written between clone and exec, so it allocates nothing.
pub(crate) fn line(pid: u64, at: u64) -> [u8; LINE_LEN] {
    let mut line = LINE_UNUSED;
    write_decimal(pid, &mut line[..PID_LEN]);
    write_decimal(at, &mut line[PID_LEN + 1..LINE_LEN - 1]);
    line
}

fn write_decimal(mut value: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[(value % 10) as usize];
        value /= 10;
    }
}

/// The commands in a record. What does not look like a line is skipped.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes.chunks_exact(LINE_LEN).take(SLOTS).filter_map(|line| {
        // A slot that was never used has zero bytes.
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (pid, at) = line.split_once(' ')?;
        let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
        let at = at.parse().ok()?;
        Some(Entry { pid, at })
    })
}

/// A process as its `/proc/PID/stat` describes it: its group, and when it was started.
pub(crate) fn parse_stat(text: &str) -> Option<(i32, u64)> {
    // The program's name may contain anything, also parentheses.
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let group = fields.nth(2)?.parse().ok()?;
    let started_at = fields.nth(16)?.parse().ok()?;
    Some((group, started_at))
}

/// Whether a process is the recorded command: it leads its group, and was started before.
pub(crate) fn is_same(entry: Entry, group: i32, started_at: u64) -> bool {
    group == entry.pid && started_at <= entry.at
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) (b) S 1 40 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 7777 1000 2";

    #[test]
    fn lines_are_read_as_they_are_written() {
        let odd = *b"x y                            \n";
        let minus = *b"-000000042 00000000000000000007\n";
        let lines = [
            [0; LINE_LEN],
            line(0, 0),
            line(42, 7777),
            line(4_194_304, 0),
            line(1, 5),
            odd,
            minus,
        ];
        assert_eq!(lines[1], LINE_UNUSED);
        let found: Vec<_> = entries(&lines.concat()).collect();
        let entry = |pid, at| Entry { pid, at };
        assert_eq!(found, [entry(42, 7777), entry(4_194_304, 0)]);
    }

    #[test]
    fn a_process_is_recognised_by_its_start() {
        assert_eq!(parse_stat(STAT), Some((40, 7777)));
        assert_eq!(parse_stat("42 (a"), None);
        for (group, started_at, expected) in [
            (42, 7777, true),
            (42, 7776, true),
            (42, 7778, false),
            (40, 7777, false),
        ] {
            let entry = Entry { pid: 42, at: 7777 };
            assert_eq!(
                is_same(entry, group, started_at),
                expected,
                "{group} {started_at}"
            );
        }
    }
}
