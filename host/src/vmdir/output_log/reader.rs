//! Reading the workload's output while another process writes it: only what was committed.
//!
//! Positions in the log count from the first byte that was ever logged, so a rotation does not
//! change them.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::OFlag;

use super::{OLDER_LOG, OUTPUT_LOG, read_record};
use crate::vmdir::{VmDir, VmDirError};

/// In bytes.
const BLOCK_LEN: usize = 64 * 1024;

/// The log as of one commit.
#[derive(Debug)]
pub(crate) struct View {
    files: Vec<Part>,
    /// Position behind the last byte.
    end: u64,
}

/// Bytes of the log in one file.
#[derive(Debug)]
struct Part {
    file: File,
    /// Position of the file's first byte.
    start: u64,
    /// Position behind the last byte that counts.
    end: u64,
}

impl View {
    /// The log as it is now; empty if none was started yet.
    pub(crate) fn open(dir: &VmDir) -> Result<Self, VmDirError> {
        loop {
            let Some(record) = read_record(dir)? else {
                let files = Vec::new();
                return Ok(Self { files, end: 0 });
            };
            let mut current = open(dir, OUTPUT_LOG)?;
            let mut older = open(dir, OLDER_LOG)?;
            // The log may have been rotated after we read the record.
            if read_record(dir)?.is_none_or(|now| now.start != record.start) {
                continue;
            }
            if current.is_none() && record.len > 0 {
                // A rotation is between its rename and its record, or was killed there.
                current = older.take();
            } else if let (Some((_, one)), Some((_, other))) = (&current, &older)
                && (one.dev(), one.ino()) == (other.dev(), other.ino())
            {
                // It was renamed between our two opens.
                older = None;
            }
            let older = older.map(|(file, metadata)| Part {
                start: record.older_start,
                end: record
                    .start
                    .min(record.older_start.saturating_add(metadata.len())),
                file,
            });
            let current = current.map(|(file, _)| Part {
                start: record.start,
                end: record.end(),
                file,
            });
            return Ok(Self {
                files: older.into_iter().chain(current).collect(),
                end: record.end(),
            });
        }
    }

    /// Position of the first byte that is still there.
    pub(crate) fn start(&self) -> u64 {
        self.files.first().map_or(self.end, |part| part.start)
    }

    /// Fills `buffer` with bytes from `position` on. Returns the position of the first, which is
    /// higher if bytes at `position` are gone, and their number: 0 at the end.
    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> io::Result<(u64, usize)> {
        for part in self.files.iter().filter(|part| position < part.end) {
            let from = position.max(part.start);
            let left = usize::try_from(part.end - from).unwrap_or(usize::MAX);
            let len = buffer.len().min(left);
            match part.file.read_at(&mut buffer[..len], from - part.start)? {
                // The file was truncated behind our back.
                0 => {}
                len => return Ok((from, len)),
            }
        }
        Ok((position.max(self.end), 0))
    }

    /// Position of the last `count` lines. A last line without a newline counts.
    pub(crate) fn tail(&self, count: u64) -> io::Result<u64> {
        let start = self.start();
        let mut block_end = self.end;
        let mut left = count;
        if count == 0 {
            return Ok(block_end);
        }
        let mut buffer = vec![0; BLOCK_LEN];
        while block_end > start {
            let block_len = u64::try_from(BLOCK_LEN).unwrap_or(u64::MAX);
            let block_start = block_end.saturating_sub(block_len).max(start);
            let bytes = self.read_between(block_start, block_end, &mut buffer)?;
            let mut position = block_end;
            for &byte in bytes.iter().rev() {
                // The newline at the very end does not begin another line.
                if byte == b'\n' && position != self.end {
                    left -= 1;
                    if left == 0 {
                        return Ok(position);
                    }
                }
                position -= 1;
            }
            block_end = block_start;
        }
        Ok(start)
    }

    /// All bytes between two positions that are at most a block apart.
    fn read_between<'a>(&self, from: u64, to: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let len = usize::try_from(to - from).unwrap_or(usize::MAX);
        let mut filled = 0;
        while filled < len {
            let position = to - u64::try_from(len - filled).unwrap_or(u64::MAX);
            match self.read(position, &mut buffer[filled..len])? {
                (found, read) if found == position && read > 0 => filled += read,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(&buffer[..len])
    }
}

/// `None` if there is no such file.
fn open(dir: &VmDir, name: &str) -> Result<Option<(File, Metadata)>, VmDirError> {
    let opened = dir.open_file(name, OFlag::O_RDONLY).and_then(|file| {
        let metadata = file.metadata()?;
        Ok((file, metadata))
    });
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(VmDirError::file("read", &dir.file(name), source)),
    }
}
