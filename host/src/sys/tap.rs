//! Tap devices: whether this process may use one.
#![expect(unsafe_code, reason = "neither std nor nix has TUNSETIFF")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// The device through which all tap devices are opened.
pub(crate) const TUN_PATH: &str = "/dev/net/tun";

/// Attaches to the tap device `name` as a VMM does, until the file is dropped.
///
/// # Errors
///
/// EBUSY if another process is attached, EPERM if this one may not attach, EINVAL if the device is
/// not a tap device. If no device has this name, the kernel creates one for the life of the file.
pub(crate) fn attach(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(TUN_PATH)?;
    // SAFETY: an all-zero `ifreq` is a valid value of that plain C struct and union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: it terminates the name.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live `ifreq` with a terminated name, which the call reads and
    // writes back, and the descriptor is open for the length of the borrow.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}
