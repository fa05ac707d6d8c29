//! The workload's output in a VM directory: every byte once, whoever is killed and when.
//!
//! ```text
//! output.log    what came, standard output and standard error as they came
//! output.log.1  what was there before, once `output.log` had grown too long
//! output.json   how much of `output.log` counts, and which offsets that stands for
//! output.lock   held by whoever writes the three
//! workload.json how the workload ended, once it has
//! ```
//!
//! The guest keeps its output until it is acknowledged, which happens when the record that covers
//! it has replaced the one before. A writer that was killed in between leaves bytes behind the
//! recorded length; the next one cuts them off and has them from the guest again. Readers go by
//! the record, too, so that they never see what may be cut off.
//!
//! What must survive a crash of the host is not here: no VM does.

pub mod journal;
pub mod reader;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use self::journal::{Journal, OUTPUT_LEN_MAX, Record, Step};
use crate::os::{files, json};
use crate::vmdir::{Lock, VmDir, VmDirError};

/// The workload's output.
pub const OUTPUT_LOG: &str = "output.log";

/// What was in [`OUTPUT_LOG`] before.
pub const OLDER_LOG: &str = "output.log.1";

/// How much of [`OUTPUT_LOG`] counts.
pub const OUTPUT_RECORD: &str = "output.json";

/// The log, open for its one writer.
#[derive(Debug)]
pub struct OutputLog {
    files: Files,
    journal: Journal,
    /// Whether there is a record on disk.
    has_record: bool,
    _lock: Lock,
}

impl OutputLog {
    /// Opens the log, or begins one. Of a VM that was booted the streams are wanted from their
    /// first bytes, of a clone (`from` is `None`) from the first ones that its guest still has.
    pub fn open(dir: &VmDir, lock: Lock, from: Option<u64>) -> Result<Self, VmDirError> {
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

    /// Forgets everything since the last commit, which failed half-way.
    pub fn roll_back(&mut self) -> Result<(), VmDirError> {
        self.files.file = None;
        let record = *self.journal.committed();
        let record = self.files.recover(Some(record), None)?;
        self.journal = Journal::new(record, OUTPUT_LEN_MAX);
        Ok(())
    }

    /// Where what comes is brought in.
    pub const fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Makes everything so far durable, also that there was nothing. After an error only
    /// [`roll_back`](Self::roll_back) helps.
    pub fn commit(&mut self) -> Result<(), VmDirError> {
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

/// The record; `None` when nothing was logged yet.
pub fn read_record(dir: &VmDir) -> Result<Option<Record>, VmDirError> {
    let path = dir.file(OUTPUT_RECORD);
    Ok(json::read_if_exists(&path, Record::from_object)?)
}

/// Performs steps.
#[derive(Debug)]
struct Files {
    dir: VmDir,
    /// The log file, once something was appended.
    file: Option<File>,
}

impl Files {
    /// Makes the log file what the record says, and gives the record of what is there.
    fn recover(&self, record: Option<Record>, from: Option<u64>) -> Result<Record, VmDirError> {
        let path = self.dir.file(OUTPUT_LOG);
        let record = record.unwrap_or_else(|| Record::empty(from));
        let found = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.len(),
            // Killed between the steps of a rotation: the file has the other name already.
            Err(error) if error.kind() == io::ErrorKind::NotFound && record.len > 0 => {
                let rotated = record.rotated();
                self.replace_record(&rotated)?;
                return Ok(rotated);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(record),
            Err(source) => return Err(VmDirError::file("look at", &path, source)),
        };
        if found > record.len {
            let file = files::open_regular(&path, OpenOptions::new().write(true));
            file.and_then(|file| file.set_len(record.len))
                .map_err(|source| VmDirError::file("cut", &path, source))?;
        }
        // Somebody emptied the file to make room. It goes on from where it is.
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
        let path = self.dir.file(OUTPUT_LOG);
        fs::rename(&path, self.dir.file(OLDER_LOG))
            .map_err(|source| VmDirError::file("rename", &path, source))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), VmDirError> {
        let path = self.dir.file(OUTPUT_LOG);
        let error = |source| VmDirError::file("write", &path, source);
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            let opened = files::open_regular(&path, &mut options);
            self.file = Some(opened.map_err(error)?);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(error),
            None => Ok(()),
        }
    }

    fn replace_record(&self, record: &Record) -> Result<(), VmDirError> {
        self.dir
            .replace(OUTPUT_RECORD, &record.to_value().to_string())
    }
}

#[cfg(test)]
mod tests;
