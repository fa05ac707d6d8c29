//! The machine that a VMM runs, and the files of its saved state.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::message::MacAddress;

use super::VmmKind;

/// A machine to boot or to load. In one to boot, all paths are absolute and the caller has checked
/// all files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineSpec {
    /// Uncompressed ELF kernel.
    pub(crate) kernel: PathBuf,
    /// Initramfs with the agent as `/init`.
    pub(crate) initrd: PathBuf,
    pub(crate) memory_mib: u32,
    pub(crate) vcpu_count: u8,
    /// Block devices, in the guest's order.
    pub(crate) drives: Vec<Drive>,
    pub(crate) nic: Option<Nic>,
    /// Appended to the kernel command line that the VMM needs.
    pub(crate) append: String,
    /// The guest's vsock CID, 3 or more. With vhost-vsock it is unique on the host; Firecracker
    /// does not show it to the host.
    pub(crate) guest_cid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    pub(crate) path: PathBuf,
    /// The guest may not write to it.
    pub(crate) read_only: bool,
}

/// The guest's network interface, on an existing tap device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nic {
    pub(crate) tap: String,
    /// The MAC address that the machine was booted with. A rebind may have given the guest another.
    pub(crate) mac: MacAddress,
    /// Firecracker's metadata service answers on it.
    pub(crate) has_mmds: bool,
}

/// A file that was opened and checked. It is read through its descriptor, because another file may
/// have taken its path since.
#[derive(Debug, Clone)]
pub(crate) struct OpenFile {
    /// For messages.
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
}

impl OpenFile {
    /// Opens the same file once more. Several VMMs read it at a time, each from its own offset.
    pub(crate) fn open_anew(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl PartialEq for OpenFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }
}

impl Eq for OpenFile {}

/// Files of one VMM state inside an artifact directory. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateFiles {
    /// Device and vCPU state. For QEMU the migration stream, memory included.
    pub(crate) state: PathBuf,
    /// The same file, for a load. QEMU is given the descriptor; Firecracker takes only paths.
    pub(crate) open_state: Option<OpenFile>,
    /// Guest memory; `None` where it is part of `state`.
    pub(crate) memory: Option<PathBuf>,
    /// The state has its vsock socket outside the VM directory: a load has to override the path.
    pub(crate) overrides_vsock: bool,
    /// The tap device to load with, if it is not the one in the state. QEMU takes it from its
    /// command line instead.
    pub(crate) tap: Option<String>,
}

impl StateFiles {
    /// The files that a VMM of this kind needs, under their usual names in `dir`.
    pub(crate) fn in_dir(kind: VmmKind, dir: &Path) -> Self {
        let memory = match kind {
            VmmKind::Firecracker => Some(dir.join("memory")),
            VmmKind::Qemu => None,
        };
        Self {
            state: dir.join("vmstate"),
            open_state: None,
            memory,
            overrides_vsock: false,
            tap: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_file_that_was_opened_is_read_whatever_its_path_leads_to() {
        let temp = TempDir::new("open");
        let path = temp.path().join("f");
        fs::write(&path, "checked").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let open = OpenFile {
            path: path.clone(),
            file,
        };
        fs::rename(&path, temp.path().join("moved")).unwrap();
        fs::write(&path, "another").unwrap();
        // Each one reads from the start.
        let mut files = [open.open_anew().unwrap(), open.open_anew().unwrap()];
        for file in &mut files {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "checked");
        }
    }

    #[test]
    fn state_files_by_kind() {
        let files = StateFiles::in_dir(VmmKind::Firecracker, Path::new("/a"));
        assert_eq!(files.state, Path::new("/a/vmstate"));
        assert_eq!(files.memory.as_deref(), Some(Path::new("/a/memory")));
        assert_eq!(
            StateFiles::in_dir(VmmKind::Qemu, Path::new("/a")).memory,
            None
        );
    }
}
