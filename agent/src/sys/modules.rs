//! Loading kernel modules.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The module was loaded now.
    Loaded,
    /// It had been loaded already, or is built in.
    Present,
}

/// Loads a module file, whose dependencies must be loaded already. The kernel unpacks compressed
/// ones (5.17 and newer, if built so); any extension but `.ko` means compressed.
pub(crate) fn load(path: &Path) -> io::Result<Load> {
    let file = File::open(path)?;
    let compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if compressed {
        // `MODULE_INIT_COMPRESSED_FILE`, which nix does not define.
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
