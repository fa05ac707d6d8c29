//! What programs of the guest see of the agent: a socket, and a file with the guest's generation.
//!
//! Both are open to every user. The socket only lets programs wait, and the generation is not
//! secret.

use std::fs::{self, Permissions};
use std::io;
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
use crate::sys::socket::{Address, Listener};

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
    let path = path.to_owned();
    let generation_path = folder.join(GENERATION_FILE);
    let listener = Listener::bind(&Address::Unix { path: path.clone() }, BACKLOG)?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    Ok(Local {
        listener,
        generation_path,
    })
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o644))?;
    fs::rename(&temporary, path)
}
