//! The duties of process 1: preparing the machine for programs.
//!
//! ```text
//! mount ─▶ console as standard input and output ─▶ modules ─▶ loopback ─▶ host name
//! ```
//!
//! No failure here ends the start: a machine without `/dev/pts` still runs most commands, and one
//! without vsock fails a moment later with a clear error. Failures before the console is open are
//! reported after it is.

use std::fmt;
use std::io;
use std::path::Path;

use log::{info, warn};
use nix::mount::MsFlags;
use nix::sys::reboot;

use crate::sys::file::{Last, trusted};
use crate::sys::modules::Load;
use crate::sys::mount::{Mount, mount};
use crate::sys::{console, modules, net};

/// List of the kernel modules to load: one absolute path a line, in load order; `#` begins a
/// comment.
const MODULES_PATH: &str = "/etc/guest-agent/modules";

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// The file systems to mount, in this order, unless an earlier stage has mounted them.
const MOUNTS: [Mount; 6] = [
    Mount {
        kind: "proc",
        target: "/proc",
        flags: NO_PROGRAMS,
        options: "",
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        flags: NO_PROGRAMS,
        options: "",
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        flags: MsFlags::MS_NOSUID,
        options: "mode=0755",
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "mode=0620,ptmxmode=0666",
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=0755",
    },
    Mount {
        kind: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
    },
];

/// The tree of cgroups, so that each session gets one.
const CGROUPS: Mount = Mount {
    kind: "cgroup2",
    target: "/sys/fs/cgroup",
    flags: NO_PROGRAMS,
    options: "",
};

/// A failed step, which does not end the start.
#[derive(Debug)]
pub(crate) struct Problem {
    what: String,
    source: io::Error,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

/// Mounts the file systems and opens the console as standard input, output and error. Returns the
/// failures, because they cannot be logged yet.
pub(crate) fn mount_and_take_console() -> Vec<Problem> {
    let mut problems = Vec::new();
    for wanted in &MOUNTS {
        if let Err(source) = mount(wanted) {
            problems.push(Problem {
                what: format!("cannot mount {}", wanted.target),
                source,
            });
        }
    }
    if let Err(source) = mount(&CGROUPS)
        && !is_without_cgroups(&source)
    {
        problems.push(Problem {
            what: format!("cannot mount {}", CGROUPS.target),
            source,
        });
    }
    if let Err(source) = console::become_stdio("/dev/console") {
        problems.push(Problem {
            what: "cannot open /dev/console".to_owned(),
            source,
        });
    }
    problems
}

/// Whether the kernel was built without cgroups. Then it has neither the file system nor its mount
/// point, and `/sys` does not let it be made.
fn is_without_cgroups(err: &io::Error) -> bool {
    let errors = [libc::ENODEV, libc::EPERM, libc::ENOENT];
    err.raw_os_error()
        .is_some_and(|errno| errors.contains(&errno))
}

/// The steps after the console is open. Logs its failures.
pub(crate) fn set_up(hostname: Option<&str>) {
    load_modules(Path::new(MODULES_PATH));
    if let Err(err) = net::bring_loopback_up() {
        warn!("cannot bring the loopback interface up: {err}");
    }
    if let Some(hostname) = hostname
        && let Err(errno) = nix::unistd::sethostname(hostname)
    {
        warn!("cannot set the host name to {hostname}: {errno}");
    }
    // Ctrl-Alt-Del, which a VMM can send, becomes SIGINT to this process instead of a reset.
    if let Err(errno) = reboot::set_cad_enabled(false) {
        warn!("cannot take over ctrl-alt-del: {errno}");
    }
}

fn load_modules(list: &Path) {
    let read = trusted(list, Last::Private).and_then(std::fs::read_to_string);
    let text = match read {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return,
        Err(err) => return warn!("cannot read {}: {err}", list.display()),
    };
    let mut loaded = 0;
    for path in module_paths(&text) {
        match modules::load(Path::new(path)) {
            Ok(Load::Loaded) => loaded += 1,
            Ok(Load::Present) => {}
            Err(err) => warn!("cannot load module {path}: {err}"),
        }
    }
    info!("{loaded} kernel modules loaded");
}

fn module_paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|path| path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_list_has_paths_and_comments() {
        let text = "# order matters\n/lib/a.ko\n  /lib/b.ko.zst # needs a\n\nrelative.ko\n";
        let paths: Vec<_> = module_paths(text).collect();
        assert_eq!(paths, ["/lib/a.ko", "/lib/b.ko.zst"]);
    }
}
