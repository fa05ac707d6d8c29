//! Reading small files and folders of the image, and judging whose they are.

#![expect(
    unsafe_code,
    reason = "std reads folders through a value whose drop can panic"
)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{check, check_len};

/// In a folder with this bit, only the owner of an entry and root can rename or remove it.
const STICKY: u32 = 0o1000;

const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Room for the entries that one system call returns, in bytes.
const ENTRIES_LEN: usize = 4096;

/// Where an entry of `getdents64(2)` has its length, its kind and its name.
const ENTRY_LEN_AT: usize = 16;
const ENTRY_KIND_AT: usize = 18;
const ENTRY_NAME_AT: usize = 19;

/// What may be at the end of a path whose every part is root's or the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// A file, or a folder that others may not write to.
    Private,
    /// A folder that others may write to if it is sticky, such as `/tmp`.
    Folder,
}

/// The path without links. Fails, with the name of the part at fault, if another user could change
/// what it leads to: if a part of it belongs to another user, or others may write to it.
pub(crate) fn trusted(path: &Path, last: Last) -> io::Result<PathBuf> {
    let path = fs::canonicalize(path)?;
    let own = nix::unistd::geteuid().as_raw();
    // The top is last, and cannot be replaced.
    for part in path.ancestors().filter(|part| part.parent().is_some()) {
        let found = fs::symlink_metadata(part)?;
        let is_shared = found.is_dir() && found.mode() & STICKY != 0;
        let may_be_shared = part != path || last == Last::Folder;
        let fault = if found.uid() != own && found.uid() != 0 {
            "belongs to another user"
        } else if found.mode() & WRITABLE_BY_OTHERS != 0 && !(is_shared && may_be_shared) {
            "may be written to by other users"
        } else {
            continue;
        };
        let text = format!("{} {fault}", part.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(path)
}

/// Locks a file or a folder (`flock(2)`) as long as it is open. Returns whether it is locked now:
/// another process may hold the lock. `nix::fcntl::Flock` panics when it cannot unlock.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    loop {
        // SAFETY: integers only.
        match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
            Ok(_) => return Ok(true),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// The names in a folder, in no order. `fs::ReadDir` panics when its folder cannot be closed.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_DIRECTORY);
    names_where(&options.open(folder)?, |_| true)
}

/// The names of the folders in an open folder, which is read from where it was left.
pub(crate) fn folders(folder: &File) -> io::Result<Vec<OsString>> {
    names_where(folder, |kind| kind == libc::DT_DIR)
}

/// Not inlined, because its buffer would be in the frame of every caller. A frame that is longer
/// than a page costs its function a walk through it at each call.
#[inline(never)]
fn names_where(folder: &File, is_wanted: fn(u8) -> bool) -> io::Result<Vec<OsString>> {
    let mut buffer = [0; ENTRIES_LEN];
    let mut names = Vec::new();
    loop {
        let len = read_entries(folder, &mut buffer)?;
        let mut rest = buffer.get(..len).unwrap_or_default();
        if rest.is_empty() {
            return Ok(names);
        }
        while let Some((kind, name, next)) = split_entry(rest) {
            if is_wanted(kind) && !matches!(name, b"." | b"..") {
                names.push(OsString::from_vec(name.to_owned()));
            }
            rest = next;
        }
    }
}

fn read_entries(folder: &File, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which this function has
    // borrowed mutably, and the descriptor is open for the length of the borrow.
    let len = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            folder.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    check_len(libc::ssize_t::try_from(len).unwrap_or(-1))
}

/// Splits the first entry off what `getdents64(2)` wrote: its kind and its name.
fn split_entry(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let len = bytes.get(ENTRY_LEN_AT..ENTRY_LEN_AT + 2)?;
    let len = usize::from(u16::from_ne_bytes(len.try_into().ok()?));
    let name = bytes.get(ENTRY_NAME_AT..len)?;
    let name = name.split(|&byte| byte == 0).next()?;
    Some((*bytes.get(ENTRY_KIND_AT)?, name, bytes.get(len..)?))
}

/// Reads a regular file of at most `len_max` bytes. Opening it non-blocking avoids waiting for a
/// named pipe in its place.
pub(crate) fn read_small(path: &Path, len_max: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let text = "not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut bytes = Vec::new();
    // One byte over the limit tells that the file is too long.
    file.take(len_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > len_max {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn all_names_of_a_folder_are_listed() {
        let folder = std::env::temp_dir().join(format!("agent-names-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut expected: Vec<OsString> = (0..300).map(|n| format!("{n:0>100}").into()).collect();
        for name in &expected {
            fs::write(folder.join(name), "").unwrap();
        }
        let mut found = names(&folder).unwrap();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert!(names(&folder.join("none")).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn every_part_of_a_trusted_path_is_judged() {
        let top = std::env::temp_dir().join(format!("agent-trust-{}", std::process::id()));
        let path = top.join("a/b");
        fs::create_dir_all(&path).unwrap();
        let mode = |part: &Path, mode| {
            fs::set_permissions(part, fs::Permissions::from_mode(mode)).unwrap();
        };
        let text = |last| match trusted(&path, last) {
            Ok(found) => found.display().to_string(),
            Err(err) => err.to_string(),
        };
        let (own, folder) = (
            fs::canonicalize(&path).unwrap(),
            fs::canonicalize(&top).unwrap(),
        );
        let own = own.display().to_string();
        assert_eq!(text(Last::Private), own);
        mode(&top, 0o777);
        let fault = format!("{} may be written to by other users", folder.display());
        assert_eq!(text(Last::Folder), fault);
        mode(&top, 0o1777);
        assert_eq!(text(Last::Private), own);
        mode(&path, 0o1777);
        assert_eq!(text(Last::Folder), own);
        assert_eq!(
            text(Last::Private),
            format!("{own} may be written to by other users")
        );
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = std::env::temp_dir().join(format!("agent-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_small(&path, 5).unwrap(), b"12345");
        let errno = |result: io::Result<Vec<u8>>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(read_small(&path, 4)), Some(libc::EFBIG));
        assert_eq!(
            errno(read_small(&folder.join("missing"), 4)),
            Some(libc::ENOENT)
        );
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        for path in [&pipe, &folder] {
            let kind = read_small(path, 4).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{}", path.display());
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
