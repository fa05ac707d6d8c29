//! Mounting file systems.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::mount::MsFlags;

/// A file system to mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mount {
    /// The kernel's name of the type. Also passed as the source, which these types do not have.
    pub kind: &'static str,
    /// The mount point; created if missing.
    pub target: &'static str,
    pub flags: MsFlags,
    /// Options of the type.
    pub options: &'static str,
}

/// Mounts a file system, unless the target is a mount point already.
pub(crate) fn mount(wanted: &Mount) -> io::Result<()> {
    let target = Path::new(wanted.target);
    match DirBuilder::new().mode(0o755).create(target) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        Ok(()) | Err(_) => {}
    }
    if is_mount_point(target)? {
        return Ok(());
    }
    nix::mount::mount(
        Some(wanted.kind),
        target,
        Some(wanted.kind),
        wanted.flags,
        Some(wanted.options),
    )?;
    Ok(())
}

/// Whether a directory is on another device than its parent. Bind mounts apart this is reliable,
/// and it works without `/proc`.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = path.metadata()?;
    let parent = path.join("..").metadata()?;
    Ok(own.dev() != parent.dev())
}
