//! The record of running commands beside the agent's socket, for a service without cgroups; see
//! [`crate::record`].
//!
//! The file is locked as long as the agent lives. An agent that gets the lock is the only one on
//! this address, so what the file names was left by a predecessor.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use log::{debug, warn};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::record::{Entry, LINE_LEN, LINE_UNUSED, SLOTS, entries, is_same, parse_stat};
use crate::sys::file::try_lock;
use crate::sys::process::kill_group;
use crate::sys::socket::Address;
use crate::sys::spawn::Slot;

/// Folder of the record of an agent on vsock.
const FOLDER_DEFAULT: &str = "/run/guest-agent";

#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    /// Locked.
    file: File,
    /// Slots by the process id of their command.
    used: BTreeMap<i32, usize>,
    /// Slots that were used before.
    free: Vec<usize>,
    /// The first slot that never was.
    unused_from: usize,
}

impl Record {
    /// Opens the record, and kills what a predecessor has left. Returns how many commands these
    /// were. `None`, with a reason in the log, if there can be no record.
    pub(crate) fn open(address: &Address, local: Option<&Path>) -> Option<(Self, u64)> {
        let path = path_of(address, local);
        let opened = open(path.clone());
        match &opened {
            Ok((_, 0)) => {}
            Ok((_, count)) => warn!("killed {count} commands that an earlier agent has left"),
            Err(err) => warn!("cannot record commands in {}: {err}", path.display()),
        }
        opened.ok()
    }

    /// Where the next command writes its line. `None` if all slots are used.
    pub(super) fn next_slot(&self) -> Option<Slot> {
        let unused = (self.unused_from < SLOTS).then_some(self.unused_from);
        let slot = self.free.last().copied().or(unused)?;
        let file = self.file.as_raw_fd();
        let offset = offset_of(slot).try_into().ok()?;
        Some(Slot { file, offset })
    }

    /// The command with the next slot was cloned.
    pub(super) fn handle_spawned(&mut self, pid: i32) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            // All are used, so the child has not written its line.
            None if self.unused_from >= SLOTS => return,
            None => {
                self.unused_from += 1;
                self.unused_from - 1
            }
        };
        self.used.insert(pid, slot);
    }

    pub(super) fn handle_reaped(&mut self, pid: i32) {
        let Some(slot) = self.used.remove(&pid) else {
            return;
        };
        // The file has its full length since the start, so this needs no space.
        if let Err(err) = self.file.write_all_at(&LINE_UNUSED, offset_of(slot)) {
            warn!("cannot clear the record of process {pid}: {err}");
        }
        self.free.push(slot);
    }

    /// Every command has been told to end.
    pub(super) fn end(&self) {
        if let Err(err) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {err}", self.path.display());
        }
    }
}

fn offset_of(slot: usize) -> u64 {
    (slot * LINE_LEN) as u64
}

fn path_of(address: &Address, local: Option<&Path>) -> PathBuf {
    match address {
        Address::Unix { path, .. } => {
            let mut path = path.clone().into_os_string();
            path.push(".commands");
            path.into()
        }
        Address::Vsock { port } => {
            let folder = local.and_then(Path::parent);
            let folder = folder.unwrap_or_else(|| Path::new(FOLDER_DEFAULT));
            folder.join(format!("vsock-{port}.commands"))
        }
    }
}

fn open(path: PathBuf) -> io::Result<(Record, u64)> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = options.mode(0o600).custom_flags(flags).open(&path)?;
    let metadata = file.metadata()?;
    let is_own = metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || !is_own || metadata.mode() & 0o022 != 0 {
        // What another user has written there would name processes to kill.
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    if !try_lock(&file)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut bytes = Vec::new();
    let len_max = (SLOTS * LINE_LEN) as u64;
    Read::by_ref(&mut file)
        .take(len_max)
        .read_to_end(&mut bytes)?;
    let found = entries(&bytes).filter(|entry| kill_left(*entry)).count();
    // Emptied, and then filled with zeros, so that the commands' lines need no space later.
    file.set_len(0)?;
    fallocate(
        &file,
        FallocateFlags::empty(),
        0,
        len_max.try_into().unwrap_or(0),
    )?;
    let record = Record {
        path,
        file,
        used: BTreeMap::new(),
        free: Vec::new(),
        unused_from: 0,
    };
    Ok((record, found as u64))
}

/// Kills a command's process group, if it still runs.
fn kill_left(entry: Entry) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", entry.pid));
    // It has ended.
    let Some((group, started_at)) = stat.ok().and_then(|stat| parse_stat(&stat)) else {
        return false;
    };
    if !is_same(entry, group, started_at) {
        return false;
    }
    match kill_group(entry.pid, libc::SIGKILL) {
        Ok(()) => true,
        Err(err) => {
            warn!("cannot kill process {}: {err}", entry.pid);
            false
        }
    }
}
