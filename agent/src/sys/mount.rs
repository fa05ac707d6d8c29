//! Mounting the kernel's file systems.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::mount::MsFlags;

/// One file system that init mounts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mount {
    /// Type, as the kernel names it. Also given as the source, which none of these has.
    pub kind: &'static str,
    /// Where it goes. Made if missing.
    pub target: &'static str,
    /// Flags of the mount.
    pub flags: MsFlags,
    /// Options of this type of file system.
    pub options: &'static str,
}

/// What mounting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mounted {
    /// It was mounted now.
    Now,
    /// Something was mounted there already.
    Before,
}

/// Mounts it, unless the target is a mount point already.
pub(crate) fn mount(wanted: &Mount) -> io::Result<Mounted> {
    let target = Path::new(wanted.target);
    match DirBuilder::new().mode(0o755).create(target) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        Ok(()) | Err(_) => {}
    }
    if is_mount_point(target)? {
        return Ok(Mounted::Before);
    }
    nix::mount::mount(
        Some(wanted.kind),
        target,
        Some(wanted.kind),
        wanted.flags,
        Some(wanted.options),
    )?;
    Ok(Mounted::Now)
}

/// Whether a directory is on another device than its parent: reliable for what is not a bind mount,
/// and it needs no `/proc`.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = path.metadata()?;
    let parent = path.join("..").metadata()?;
    Ok(own.dev() != parent.dev())
}
