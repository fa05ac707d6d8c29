//! Copies of disk images: reflinks where the file system has them, else the data without the holes.
//!
//! A guest may be paused during a copy, so each copy has a deadline; one that misses it is useless.
//! A copy is not synced to the disk: the caller can do that after it has resumed the guest.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::Failure;
use crate::exit::Exit;
use crate::sys::reflink;

/// Bytes copied between two checks of the deadline.
const PIECE_LEN: usize = 1024 * 1024;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Both share their blocks until one is written to.
    Reflink,
    /// Byte by byte, holes left out.
    Copy,
}

impl Way {
    /// The keyword in records.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

#[derive(Debug)]
pub(crate) enum CopyError {
    /// A file could not be read or written.
    Io {
        /// The original.
        from: PathBuf,
        /// The copy.
        to: PathBuf,
        source: io::Error,
    },
    /// The deadline passed.
    Deadline {
        /// The original.
        from: PathBuf,
    },
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { from, to, .. } => {
                write!(f, "cannot copy {} to {}", from.display(), to.display())
            }
            Self::Deadline { from } => {
                write!(f, "the time limit passed while copying {}", from.display())
            }
        }
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Deadline { .. } => None,
        }
    }
}

impl CopyError {
    /// The failure of a command: with `exit`, or with [`Exit::Deadline`] if the deadline passed.
    pub(crate) fn into_failure(self, exit: Exit) -> Failure {
        let exit = match &self {
            Self::Io { .. } => exit,
            Self::Deadline { .. } => Exit::Deadline,
        };
        Failure::new(exit, self)
    }
}

/// Copies the image `from` to the new file `to`, which only its owner may read. `progress` gets the
/// offset in the image that the copy has reached.
pub(crate) fn copy(
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> Result<Way, CopyError> {
    let source = File::open(from).map_err(|source| CopyError::Io {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })?;
    copy_open(&source, from, to, progress, deadline)
}

/// As [`copy`], for an image that is open. `from` is for messages.
pub(crate) fn copy_open(
    source: &File,
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> Result<Way, CopyError> {
    let copied = create(to).and_then(|copy| {
        if reflink::clone_file(source, &copy).is_ok() {
            return Ok(Way::Reflink);
        }
        copy_data(source, &copy, progress, deadline).map(|()| Way::Copy)
    });
    copied.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut => CopyError::Deadline {
            from: from.to_owned(),
        },
        _ => CopyError::Io {
            from: from.to_owned(),
            to: to.to_owned(),
            source,
        },
    })
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Copies the data of `from` and skips its holes.
fn copy_data(
    from: &File,
    to: &File,
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> io::Result<()> {
    let len = lseek(from, 0, Whence::SeekEnd)?;
    to.set_len(u64::try_from(len).map_err(io::Error::other)?)?;
    let mut piece = vec![0; PIECE_LEN];
    let mut position = 0;
    while position < len {
        let (start, end) = match lseek(from, position, Whence::SeekData) {
            Ok(start) => (start, lseek(from, start, Whence::SeekHole)?),
            // Only a hole is left.
            Err(Errno::ENXIO) => (len, len),
            // A block device does not report holes.
            Err(Errno::EINVAL) => (position, len),
            Err(errno) => return Err(errno.into()),
        };
        copy_range(
            from,
            to,
            start..end.min(len),
            &mut piece,
            progress,
            deadline,
        )?;
        position = end;
    }
    Ok(())
}

fn copy_range(
    from: &File,
    to: &File,
    range: std::ops::Range<i64>,
    piece: &mut [u8],
    progress: &mut dyn FnMut(u64),
    deadline: Instant,
) -> io::Result<()> {
    let (mut at, end) = (offset(range.start)?, offset(range.end)?);
    while at < end {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let len = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
        from.read_exact_at(&mut piece[..len], at)?;
        to.write_all_at(&piece[..len], at)?;
        at += len as u64;
        progress(at);
    }
    Ok(())
}

fn offset(offset: i64) -> io::Result<u64> {
    u64::try_from(offset).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use super::*;
    use crate::testing::TempDir;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// An image with data at `starts`, 8 KiB each, and holes around it.
    fn image(path: &Path, len: u64, starts: &[u64]) -> File {
        let file = File::create(path).unwrap();
        file.set_len(len).unwrap();
        for (index, start) in starts.iter().enumerate() {
            let byte = u8::try_from(index + 1).unwrap();
            file.write_all_at(&[byte; 8192], *start).unwrap();
        }
        File::open(path).unwrap()
    }

    /// Calls `copy_data` itself: `copy` makes a reflink where the file system can.
    #[track_caller]
    fn check(len: u64, starts: &[u64]) {
        let temp = TempDir::new("disk");
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        let source = image(&from, len, starts);
        let copy = File::create(&to).unwrap();
        let mut reached = 0;
        copy_data(&source, &copy, &mut |at| reached = at, far()).unwrap();
        assert!(
            fs::read(&from).unwrap() == fs::read(&to).unwrap(),
            "other bytes"
        );
        let blocks = |path: &Path| fs::metadata(path).unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from) + 16, "the holes were filled");
        assert!(reached <= len);
    }

    #[test]
    fn data_is_copied_and_holes_are_not() {
        check(0, &[]);
        check(1 << 26, &[]);
        check(8192, &[0]);
        check((1 << 26) + 5, &[0, 1 << 20, 1 << 25]);
        // Data to the very end, and more of it than fits one piece.
        let starts: Vec<u64> = (0..200).map(|index| index * 8192).collect();
        check(200 * 8192, &starts);
    }

    #[test]
    fn a_copy_is_its_owners_alone_and_nothing_is_overwritten() {
        let temp = TempDir::new("disk");
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        drop(image(&from, 1 << 20, &[0]));
        copy(&from, &to, &mut |_| {}, far()).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert_eq!(
            fs::metadata(&to).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = copy(&from, &to, &mut |_| {}, far()).unwrap_err();
        assert!(matches!(error, CopyError::Io { .. }), "{error}");
        assert_eq!(error.into_failure(Exit::Artifact).exit(), Exit::Artifact);
    }

    #[test]
    fn the_deadline_ends_a_copy() {
        let temp = TempDir::new("disk");
        let source = image(&temp.path().join("from"), 1 << 20, &[0]);
        let copy = File::create(temp.path().join("to")).unwrap();
        let error = copy_data(&source, &copy, &mut |_| {}, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let from = PathBuf::from("/d");
        let failure = CopyError::Deadline { from }.into_failure(Exit::Artifact);
        assert_eq!(failure.exit(), Exit::Deadline);
    }
}
