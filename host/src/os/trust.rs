//! Opens a directory whose path no other user can change, as OpenSSH's StrictModes has it.
//!
//! ```text
//! /            the start, which is trusted
//! /run         root's or the caller's own, and not writable by others, or with the sticky bit
//! /run/vms     the same; the last directory without the exception for the sticky bit
//! ```
//!
//! Each component is opened below the one before it, without following a link, and judged by its
//! open descriptor. A link is followed, and its target judged in the same way, only where no other
//! user can have put it: see [`Links`]. Work then goes on with the descriptor of the last one.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};

use crate::os::dir::{Dir, is_of_type, is_own, is_writable_by_others};

/// Most links on a path, as in the kernel.
const LINKS_MAX: usize = 40;

/// Which links are followed. In both cases the directory of the link was judged before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Those of root in directories that only root can write to, such as /var/run.
    OfRoot,
    /// Those of the caller, too.
    OfCaller,
}

/// Who may own the last directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Caller,
    CallerOrRoot,
}

/// Why a path is not safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Owner,
    Mode,
    Link,
    NotADirectory,
}

impl Fault {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Owner => "it belongs to another user",
            Self::Mode => "others may write to it",
            Self::Link => "it is a link",
            Self::NotADirectory => "it is not a directory",
        }
    }
}

#[derive(Debug)]
pub(crate) enum TrustError {
    /// A component of the path, or a file, is not safe.
    Unsafe { path: PathBuf, fault: Fault },
    /// A component could not be opened or made.
    Io {
        /// A verb.
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl TrustError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsafe { path, fault } => {
                write!(f, "{} is not safe: {}", path.display(), fault.reason())
            }
            Self::Io {
                operation, path, ..
            } => write!(f, "cannot {operation} {}", path.display()),
        }
    }
}

impl std::error::Error for TrustError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unsafe { .. } => None,
            Self::Io { source, .. } => Some(source),
        }
    }
}

/// Opens the directory at `path`. With `create`, makes what is missing of it, for the caller alone.
pub(crate) fn open_dir(
    path: &Path,
    owner: Owner,
    links: Links,
    create: bool,
) -> Result<Dir, TrustError> {
    let mut walk = Walk::new(path, links)?;
    while let Some(name) = walk.rest.pop_front() {
        walk.step(&name, create)?;
    }
    walk.finish(owner)
}

/// Judges a file or directory that is open, and that no component of a path stands for.
pub(crate) fn judge(stat: &FileStat, owner: Owner) -> Result<(), Fault> {
    let is_root_allowed = owner == Owner::CallerOrRoot;
    if !(is_own(stat) || (is_root_allowed && stat.st_uid == 0)) {
        return Err(Fault::Owner);
    }
    if is_writable_by_others(stat) {
        return Err(Fault::Mode);
    }
    Ok(())
}

/// A path whose first components are open and judged.
struct Walk {
    /// The directories so far, the top one first.
    open: Vec<Level>,
    /// The components still to come.
    rest: VecDeque<OsString>,
    links: Links,
    link_count: usize,
}

struct Level {
    path: PathBuf,
    fd: OwnedFd,
    stat: FileStat,
}

impl Walk {
    fn new(path: &Path, links: Links) -> Result<Self, TrustError> {
        let at_path = |operation| failed(operation, path);
        let absolute = std::path::absolute(path).map_err(at_path("find"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open("/", flags, Mode::empty()).map_err(io::Error::from);
        let fd = fd.map_err(at_path("open"))?;
        let stat = fstat(&fd).map_err(io::Error::from);
        let top = Level {
            path: "/".into(),
            stat: stat.map_err(at_path("look at"))?,
            fd,
        };
        Ok(Self {
            open: vec![top],
            rest: names(&absolute).collect(),
            links,
            link_count: 0,
        })
    }

    fn last(&self) -> Result<&Level, TrustError> {
        // The first level is never removed.
        let last = self.open.last();
        last.ok_or_else(|| failed("open", Path::new("/"))(io::ErrorKind::NotFound.into()))
    }

    fn step(&mut self, name: &OsStr, create: bool) -> Result<(), TrustError> {
        if name == ".." {
            if self.open.len() > 1 {
                self.open.pop();
            }
            return Ok(());
        }
        let parent = self.last()?;
        let path = parent.path.join(name);
        let found = match look(parent, name) {
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&parent.fd, name, Mode::S_IRWXU).map_err(io::Error::from) {
                    // Another command has made it.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made.map_err(failed("create", &path))?,
                }
                look(parent, name)
            }
            found => found,
        };
        let found = found.map_err(failed("look at", &path))?;
        if is_of_type(&found, SFlag::S_IFLNK) {
            return self.follow(name, &path, &found);
        }
        if !is_of_type(&found, SFlag::S_IFDIR) {
            let fault = Fault::NotADirectory;
            return Err(TrustError::Unsafe { path, fault });
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&parent.fd, name, flags, Mode::empty()).map_err(io::Error::from);
        let fd = fd.map_err(failed("open", &path))?;
        let stat = fstat(&fd).map_err(io::Error::from);
        let stat = stat.map_err(failed("look at", &path))?;
        self.open.push(Level { path, fd, stat });
        // The last one is judged by `finish`, and more strictly.
        match self.rest.is_empty() {
            true => Ok(()),
            false => self.judge_last(),
        }
    }

