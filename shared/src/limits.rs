//! Every limit of the wire protocol, in one place, with the relations between them checked when
//! the crate is compiled. Reaching one is answered with a refusal or with back-pressure.

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 8;

/// Most payload bytes of any frame but EXEC.
pub const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// Most payload bytes of an EXEC frame, which carries a whole argument vector and environment.
pub const EXEC_PAYLOAD_LEN_MAX: usize = 1024 * 1024;

/// Bytes of the offset in front of the data of a stream payload.
pub const STREAM_OFFSET_LEN: usize = 8;

/// Most data bytes of one STDOUT or STDERR frame.
pub const STREAM_DATA_LEN_MAX: usize = PAYLOAD_LEN_MAX - STREAM_OFFSET_LEN;

/// Most bytes of argv, environment and working directory together, after decoding. Linux itself
/// takes up to a quarter of the stack limit (2 MiB of 8 MiB by default, `execve(2)`), so this
/// limit is met first and is answered in words.
pub const EXEC_BYTES_MAX: usize = 768 * 1024;

/// Most strings in argv and environment together.
pub const EXEC_STRINGS_MAX: usize = 65_536;

/// Most bytes of a host name (`sethostname(2)`, HOST_NAME_MAX).
pub const HOSTNAME_LEN_MAX: usize = 64;

/// Most bytes of a network interface's name (`IFNAMSIZ` less its terminator).
pub const INTERFACE_LEN_MAX: usize = 15;

/// Most characters of a free text in a FAIL, SEVER or PROGRESS frame. Longer text is cut by the
/// sender, so that an error can always be sent.
pub const TEXT_LEN_MAX: usize = 4 * 1024;

/// Most sessions named in one BUSY frame.
pub const BUSY_SESSIONS_MAX: usize = 1024;

/// Most sessions listed in one SESSIONS frame. The guest lists fewer when they are long.
pub const SESSIONS_PER_FRAME_MAX: usize = 1024;

/// Most bytes of a command's arguments in a list of sessions.
pub const COMMAND_TEXT_LEN_MAX: usize = 128;

/// Highest number of a signal (`SIGRTMAX`, `signal(7)`).
pub const SIGNAL_NUMBER_MAX: u8 = 64;

/// The vsock port the agent listens on unless told otherwise.
pub const PORT_DEFAULT: u32 = 5252;

/// The vsock context id of the host (`VMADDR_CID_HOST`, `include/uapi/linux/vm_sockets.h`).
pub const CID_HOST: u32 = 2;

const _: () = {
    assert!(PAYLOAD_LEN_MAX <= EXEC_PAYLOAD_LEN_MAX);
    assert!(EXEC_BYTES_MAX < EXEC_PAYLOAD_LEN_MAX);
    assert!(STREAM_DATA_LEN_MAX > 0);
    // Six characters are the longest JSON escape of one (`\u0000`).
    assert!(TEXT_LEN_MAX * 6 + 512 < PAYLOAD_LEN_MAX);
    // A session number is at most 20 digits and a comma.
    assert!(BUSY_SESSIONS_MAX * 21 + 128 < PAYLOAD_LEN_MAX);
};
