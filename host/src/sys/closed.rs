//! Standard descriptors that this process was started without.
#![expect(
    unsafe_code,
    reason = "Rust's runtime hides closed descriptors before `main`"
)]

/// Runs before Rust's runtime does.
// SAFETY: the section holds pointers to functions that take the program's arguments or ignore them.
// The C runtime calls each of them once.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_RUNTIME: extern "C" fn() = occupy_closed;

/// Puts a descriptor that fails in place of each standard one that is closed.
///
/// The runtime opens `/dev/null` for them, for reading and writing: a closed input would look empty
/// and a closed output would swallow every byte. This opens it the wrong way round instead. Each
/// read or write then fails with EBADF, as it does on a closed descriptor, and no file that is
/// opened later can take the number. If it cannot be opened, the runtime cannot either, and ends
/// the process.
extern "C" fn occupy_closed() {
    for fd in 0..=2 {
        let mode = if fd == 0 {
            libc::O_WRONLY
        } else {
            libc::O_RDONLY
        };
        // SAFETY: fcntl with F_GETFD takes integers only. open takes a C string that lives for
        // ever; the lowest free number is `fd`, since those below it are open. Both are safe to
        // call before the runtime has started: they need nothing of it but `errno`.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), mode);
            }
        }
    }
}
