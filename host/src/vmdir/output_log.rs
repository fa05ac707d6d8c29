//! The workload's output in a VM directory: every byte once, whichever process is killed and when.
//!
//! ```text
//! output.log    standard output and standard error, as they arrived
//! output.log.1  the previous output.log, which had reached its limit
//! output.json   how much of output.log counts, and which stream offsets that stands for
//! output.lock   held by the process that writes the three
//! workload.json how the workload ended, once it has
//! ```
//!
//! The guest keeps output until it is acknowledged, and we acknowledge it once the record that
//! covers it is on disk. A writer that is killed before leaves bytes behind the recorded length;
//! the next writer cuts them off and gets them from the guest again. Readers stop at the recorded
//! length, so they never see bytes that may be cut off.
//!
//! Nothing is synced to disk, because no VM survives a crash of the host.

pub(crate) mod journal;
pub(crate) mod reader;
pub(crate) mod record;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};

use nix::fcntl::OFlag;

use self::journal::{Journal, OUTPUT_LEN_MAX, Step};
use self::record::Record;
use super::names::OUTPUT_RECORD;
pub(crate) use super::names::{OLDER_LOG, OUTPUT_LOG};
use crate::vmdir::{Lock, VmDir, VmDirError};

/// The log, open for its one writer.
#[derive(Debug)]
pub(crate) struct OutputLog {
    files: Files,
    journal: Journal,
    /// Whether there is a record on disk.
    has_record: bool,
    _lock: Lock,
}

impl OutputLog {
    /// Opens the log, or starts one at offset `from` of the streams: 0 for a booted VM, `None` (the
    /// first byte that the guest still has) for a clone.
    pub(crate) fn open(dir: &VmDir, lock: Lock, from: Option<u64>) -> Result<Self, VmDirError> {
        let files = Files {
            dir: dir.clone(),
            file: None,
        };
        let found = read_record(dir)?;
        let record = files.recover(found, from)?;
        Ok(Self {
            files,
            journal: Journal::new(record, OUTPUT_LEN_MAX),
            has_record: found.is_some(),
            _lock: lock,
        })
    }

    /// Discards everything since the last commit, after a commit has failed half-way.
    pub(crate) fn roll_back(&mut self) -> Result<(), VmDirError> {
        self.files.file = None;
        let record = *self.journal.committed();
        let record = self.files.recover(Some(record), None)?;
        self.journal = Journal::new(record, OUTPUT_LEN_MAX);
        Ok(())
    }

    pub(crate) const fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Writes everything so far, and a first record even if there is nothing. After an error call
    /// [`roll_back`](Self::roll_back).
    pub(crate) fn commit(&mut self) -> Result<(), VmDirError> {
        for step in self.journal.poll_commit() {
            self.files.perform(step)?;
        }
        self.journal.handle_committed();
        if !self.has_record {
            self.files.replace_record(self.journal.committed())?;
            self.has_record = true;
        }
        Ok(())
    }
}

/// `None` if no log was started yet.
pub(crate) fn read_record(dir: &VmDir) -> Result<Option<Record>, VmDirError> {
    dir.read(OUTPUT_RECORD, Record::from_object)
}

/// Performs a commit's steps.
#[derive(Debug)]
struct Files {
    dir: VmDir,
    /// The log file, open since the first append.
    file: Option<File>,
}

impl Files {
    /// Makes the log file as long as the record says, and returns the record of what is there.
    fn recover(&self, record: Option<Record>, from: Option<u64>) -> Result<Record, VmDirError> {
        let path = self.dir.file(OUTPUT_LOG);
        let record = record.unwrap_or_else(|| Record::empty(from));
        let found = match self.dir.file_len(OUTPUT_LOG) {
            Ok(len) => len,
            // A writer was killed after `Rotate` and before the record of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && record.len > 0 => {
                let rotated = record.rotated();
                self.replace_record(&rotated)?;
                return Ok(rotated);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(record),
            Err(source) => return Err(VmDirError::file("look at", &path, source)),
        };
        if found > record.len {
            let file = self.dir.open_file(OUTPUT_LOG, OFlag::O_WRONLY);
            file.and_then(|file| file.set_len(record.len))
                .map_err(|source| VmDirError::file("cut", &path, source))?;
        }
        // If the user truncated the file to make room, we continue at its present end.
        let len = record.len.min(found);
        Ok(Record { len, ..record })
    }

    fn perform(&mut self, step: Step) -> Result<(), VmDirError> {
        match step {
            Step::Rotate => self.rotate(),
            Step::Append(bytes) => self.append(&bytes),
            Step::Record(record) => self.replace_record(&record),
        }
    }

    fn rotate(&mut self) -> Result<(), VmDirError> {
        self.file = None;
        let renamed = self.dir.rename(OUTPUT_LOG, OLDER_LOG);
        renamed.map_err(|source| VmDirError::file("rename", &self.dir.file(OUTPUT_LOG), source))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), VmDirError> {
        let path = self.dir.file(OUTPUT_LOG);
        let error = |source| VmDirError::file("write", &path, source);
        let file = match &mut self.file {
            Some(file) => file,
            closed => closed.insert(self.dir.append_to(OUTPUT_LOG).map_err(error)?),
        };
        file.write_all(bytes).map_err(error)
    }

    fn replace_record(&self, record: &Record) -> Result<(), VmDirError> {
        self.dir.replace(OUTPUT_RECORD, &record.to_value())
    }
}
