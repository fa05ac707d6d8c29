//! Opens files that must be regular files.
//!
//! Opening a FIFO can block for ever, opening a device can have side effects, and a symbolic link
//! may lead to another user's file. So a file of a VM or of an artifact is checked before it is
//! opened, and checked again once it is open: the path may have been replaced in between.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

/// Opens a regular file. Does not follow a symbolic link and does not open a file of another type.
pub(crate) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // A missing file is not an error yet: `options` may create it.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(NotRegular.into());
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = options.custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => NotRegular.into(),
        _ => error,
    })?;
    regular(file)
}

/// Like [`open_regular`], for a file in an open directory. A file that is created is its owner's
/// alone.
pub(crate) fn open_regular_at(dir: impl AsFd, name: &OsStr, flags: OFlag) -> io::Result<File> {
    let dir = dir.as_fd();
    // A missing file is not an error yet: the flags may create it.
    if let Ok(found) = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        && found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits()
    {
        return Err(NotRegular.into());
    }
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    loop {
        match openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => return regular(fd.into()),
            Err(Errno::EINTR) => {}
            Err(Errno::ELOOP) => return Err(NotRegular.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Opens a file from the command line for reading. It may be a symbolic link to a regular file.
pub(crate) fn open_named(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    regular(file).map_err(|_| io::Error::other("it is not a regular file"))
}

/// Whether [`open_regular`] failed because the file is not a regular one.
pub(crate) fn is_not_regular(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<NotRegular>())
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(NotRegular.into())
    }
}

/// The file is not a regular one.
#[derive(Debug, Clone, Copy)]
struct NotRegular;

impl fmt::Display for NotRegular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not a regular file; remove it")
    }
}

impl std::error::Error for NotRegular {}

impl From<NotRegular> for io::Error {
    fn from(error: NotRegular) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn only_regular_files_are_opened() {
        let temp = TempDir::new("files");
        let at = |name: &str| temp.path().join(name);
        fs::write(at("file"), "x").unwrap();
        // It has no writer: a plain open for reading would block for ever.
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let open = |name: &str, is_write: bool| {
            let mut options = OpenOptions::new();
            options.read(!is_write).append(is_write).create(is_write);
            open_regular(&at(name), &mut options)
        };
        for is_write in [false, true] {
            open("file", is_write).unwrap();
            for name in ["pipe", "link", "dangling", "folder", "socket"] {
                let error = open(name, is_write).unwrap_err();
                assert!(is_not_regular(&error), "{name}: {error}");
            }
        }
        assert!(!at("nowhere").exists(), "a link was followed");
        assert_eq!(
            open("new", false).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        open("new", true).unwrap();
    }

    #[test]
    fn a_file_from_the_command_line_may_be_a_link_but_not_a_pipe() {
        let temp = TempDir::new("files");
        let at = |name: &str| temp.path().join(name);
        fs::write(at("file"), "x").unwrap();
        symlink("file", at("link")).unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        open_named(&at("link")).unwrap();
        for name in ["pipe", "."] {
            let error = open_named(&at(name)).unwrap_err();
            assert_eq!(error.to_string(), "it is not a regular file", "{name}");
        }
    }
}
