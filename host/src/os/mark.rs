//! The mark of a directory that this program made and may remove.
//!
//! A directory goes with what is in it, so nothing is removed for its name alone: another file with
//! a known content says that the directory is ours, and only entries of known names are removed. A
//! directory with anything else in it stays as it is.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::os::dir::{Dir, is_of_type, is_own};
use crate::os::files;

/// The name of the file.
pub(crate) const MARK: &str = "made-by-host-tool";

const CONTENT: &[u8] = b"host-tool made this directory, and removes it with its own files in it.\n";

/// How often files may appear in a directory while it is emptied: a process that ends still writes
/// some.
const ROUNDS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) enum RemoveError {
    /// The directory has no mark.
    NotMarked,
    /// An entry of the directory is not one of ours.
    Foreign {
        name: String,
    },
    Io(io::Error),
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMarked => write!(f, "it has no file '{MARK}' of host-tool"),
            Self::Foreign { name } => {
                write!(f, "host-tool did not make '{}' in it", name.escape_debug())
            }
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RemoveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => error.source(),
            Self::NotMarked | Self::Foreign { .. } => None,
        }
    }
}

impl From<io::Error> for RemoveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Marks a directory that this program has just made.
pub(crate) fn write(dir: &Dir) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    dir.open_file(MARK, flags)?.write_all(CONTENT)
}

/// Whether the directory has the mark: the file, of this user, with its content.
pub(crate) fn is_marked(dir: &Dir) -> io::Result<bool> {
    match dir.open_file(MARK, OFlag::O_RDONLY) {
        Ok(file) => is_mark(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if files::is_not_regular(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_mark(file: File) -> io::Result<bool> {
    if !is_own(&fstat(&file)?) {
        return Ok(false);
    }
    let mut content = Vec::new();
    let len_max = u64::try_from(CONTENT.len() + 1).unwrap_or(u64::MAX);
    file.take(len_max).read_to_end(&mut content)?;
    Ok(content == CONTENT)
}

/// Fails unless the directory is marked and has only entries that `is_known` names.
pub(crate) fn check(dir: &Dir, is_known: impl Fn(&str) -> bool) -> Result<(), RemoveError> {
    if !is_marked(dir)? {
        return Err(RemoveError::NotMarked);
    }
    known_names(dir, is_known).map(drop)
}

/// Removes the marked directory `dir`, which is the entry `name` of `parent`.
pub(crate) fn remove(
    parent: &Dir,
    name: impl AsRef<OsStr>,
    dir: &Dir,
    is_known: impl Fn(&str) -> bool,
) -> Result<(), RemoveError> {
    check(dir, &is_known)?;
    for _ in 0..ROUNDS_MAX {
        for entry in known_names(dir, &is_known)? {
            unlink(dir, &entry)?;
        }
        // The mark goes last: a removal that is interrupted can be continued.
        if known_names(dir, &is_known)?.is_empty() {
            break;
        }
    }
    unlink(dir, MARK)?;
    remove_empty(parent, name, dir)
}

/// Removes the directory `dir`, which is the entry `name` of `parent`, if it is empty.
pub(crate) fn remove_empty(
    parent: &Dir,
    name: impl AsRef<OsStr>,
    dir: &Dir,
) -> Result<(), RemoveError> {
    let name = name.as_ref();
    if !parent.has(name, dir) {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    }
    Ok(parent.remove_dir(name)?)
}

/// Removes a file, unless it is gone already.
fn unlink(dir: &Dir, name: &str) -> io::Result<()> {
    match dir.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The entries of the directory but the mark.
fn known_names(dir: &Dir, is_known: impl Fn(&str) -> bool) -> Result<Vec<String>, RemoveError> {
    let mut names = Vec::new();
    for name in dir.names()? {
        let text = name.to_str().filter(|name| is_known(name) || *name == MARK);
        let is_file = match dir.stat_of(&name) {
            Ok(stat) => !is_of_type(&stat, SFlag::S_IFDIR),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        match text {
            Some(MARK) if is_file => {}
            Some(text) if is_file => names.push(text.to_owned()),
            _ => {
                let name = name.to_string_lossy().into_owned();
                return Err(RemoveError::Foreign { name });
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::TempDir;

    struct Fixture {
        temp: TempDir,
        parent: Dir,
        dir: Dir,
    }

    impl Fixture {
        fn new() -> Self {
            let temp = TempDir::new("mark");
            let parent = Dir::open(temp.path()).unwrap();
            parent.make_dir("a").unwrap();
            let dir = parent.open_dir("a").unwrap();
            Self { temp, parent, dir }
        }

        fn remove(&self) -> Result<(), RemoveError> {
            remove(&self.parent, "a", &self.dir, |name| name == "known")
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.temp.path().join("a").join(name)
        }
    }

    #[test]
    fn nothing_is_removed_without_the_mark() {
        let fixture = Fixture::new();
        fs::write(fixture.path("known"), "x").unwrap();
        let mark = fixture.path(MARK);
        let refused = || {
            let error = fixture.remove().unwrap_err();
            assert!(matches!(error, RemoveError::NotMarked), "{error}");
            assert!(fixture.path("known").exists());
        };
        refused();
        fs::write(&mark, "something else").unwrap();
        refused();
        fs::remove_file(&mark).unwrap();
        symlink(fixture.path("known"), &mark).unwrap();
        refused();
        fs::remove_file(&mark).unwrap();
        fs::create_dir(&mark).unwrap();
        refused();
        fs::remove_dir(&mark).unwrap();
        write(&fixture.dir).unwrap();
        fixture.remove().unwrap();
        assert_eq!(fixture.parent.names().unwrap(), [""; 0]);
    }

    #[test]
    fn only_known_names_are_removed_and_links_are_not_followed() {
        let fixture = Fixture::new();
        write(&fixture.dir).unwrap();
        let outside = fixture.temp.path().join("outside");
        fs::write(&outside, "x").unwrap();
        symlink(&outside, fixture.path("known")).unwrap();
        let other = fixture.path("other");
        let puts: [&dyn Fn(); 3] = [
            &|| fs::write(&other, "").unwrap(),
            &|| symlink(&outside, &other).unwrap(),
            &|| fs::create_dir(&other).unwrap(),
        ];
        for put in puts {
            put();
            let error = fixture.remove().unwrap_err();
            assert!(matches!(error, RemoveError::Foreign { ref name } if name == "other"));
            assert!(fixture.path("known").is_symlink() && fixture.path(MARK).exists());
            if fs::remove_file(&other).is_err() {
                fs::remove_dir(&other).unwrap();
            }
        }
        fixture.remove().unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"x");
    }

    #[test]
    fn a_directory_that_took_the_name_stays() {
        let fixture = Fixture::new();
        write(&fixture.dir).unwrap();
        let at = |name: &str| fixture.temp.path().join(name);
        fs::rename(at("a"), at("moved")).unwrap();
        fs::create_dir(at("a")).unwrap();
        fixture.remove().unwrap_err();
        assert!(at("a").is_dir());
    }
}
