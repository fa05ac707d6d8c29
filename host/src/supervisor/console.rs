//! Keeping the guest's console from filling the host's disk.
//!
//! The VMM writes the file itself and so does not depend on a reader. It appends, so the file can
//! be emptied under it: when it has grown too long, its content is copied to the older file and
//! cut. Output written between the copy and the cut is lost.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::os::files;

/// Longest console log, in bytes, apart from what is written in a `LOOK_PAUSE`. The older file can
/// be as long.
pub(crate) const CONSOLE_LEN_MAX: u64 = 4 * 1024 * 1024;

/// Least time between two looks: a guest that writes byte by byte must not wake us for each.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    inotify: Inotify,
    /// Time of the next look at the earliest.
    look_at: Option<Instant>,
}

impl Console {
    /// The file at `path` must exist.
    pub(crate) fn watch(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        Ok(Self {
            path: path.to_owned(),
            inotify,
            look_at: None,
        })
    }

    /// The descriptor to poll; `None` before [`due`](Self::due).
    pub(crate) fn wanted(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.due(now).is_none().then(|| self.inotify.as_fd())
    }

    /// The time of the next look; `None` if it may be now.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        self.look_at.filter(|look_at| now < *look_at)
    }

    /// The descriptor was ready: the guest has written.
    pub(crate) fn handle_output(&mut self, now: Instant) {
        self.look_at = Some(now + LOOK_PAUSE);
        if let Err(error) = self.drain().and_then(|()| self.cut()) {
            log::warn!("cannot keep {} short: {error}", self.path.display());
        }
    }

    /// Discards the events: only the file's length matters.
    fn drain(&self) -> io::Result<()> {
        loop {
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn cut(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut console = files::open_regular(&self.path, options.read(true).write(true))?;
        if console.metadata()?.len() <= CONSOLE_LEN_MAX {
            return Ok(());
        }
        let older = self.path.with_extension("log.1");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        io::copy(
            &mut console,
            &mut files::open_regular(&older, &mut options)?,
        )?;
        console.set_len(0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::os::deadline::Watch;
    use crate::testing::TempDir;

    #[test]
    fn a_long_console_is_cut_under_its_writer() {
        let temp = TempDir::new("console");
        let path = temp.path().join("console.log");
        let mut writer = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        let mut console = Console::watch(&path).unwrap();
        let now = Instant::now();
        let far = now + Duration::from_secs(30);

        writer.write_all(b"short").unwrap();
        Watch::until(far)
            .readable(console.wanted(now).unwrap())
            .unwrap();
        console.handle_output(now);
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert!(console.wanted(now).is_none(), "not again at once");

        writer.set_len(CONSOLE_LEN_MAX).unwrap();
        writer.write_all(b"x").unwrap();
        let later = console.due(now).unwrap();
        assert!(console.wanted(later).is_some());
        console.handle_output(later);
        writer.write_all(b"y").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"y");
        let older = fs::metadata(temp.path().join("console.log.1"))
            .unwrap()
            .len();
        assert_eq!(older, CONSOLE_LEN_MAX + 1);
    }

    /// The VMM can write to the directory. A link or FIFO that it puts there is not opened.
    #[test]
    fn an_older_console_that_is_not_a_regular_file_is_left_alone() {
        let temp = TempDir::new("console");
        let path = temp.path().join("console.log");
        let file = fs::File::create(&path).unwrap();
        file.set_len(CONSOLE_LEN_MAX + 1).unwrap();
        let console = Console::watch(&path).unwrap();
        let older = temp.path().join("console.log.1");
        mkfifo(&older, Mode::S_IRWXU).unwrap();
        assert!(files::is_not_regular(&console.cut().unwrap_err()));
        fs::remove_file(&older).unwrap();
        fs::write(temp.path().join("bait"), "x").unwrap();
        symlink("bait", &older).unwrap();
        assert!(files::is_not_regular(&console.cut().unwrap_err()));
        assert_eq!(fs::read(temp.path().join("bait")).unwrap(), b"x");
    }
}
