//! Kernel modules, loaded without a helper program.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// What loading did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The module was loaded now.
    Loaded,
    /// It was there already, loaded or built in.
    Present,
}

/// Loads one module file. What it depends on must be loaded already.
///
/// The kernel unpacks compressed files (5.17 and newer, if built so); the flag is given when the
/// name says so.
pub(crate) fn load(path: &Path) -> io::Result<Load> {
    let file = File::open(path)?;
    let compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if compressed {
        // `MODULE_INIT_COMPRESSED_FILE`, which nix has no name for.
        ModuleInitFlags::from_bits_retain(4)
    } else {
        ModuleInitFlags::empty()
    };
    match finit_module(&file, c"", flags) {
        Ok(()) => Ok(Load::Loaded),
        Err(Errno::EEXIST) => Ok(Load::Present),
        Err(errno) => Err(errno.into()),
    }
}
