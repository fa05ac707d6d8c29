//! All limits of the wire protocol. The relations between them are checked at compile time. A side
//! that reaches one refuses or applies back-pressure.

/// Length of a frame header, in bytes.
pub const HEADER_LEN: usize = 8;

/// Most payload bytes of a frame, except EXEC.
pub const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// Most payload bytes of an EXEC frame, which carries a whole argument vector and environment.
pub const EXEC_PAYLOAD_LEN_MAX: usize = 1024 * 1024;

/// Length of the offset before the data of a stream payload, in bytes.
pub const STREAM_OFFSET_LEN: usize = 8;

/// Most data bytes of one STDOUT, STDERR or STDIN frame.
pub const STREAM_DATA_LEN_MAX: usize = PAYLOAD_LEN_MAX - STREAM_OFFSET_LEN;

/// Most bytes of argv, environment, working directory and user of an EXEC together, after decoding,
/// with a terminator for each. Linux accepts a quarter of the stack limit (2 MiB of 8 MiB by
/// default, `execve(2)`), so this limit is reached first, with an error that names it.
pub const EXEC_BYTES_MAX: usize = 768 * 1024;

/// Most strings in argv, environment, working directory and user of an EXEC together.
pub const EXEC_STRINGS_MAX: usize = 65_536;

/// Most bytes of a host name (`sethostname(2)`, HOST_NAME_MAX).
pub const HOSTNAME_LEN_MAX: usize = 64;

/// Most bytes of a network interface's name (`IFNAMSIZ` without the terminator).
pub const INTERFACE_LEN_MAX: usize = 15;

/// Most bytes of a text for people, as in FAIL and PROGRESS. Both sides cut longer texts, so that
/// an error can always be sent.
pub const TEXT_LEN_MAX: usize = 4 * 1024;

/// Most session numbers in one BUSY frame.
pub const BUSY_SESSIONS_MAX: usize = 1024;

/// Most sessions in one SESSIONS frame. The guest sends fewer if they are long.
pub const SESSIONS_PER_FRAME_MAX: usize = 1024;

/// Most bytes of a command in a list of sessions.
pub const COMMAND_TEXT_LEN_MAX: usize = 128;

/// Most bytes of a checkpoint's tag. The longest hexadecimal digest in use has 128.
pub const TAG_LEN_MAX: usize = 256;

/// Most hooks of one stage.
pub const HOOKS_MAX: usize = 64;

/// Most bytes of a hook's name in its result (`NAME_MAX` of Linux).
pub const HOOK_NAME_LEN_MAX: usize = 255;

/// Highest number of a signal (`SIGRTMAX`, `signal(7)`).
pub const SIGNAL_NUMBER_MAX: u8 = 64;

/// The vsock port on which the agent listens by default.
pub const PORT_DEFAULT: u32 = 5252;

/// The vsock context id of the host (`VMADDR_CID_HOST`, `include/uapi/linux/vm_sockets.h`).
pub const CID_HOST: u32 = 2;

const _: () = {
    assert!(PAYLOAD_LEN_MAX <= EXEC_PAYLOAD_LEN_MAX);
    assert!(EXEC_BYTES_MAX < EXEC_PAYLOAD_LEN_MAX);
    assert!(STREAM_DATA_LEN_MAX > 0);
    // The longest JSON escape of a character has six (`\u0000`).
    assert!(TEXT_LEN_MAX * 6 + 512 < PAYLOAD_LEN_MAX);
    // A session number has at most 20 digits and a comma.
    assert!(BUSY_SESSIONS_MAX * 21 + 128 < PAYLOAD_LEN_MAX);
    // A hook's result without its name has less than 128 bytes.
    assert!(HOOKS_MAX * (HOOK_NAME_LEN_MAX + 128) + 128 < PAYLOAD_LEN_MAX);
};
