//! What the fuzz targets reach: the parsers of bytes that others write.

use std::path::Path;

pub use crate::guest::hybrid_vsock;
pub use crate::vmm::firecracker::http;
pub use crate::vmm::qemu::qmp;

/// The manifest of an artifact that comes from anywhere.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest(crate::artifact::Manifest);

impl Manifest {
    /// Reads the file's bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let parsed = crate::artifact::Manifest::parse(Path::new("manifest.json"), bytes);
        parsed.ok().map(Self)
    }

    /// The text of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_value().to_string()
    }

    /// The bytes of all files, by the manifest's own sum.
    #[must_use]
    pub fn files_len(&self) -> u64 {
        self.0.files_len()
    }

    /// The bytes of each file.
    pub fn file_lens(&self) -> impl Iterator<Item = u64> {
        self.0.files.iter().map(|file| file.len)
    }
}