    /// Judges a directory that another one is opened below.
    fn judge_last(&self) -> Result<(), TrustError> {
        let Level { path, stat, .. } = self.last()?;
        // In a sticky directory, only the owner of an entry and root can rename or remove it, and
        // the entry is judged next.
        let is_sticky = stat.st_mode & Mode::S_ISVTX.bits() != 0;
        match judge(stat, Owner::CallerOrRoot) {
            Err(Fault::Mode) if is_sticky => Ok(()),
            Err(fault) => Err(TrustError::Unsafe {
                path: path.clone(),
                fault,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Puts the target of a link in its place.
    fn follow(&mut self, name: &OsStr, path: &Path, link: &FileStat) -> Result<(), TrustError> {
        let parent = self.last()?;
        let is_of_root = link.st_uid == 0 && judge_root(&parent.stat);
        let is_followed = match self.links {
            Links::OfRoot => is_of_root,
            Links::OfCaller => is_of_root || link.st_uid == 0 || is_own(link),
        };
        if !is_followed {
            return Err(TrustError::Unsafe {
                path: path.to_owned(),
                fault: Fault::Link,
            });
        }
        if self.link_count == LINKS_MAX {
            return Err(failed("follow", path)(io::Error::from_raw_os_error(
                libc::ELOOP,
            )));
        }
        let target = readlinkat(&parent.fd, name).map_err(io::Error::from);
        let target = PathBuf::from(target.map_err(failed("read", path))?);
        self.link_count += 1;
        if target.is_absolute() {
            self.open.truncate(1);
        }
        for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
            self.rest.push_front(name);
        }
        // An empty rest is the end of the path, at a directory that was judged as one on the way.
        Ok(())
    }

    fn finish(mut self, owner: Owner) -> Result<Dir, TrustError> {
        let last = self.last()?;
        if let Err(fault) = judge(&last.stat, owner) {
            return Err(TrustError::Unsafe {
                path: last.path.clone(),
                fault,
            });
        }
        match self.open.pop() {
            Some(Level { path, fd, .. }) => Ok(Dir::new(path, fd)),
            None => Err(failed("open", Path::new("/"))(
                io::ErrorKind::NotFound.into(),
            )),
        }
    }
}

/// Whether only root can put anything into a directory.
fn judge_root(stat: &FileStat) -> bool {
    stat.st_uid == 0 && !is_writable_by_others(stat)
}

fn look(parent: &Level, name: &OsStr) -> io::Result<FileStat> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    Ok(fstatat(&parent.fd, name, flags)?)
}

/// The components of a path that lead on from a directory.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::testing::TempDir;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn opened(path: &Path) -> Result<PathBuf, (PathBuf, Fault)> {
        match open_dir(path, Owner::Caller, Links::OfCaller, false) {
            Ok(dir) => Ok(dir.path().to_owned()),
            Err(TrustError::Unsafe { path, fault }) => Err((path, fault)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn every_component_is_judged() {
        let temp = TempDir::new("trust");
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b/c")).unwrap();
        for name in ["a", "a/b", "a/b/c"] {
            set_mode(&at(name), 0o755);
        }
        assert_eq!(opened(&at("a/b/c")), Ok(at("a/b/c")));
        assert_eq!(opened(&at("a/b/../b/c/..")), Ok(at("a/b")));
        for name in ["a", "a/b", "a/b/c"] {
            for (mode, is_last_allowed, is_allowed) in [
                (0o775, false, false),
                (0o757, false, false),
                (0o1777, false, true),
                (0o555, true, true),
            ] {
                set_mode(&at(name), mode);
                let is_last = name == "a/b/c";
                let expected = match if is_last { is_last_allowed } else { is_allowed } {
                    true => Ok(at("a/b/c")),
                    false => Err((at(name), Fault::Mode)),
                };
                assert_eq!(opened(&at("a/b/c")), expected, "{name} {mode:o}");
            }
            set_mode(&at(name), 0o755);
        }
        fs::write(at("file"), "").unwrap();
        let file = Err((at("file"), Fault::NotADirectory));
        assert_eq!(opened(&at("file")), file);
        assert_eq!(opened(&at("file/x")), file);
    }

    #[test]
    fn links_are_judged_where_they_are_and_where_they_lead() {
        let temp = TempDir::new("trust");
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        set_mode(&at("a"), 0o755);
        set_mode(&at("a/b"), 0o700);
        for (name, target) in [
            ("relative", "a"),
            ("absolute", at("a").to_str().unwrap()),
            ("twice", "relative"),
            ("up", "a/b/.."),
        ] {
            symlink(target, at(name)).unwrap();
            assert_eq!(opened(&at(name).join("b")), Ok(at("a/b")), "{name}");
            let strict = |path: &Path| open_dir(path, Owner::Caller, Links::OfRoot, false);
            let refused = strict(&at(name).join("b"));
            // Where root runs the tests, root alone could make the link.
            let is_root = nix::unistd::geteuid().is_root();
            assert_eq!(refused.is_ok(), is_root, "{refused:?}");
        }
        set_mode(&at("a"), 0o777);
        assert_eq!(opened(&at("relative/b")), Err((at("a"), Fault::Mode)));
        symlink("loop", at("loop")).unwrap();
        let error = open_dir(&at("loop"), Owner::Caller, Links::OfCaller, false).unwrap_err();
        assert!(matches!(error, TrustError::Io { .. }), "{error}");
        symlink("none", at("dangling")).unwrap();
        let error = open_dir(&at("dangling"), Owner::Caller, Links::OfCaller, false).unwrap_err();
        assert!(error.is_not_found(), "{error}");
    }

    #[test]
    fn what_is_missing_is_made_for_the_caller_alone() {
        let temp = TempDir::new("trust");
        let path = temp.path().join("a/b");
        let open = |create| open_dir(&path, Owner::Caller, Links::OfRoot, create);
        assert!(open(false).unwrap_err().is_not_found());
        open(true).unwrap();
        for path in [&path, path.parent().unwrap()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        }
        open(true).unwrap();
    }
}
