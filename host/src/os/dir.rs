//! An open directory. What is done in it does not depend on its path any more: a part of that path
//! may be moved or replaced meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::os::files;
use crate::sys::entries;

/// Enough for a descriptor that only names a directory.
const PATH_ONLY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// Room for entries of a directory in one system call, in bytes.
const ENTRIES_LEN: usize = 32 * 1024;

/// Where an entry of `getdents64(2)` has its length and its name.
const ENTRY_LEN_AT: usize = 16;
const ENTRY_NAME_AT: usize = 19;

/// An open directory.
#[derive(Debug, Clone)]
pub(crate) struct Dir {
    /// For messages, and for programs that can only take a path.
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

impl Dir {
    /// Opens the directory at `path`, which may belong to any user. Follows links.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, PATH_ONLY, Mode::empty())?;
        Ok(Self::new(path.to_owned(), fd))
    }

    pub(super) fn new(path: PathBuf, fd: OwnedFd) -> Self {
        Self {
            path,
            fd: Arc::new(fd),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory, which was renamed to `name` in `parent`.
    pub(crate) fn renamed(self, parent: &Self, name: impl AsRef<OsStr>) -> Self {
        Self {
            path: parent.path.join(name.as_ref()),
            fd: self.fd,
        }
    }

    /// Opens a directory in this one. Fails with `NotADirectory` on a link.
    pub(crate) fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let fd = openat(&self.fd, name, PATH_ONLY | OFlag::O_NOFOLLOW, Mode::empty())?;
        Ok(Self::new(self.path.join(name), fd))
    }

    /// Opens a regular file in this directory. A file that is created is its owner's alone.
    pub(crate) fn open_file(&self, name: impl AsRef<OsStr>, flags: OFlag) -> io::Result<File> {
        files::open_regular_at(&self.fd, name.as_ref(), flags)
    }

    /// Opens the directory itself for reading, to lock or to sync it.
    pub(crate) fn to_file(&self) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, ".", flags, Mode::empty())?.into())
    }

    pub(crate) fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.fd)?)
    }

    /// What an entry is, without following it.
    pub(crate) fn stat_of(&self, name: impl AsRef<OsStr>) -> io::Result<FileStat> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fstatat(&self.fd, name.as_ref(), flags)?)
    }

    /// Whether the entry `name` is the directory `other`.
    pub(crate) fn has(&self, name: impl AsRef<OsStr>, other: &Self) -> bool {
        let inode = |stat: FileStat| (stat.st_dev, stat.st_ino);
        let found = self.stat_of(name).map(inode);
        matches!((found, other.stat().map(inode)), (Ok(one), Ok(other)) if one == other)
    }

    /// Makes a directory that is its owner's alone.
    pub(crate) fn make_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name.as_ref(), Mode::S_IRWXU)?)
    }

    /// Renames an entry. Replaces a file of the new name.
    pub(crate) fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(renameat(&self.fd, from.as_ref(), &self.fd, to.as_ref())?)
    }

    /// Renames an entry. Fails with `AlreadyExists` if there is anything of the new name.
    pub(crate) fn rename_new(
        &self,
        from: impl AsRef<OsStr>,
        to: impl AsRef<OsStr>,
    ) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(&self.fd, from, &self.fd, to, flags) {
            // Some file systems lack the flag. Two programs that meet here both find the name free,
            // and a directory that has files is then still not replaced.
            Err(Errno::EINVAL | Errno::ENOSYS) => match self.stat_of(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.rename(from, to),
                Err(error) => Err(error),
            },
            Err(Errno::ENOTEMPTY) => Err(io::ErrorKind::AlreadyExists.into()),
            result => Ok(result?),
        }
    }

    /// Removes an entry that is not a directory.
    pub(crate) fn unlink(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let flag = UnlinkatFlags::NoRemoveDir;
        Ok(unlinkat(&self.fd, name.as_ref(), flag)?)
    }

    /// Removes an empty directory.
    pub(crate) fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let flag = UnlinkatFlags::RemoveDir;
        Ok(unlinkat(&self.fd, name.as_ref(), flag)?)
    }

    /// The names of all entries, in no order.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let dir = self.to_file()?;
        let mut buffer = vec![0; ENTRIES_LEN];
        let mut names = Vec::new();
        loop {
            let len = entries::read(dir.as_fd(), &mut buffer)?;
            if len == 0 {
                return Ok(names);
            }
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some((name, next)) = split_entry(rest) {
                if !matches!(name, b"." | b"..") {
                    names.push(OsString::from_vec(name.to_owned()));
                }
                rest = next;
            }
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names in the directory at `path`, in no order.
pub(crate) fn names(path: &Path) -> io::Result<Vec<OsString>> {
    Dir::open(path)?.names()
}

/// Splits the first entry's name off what `getdents64(2)` wrote.
fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = bytes.get(ENTRY_LEN_AT..ENTRY_LEN_AT + 2)?;
    let len = usize::from(u16::from_ne_bytes(len.try_into().ok()?));
    let name = bytes.get(ENTRY_NAME_AT..len)?;
    let name = name.split(|&byte| byte == 0).next()?;
    Some((name, bytes.get(len..)?))
}

pub(crate) fn is_of_type(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

/// Whether it belongs to the user of this process.
pub(crate) fn is_own(stat: &FileStat) -> bool {
    stat.st_uid == geteuid().as_raw()
}

/// Whether its group or all users may write to it.
pub(crate) const fn is_writable_by_others(stat: &FileStat) -> bool {
    stat.st_mode & 0o022 != 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn all_names_are_listed() {
        let temp = TempDir::new("dir");
        assert_eq!(names(temp.path()).unwrap(), [""; 0]);
        let mut expected: Vec<OsString> = (0..2000)
            .map(|number| format!("{number}-{}", "x".repeat(number % 200)).into())
            .collect();
        expected.push(OsString::from_vec(vec![b'a', 0xff]));
        for name in &expected {
            fs::write(temp.path().join(name), "").unwrap();
        }
        let mut found = names(temp.path()).unwrap();
        expected.sort();
        found.sort();
        assert!(found == expected, "{} names", found.len());
        assert!(names(&temp.path().join("none")).is_err());
    }

    #[test]
    fn a_directory_is_the_same_after_its_path_was_replaced() {
        let temp = TempDir::new("dir");
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        let top = Dir::open(temp.path()).unwrap();
        let dir = top.open_dir("a").unwrap();
        assert!(top.has("a", &dir));
        fs::rename(at("a"), at("moved")).unwrap();
        fs::create_dir(at("other")).unwrap();
        symlink("other", at("a")).unwrap();
        assert!(!top.has("a", &dir));
        assert_eq!(dir.names().unwrap(), ["b"]);
        let error = top.open_dir("a").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        drop(dir.open_file("file", flags).unwrap());
        assert!(at("moved/file").is_file());
    }

    #[test]
    fn a_rename_to_a_new_name_replaces_nothing() {
        let temp = TempDir::new("dir");
        let top = Dir::open(temp.path()).unwrap();
        for name in ["from", "empty"] {
            top.make_dir(name).unwrap();
        }
        symlink("nowhere", temp.path().join("link")).unwrap();
        for taken in ["empty", "link"] {
            let error = top.rename_new("from", taken).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{taken}");
        }
        top.rename_new("from", "to").unwrap();
        assert!(temp.path().join("to").is_dir());
    }
}
