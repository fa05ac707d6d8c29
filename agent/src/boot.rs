//! The duties of process 1: make the machine one that programs can run in.
//!
//! ```text
//! mount ─▶ console as standard input and output ─▶ modules ─▶ loopback ─▶ host name
//! ```
//!
//! Nothing here ends the start: a machine without `/dev/pts` still runs most commands, and one
//! without vsock fails a moment later, where the failure has a name. What went wrong is reported
//! when the console is there.

use std::fmt;
use std::io;
use std::path::Path;

use log::{info, warn};
use nix::mount::MsFlags;
use nix::sys::reboot;

use crate::sys::modules::Load;
use crate::sys::mount::{Mount, mount};
use crate::sys::{console, modules, net};

/// Names the kernel modules to load: one absolute path a line, in load order; `#` starts a comment.
const MODULES_PATH: &str = "/etc/guest-agent/modules";

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// What is mounted, in this order. What an earlier stage has mounted stays as it is.
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

/// Something that could not be done. The start goes on.
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

/// Mounts the kernel's file systems and takes the console as standard input, output and error.
/// Returns what went wrong, since there is nowhere to write it yet.
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
    if let Err(source) = console::become_stdio("/dev/console") {
        problems.push(Problem {
            what: "cannot open /dev/console".to_owned(),
            source,
        });
    }
    problems
}

/// The rest, which reports as it goes.
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
    // Ctrl-Alt-Del, which a VMM can press, becomes SIGINT to this process instead of an immediate
    // reset.
    if let Err(errno) = reboot::set_cad_enabled(false) {
        warn!("cannot take over ctrl-alt-del: {errno}");
    }
}

fn load_modules(list: &Path) {
    let text = match std::fs::read_to_string(list) {
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
    fn module_list_takes_paths_and_skips_comments() {
        let text = "# order matters\n/lib/a.ko\n  /lib/b.ko.zst # needs a\n\nrelative.ko\n";
        let paths: Vec<_> = module_paths(text).collect();
        assert_eq!(paths, ["/lib/a.ko", "/lib/b.ko.zst"]);
    }
}
