//! What programs of the guest see of the agent: a socket, and a file with the guest's generation.
//!
//! Both are open to every user. The socket only lets programs wait, and the generation is not
//! secret.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use log::warn;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::mkdir;
use shared::id::Generation;

use super::Source;
use crate::client::GENERATION_FILE;
use crate::sys::file::{Last, trusted};
use crate::sys::socket::{Access, Address, Listener};

/// A program that finds the queue full waits.
const BACKLOG: libc::c_int = 64;

#[derive(Debug)]
pub(crate) struct Local {
    pub(super) listener: Listener,
    generation_path: PathBuf,
}

impl Local {
    /// Makes the directory and the socket in it. Without them the agent does the rest of its work.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let result = open(path);
        if let Err(err) = &result {
            warn!("cannot listen on {}: {err}", path.display());
        }
        result.ok()
    }

    pub(super) fn register(mut self, registry: &Registry) -> Option<Self> {
        let token = Source::LocalListener.token();
        match registry.register(&mut self.listener, token, Interest::READABLE) {
            Ok(()) => Some(self),
            Err(err) => {
                warn!("cannot poll the local socket: {err}");
                None
            }
        }
    }

    /// Replaces the file by rename, so that no reader sees half of it.
    pub(super) fn write_generation(&self, generation: Generation) {
        let path = &self.generation_path;
        if let Err(err) = replace(path, &format!("{generation}\n")) {
            warn!("cannot write {}: {err}", path.display());
        }
    }
}

fn open(path: &Path) -> io::Result<Local> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    match mkdir(folder, Mode::from_bits_retain(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let folder = trusted(folder, Last::Folder)?;
    let address = Address::Unix {
        path: folder.join(path.file_name().unwrap_or_default()),
        access: Access::Any,
    };
    Ok(Local {
        listener: Listener::bind(&address, BACKLOG)?,
        generation_path: folder.join(GENERATION_FILE),
    })
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // In a sticky folder another user may have put a link there, which must not be followed.
    match fs::remove_file(&temporary) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, path)
}
