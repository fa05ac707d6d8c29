//! Feeding the kernel's random number generator, and drawing from it.
//!
//! Two clones of one memory image only diverge by the pair of requests below. Bytes written to
//! `/dev/urandom` are mixed in, but not credited and not used before the next timed reseed.

#![expect(
    unsafe_code,
    reason = "getrandom and the two requests of /dev/urandom have no safe wrapper"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use super::check;

/// Most bytes of one call.
pub(crate) const ENTROPY_LEN_MAX: usize = 64;

/// `RNDADDENTROPY`: `_IOW('R', 0x03, int[2])` of `linux/random.h`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

/// `RNDRESEEDCRNG`: `_IO('R', 0x07)` of `linux/random.h`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with room for the most that is credited at once.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    buffer_len: libc::c_int,
    buffer: [u8; ENTROPY_LEN_MAX],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reseed {
    /// The generator uses the new bytes from now on.
    Done,
    /// The generator was not initialized yet, and these bytes count for it. It has produced no
    /// output that clones could share.
    NotReadyYet,
}

/// Credits `bytes` and makes the generator use them at once.
pub(crate) fn reseed(bytes: &[u8]) -> io::Result<Reseed> {
    let urandom = OpenOptions::new().write(true).open("/dev/urandom")?;
    credit(&urandom, bytes)?;
    // SAFETY: this request takes no argument.
    match check(unsafe { libc::ioctl(urandom.as_raw_fd(), RNDRESEEDCRNG) }) {
        Ok(_) => Ok(Reseed::Done),
        Err(err) if err.raw_os_error() == Some(libc::ENODATA) => Ok(Reseed::NotReadyYet),
        Err(err) => Err(err),
    }
}

/// Random bytes, without waiting for the generator to be initialized: process 1 starts before that.
pub(crate) fn draw<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the pointer is to `N` bytes that may be written.
    let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, libc::GRND_INSECURE) };
    if usize::try_from(len) != Ok(N) {
        // Linux before 5.6 does not know the flag.
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    }
    Ok(bytes)
}

fn credit(urandom: &File, bytes: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_bits: 0,
        buffer_len: 0,
        buffer: [0; ENTROPY_LEN_MAX],
    };
    let Some(buffer) = info.buffer.get_mut(..bytes.len()) else {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    };
    buffer.copy_from_slice(bytes);
    info.buffer_len = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    info.entropy_bits = info.buffer_len.saturating_mul(8);
    // SAFETY: the pointer is to a live structure laid out as the kernel's, and `buffer_len` is
    // within its buffer.
    check(unsafe { libc::ioctl(urandom.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    Ok(())
}
