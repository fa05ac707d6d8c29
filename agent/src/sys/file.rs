//! Reading small files of the image.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a regular file of at most `len_max` bytes. Opening it non-blocking avoids waiting for a
/// named pipe in its place.
pub(crate) fn read_small(path: &Path, len_max: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        let text = "not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut bytes = Vec::new();
    // One byte over the limit tells that the file is too long.
    file.take(len_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > len_max {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    #[test]
    fn only_regular_files_up_to_the_limit_are_read() {
        let folder = std::env::temp_dir().join(format!("agent-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_small(&path, 5).unwrap(), b"12345");
        let errno = |result: io::Result<Vec<u8>>| result.unwrap_err().raw_os_error();
        assert_eq!(errno(read_small(&path, 4)), Some(libc::EFBIG));
        assert_eq!(
            errno(read_small(&folder.join("missing"), 4)),
            Some(libc::ENOENT)
        );
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        for path in [&pipe, &folder] {
            let kind = read_small(path, 4).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{}", path.display());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
