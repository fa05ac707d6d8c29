//! The last lines of a VM's logs, for messages.

use std::io::{Read, Seek, SeekFrom};

use nix::fcntl::OFlag;

use crate::values::printable;
use crate::vmdir::{CONSOLE_LOG, SUPERVISOR_LOG, VmDir};
use crate::vmm::VMM_LOG;

/// Most lines and bytes of a log that a message shows.
const LINES_MAX: usize = 8;
const BYTES_MAX: u64 = 8192;

/// Of the console: as long as a kernel panic.
const CONSOLE_LINES_MAX: usize = 28;

/// The last lines of each log under a heading, safe for a terminal; `None` if all are empty.
pub(crate) fn tails(dir: &VmDir) -> Option<String> {
    let mut text = String::new();
    for name in [SUPERVISOR_LOG, VMM_LOG, CONSOLE_LOG] {
        // The supervisor's info lines are about a VM that started well.
        let lines = tail(dir, name).unwrap_or_default();
        let is_shown = |line: &&String| name != SUPERVISOR_LOG || !line.contains(": info: ");
        let lines: Vec<_> = lines.iter().filter(is_shown).collect();
        let lines_max = if name == CONSOLE_LOG {
            CONSOLE_LINES_MAX
        } else {
            LINES_MAX
        };
        let lines = &lines[lines.len().saturating_sub(lines_max)..];
        if !lines.is_empty() {
            text.push_str(&format!("--- the end of {name}\n"));
            lines
                .iter()
                .for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    }
    (!text.is_empty()).then_some(text)
}

/// The lines at the end of a file, with control characters escaped.
fn tail(dir: &VmDir, name: &str) -> std::io::Result<Vec<String>> {
    let mut file = dir.open_file(name, OFlag::O_RDONLY)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(|line| printable(line.trim_end())).collect())
}

/// The end of the VMM's own log, in which the VMM layer looks for known faults.
pub(crate) fn vmm_log(dir: &VmDir) -> String {
    tail(dir, VMM_LOG).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn tails_are_short_and_escaped() {
        let temp = TempDir::new("logs");
        let dir = VmDir::of_test(temp.path());
        assert_eq!(tails(&dir), None);
        fs::write(dir.file(SUPERVISOR_LOG), "host-tool: info: fine\n").unwrap();
        assert_eq!(tails(&dir), None);
        let console: String = (0..100)
            .map(|n| format!("\n\x1b[31mline {n}\r\n"))
            .collect();
        fs::write(dir.file(CONSOLE_LOG), console).unwrap();
        let text = tails(&dir).unwrap();
        assert_eq!(text.lines().count(), 1 + CONSOLE_LINES_MAX);
        assert!(text.ends_with("  \\u{1b}[31mline 99\n"), "{text}");
    }

    /// The VMM can write to the directory, and could put other things in the place of its logs.
    #[test]
    fn other_than_regular_files_are_not_read() {
        let temp = TempDir::new("logs");
        let dir = VmDir::of_test(temp.path());
        mkfifo(&dir.file(VMM_LOG), Mode::S_IRWXU).unwrap();
        fs::write(temp.path().join("secret"), "secret").unwrap();
        symlink("secret", dir.file(CONSOLE_LOG)).unwrap();
        assert_eq!((tails(&dir), vmm_log(&dir)), (None, String::new()));
    }
}
