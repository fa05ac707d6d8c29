//! Lists the image's hooks.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use shared::limits::HOOKS_MAX;
use shared::message::HookStage;

use crate::agent::HookListing;
use crate::sys::file::{Last, names, trusted};

pub(crate) fn has_restore(folder: &Path) -> bool {
    folder_of(folder, HookStage::Restore).is_dir()
}

pub(super) fn list(folder: &Path, stage: HookStage) -> Result<HookListing, String> {
    let paths = match executables(&folder_of(folder, stage)) {
        Ok(paths) => paths,
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(format!("cannot list the hooks: {err}")),
    };
    if paths.len() > HOOKS_MAX {
        return Err(format!("there are more than {HOOKS_MAX} hooks"));
    }
    Ok(HookListing {
        paths,
        has_restore: has_restore(folder),
    })
}

fn folder_of(folder: &Path, stage: HookStage) -> PathBuf {
    folder.join(format!("{stage}.d"))
}

/// The executable files, sorted by name, without those that begin with a dot. They run with the
/// agent's rights: one that another user could have written, or its folder, is an error.
fn executables(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    trusted(folder, Last::Private)?;
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for name in names(folder)? {
        let path = folder.join(&name);
        let is_hidden = name.as_bytes().starts_with(b".");
        // Links are followed, as by exec.
        let is_executable = fs::metadata(&path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if is_executable && !is_hidden {
            trusted(&path, Last::Private)?;
            let path = path.into_os_string().into_vec();
            let index = paths.partition_point(|other| *other < path);
            paths.insert(index, path);
        }
    }
    Ok(paths)
}
