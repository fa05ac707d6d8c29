//! Frames: an 8-byte header and a payload.
//!
//! ```text
//!  0       4      5       6          8
//!  ├───────┼──────┼───────┼──────────┼─────────────┤
//!  │ len   │ kind │ flags │ reserved │ payload     │
//!  │ u32LE │ u8   │ u8 =0 │ u16 =0   │ len bytes   │
//! ```
//!
//! [`Decoder`] accepts bytes in any pieces and returns whole frames. It refuses a header that
//! announces more than its kind may carry before it allocates memory. With [`Decoder::try_push`] a
//! lack of memory is an answer. After one bad header nothing
//! in the stream can be trusted, so the decoder refuses all that follows.

use std::fmt;

use crate::limits::{EXEC_PAYLOAD_LEN_MAX, HEADER_LEN, PAYLOAD_LEN_MAX};

/// A decoder with no more bytes than this takes no more memory than the next power of two.
pub const SMALL_LEN: usize = 8 * 1024;

macro_rules! frame_kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// The kind of a frame. The numbers on the wire never change their meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FrameKind {
            $($(#[$doc])* $name = $code,)*
        }

        impl FrameKind {
            /// Every kind, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind with this number, if any.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for FrameKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

frame_kinds! {
    /// The first frame each way: the sender's versions and side.
    Hello = 1, "HELLO";
    /// Refuses a request, with the reason.
    Fail = 2, "FAIL";
    /// Asks for a PONG.
    Ping = 3, "PING";
    /// Answers a PING.
    Pong = 4, "PONG";
    /// Answers REOPEN, SIGNAL and SHUTDOWN.
    Ok = 5, "OK";
    /// Gives the guest a generation and asks it to become usable under it.
    Rebind = 16, "REBIND";
    /// The guest works on the request; extends the attempt.
    Progress = 17, "PROGRESS";
    /// Completes REBIND.
    Rebound = 18, "REBOUND";
    /// Asks for proof that commands can run.
    Probe = 19, "PROBE";
    /// Completes PROBE with the proof.
    Probed = 20, "PROBED";
    /// Asks the guest to be silent for a snapshot.
    Quiesce = 24, "QUIESCE";
    /// The sessions that QUIESCE waits for.
    Busy = 25, "BUSY";
    /// Completes QUIESCE: the guest is silent.
    Quiesced = 26, "QUIESCED";
    /// Takes a QUIESCE back.
    Reopen = 27, "REOPEN";
    /// The guest is about to cut this connection.
    Sever = 28, "SEVER";
    /// Runs a command.
    Exec = 32, "EXEC";
    /// Answers EXEC: the command runs.
    Started = 33, "STARTED";
    /// Bytes of the command's standard output.
    Stdout = 34, "STDOUT";
    /// Bytes of the command's standard error.
    Stderr = 35, "STDERR";
    /// How the command ended, after its last byte of output.
    Exited = 36, "EXITED";
    /// Attaches to an existing session.
    Attach = 37, "ATTACH";
    /// Answers ATTACH; output follows.
    Attached = 38, "ATTACHED";
    /// The host has consumed output up to an offset.
    Ack = 39, "ACK";
    /// The guest has dropped bytes of output.
    Gap = 40, "GAP";
    /// Bytes for the command's standard input.
    Stdin = 41, "STDIN";
    /// The end of the command's standard input.
    StdinEof = 42, "STDIN_EOF";
    /// Credit for standard input.
    Window = 43, "WINDOW";
    /// Sends a signal to a session's process group.
    Signal = 44, "SIGNAL";
    /// The terminal's new size.
    Resize = 45, "RESIZE";
    /// The host has received EXITED.
    ExitAck = 46, "EXIT_ACK";
    /// Asks for, and carries, the list of sessions.
    Sessions = 47, "SESSIONS";
    /// Asks for, and carries, the agent's figures.
    Info = 64, "INFO";
    /// Powers the guest off or reboots it.
    Shutdown = 65, "SHUTDOWN";
    /// Waits for a program at a checkpoint.
    AwaitCheckpoint = 66, "AWAIT_CHECKPOINT";
    /// A program waits at a checkpoint.
    Checkpoint = 67, "CHECKPOINT";
    /// Ends a program's wait at a checkpoint.
    Verdict = 68, "VERDICT";
    /// Asks for, and carries, a new generation of the guest.
    Generation = 69, "GENERATION";
    /// Runs the image's hooks.
    Hooks = 70, "HOOKS";
    /// Completes HOOKS with the results.
    Hooked = 71, "HOOKED";
}

impl FrameKind {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Most payload bytes that a frame of this kind may carry.
    #[must_use]
    pub const fn payload_len_max(self) -> usize {
        if matches!(self, Self::Exec) {
            EXEC_PAYLOAD_LEN_MAX
        } else {
            PAYLOAD_LEN_MAX
        }
    }
}

/// One whole frame, borrowed from the decoder that received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame<'a> {
    /// The kind, which decides what the payload is.
    pub kind: FrameKind,
    /// The payload, at most [`FrameKind::payload_len_max`] bytes.
    pub payload: &'a [u8],
}

/// Why received bytes are not a frame. The receiver ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameError {
    /// No kind of frame has this number.
    UnknownKind {
        /// The received number.
        code: u8,
    },
    /// Flags or reserved bits are set. Protocol version 1 has none.
    ReservedBits {
        /// The four bytes after the length.
        bytes: [u8; 4],
    },
    /// The header announces more than its kind may carry.
    PayloadTooLong {
        /// The kind announced.
        kind: FrameKind,
        /// The length announced, in bytes.
        len: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKind { code } => write!(f, "unknown frame kind {code}"),
            Self::ReservedBits { bytes } => {
                write!(
                    f,
                    "reserved header bits are set (kind, flags, reserved: {bytes:02x?})"
                )
            }
            Self::PayloadTooLong { kind, len } => {
                write!(
                    f,
                    "{kind} payload of {len} bytes exceeds {}",
                    kind.payload_len_max()
                )
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// There is no memory for received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoMemory;

/// Appends a frame of `kind` to `out`; `write_payload` appends the payload.
///
/// # Panics
///
/// When the payload is longer than its kind may carry. Senders build payloads from parts with
/// limits, so this is a bug of the sender.
pub fn encode_with(out: &mut Vec<u8>, kind: FrameKind, write_payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind.code(), 0, 0, 0]);
    write_payload(out);
    let len = out.len() - start - HEADER_LEN;
    assert!(
        len <= kind.payload_len_max(),
        "{kind} payload of {len} bytes is over its limit"
    );
    let len = u32::try_from(len).expect("every payload limit fits in 32 bits");
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// Turns received bytes into frames.
///
/// It holds the bytes that were pushed and not yet taken: at most one unfinished frame and the last
/// push, if the caller takes every frame before it pushes again.
#[derive(Debug, Clone, Default, Hash)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Number of bytes of `buffer` that returned frames used.
    consumed: usize,
    refused: Option<FrameError>,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            refused: None,
        }
    }

    /// Appends received bytes. After a bad header it drops them.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.refused.is_none() {
            self.drop_consumed();
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// As [`push`](Self::push), for a receiver that outlives a lack of memory.
    ///
    /// # Errors
    ///
    /// Nothing was appended.
    pub fn try_push(&mut self, bytes: &[u8]) -> Result<(), NoMemory> {
        if self.refused.is_some() {
            return Ok(());
        }
        self.drop_consumed();
        let (held, capacity) = (self.buffer.len(), self.buffer.capacity());
        let wanted = held + bytes.len();
        if wanted > capacity {
            // Doubling costs a large frame few copies. Small ones take what they need.
            let target = match wanted {
                ..=SMALL_LEN => wanted.next_power_of_two(),
                _ => wanted.max(capacity * 2),
            };
            let result = self.buffer.try_reserve_exact(target - held);
            result.map_err(|_| NoMemory)?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn drop_consumed(&mut self) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
    }

    /// The next whole frame; `None` if it needs more bytes.
    ///
    /// # Errors
    ///
    /// The first bad header, and the same again on every later call.
    pub fn poll_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let rest = &self.buffer[self.consumed..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_LEN>() else {
            self.release_idle_memory();
            return Ok(None);
        };
        let (kind, len) = parse_header(*header).inspect_err(|&error| {
            self.refused = Some(error);
        })?;
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.consumed + HEADER_LEN;
        self.consumed = start + len;
        Ok(Some(Frame {
            kind,
            payload: &self.buffer[start..start + len],
        }))
    }

    /// The last `len` payload bytes of the frame that [`poll_frame`](Self::poll_frame) returned
    /// last, so that stream data need not be copied. Valid until the next [`push`](Self::push).
    ///
    /// # Panics
    ///
    /// When that frame was shorter.
    #[must_use]
    pub fn payload(&self, len: usize) -> &[u8] {
        &self.buffer[self.consumed - len..self.consumed]
    }

    /// Whether bytes of an unfinished frame are held.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.consumed < self.buffer.len()
    }

    /// Bytes that are held and not taken.
    #[must_use]
    pub fn held_len(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The kind and the payload's length of the unfinished frame, if its header has come.
    #[must_use]
    pub fn announced(&self) -> Option<(FrameKind, usize)> {
        let (header, _) = self.buffer[self.consumed..].split_first_chunk::<HEADER_LEN>()?;
        parse_header(*header).ok()
    }

    /// Frees the memory if no bytes are held.
    pub fn release_memory(&mut self) {
        if self.consumed == self.buffer.len() {
            self.buffer = Vec::new();
            self.consumed = 0;
        }
    }

    /// Number of bytes of allocated memory.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        self.buffer.capacity()
    }

    /// Frees the buffer of a large EXEC, which a long connection does not need again.
    fn release_idle_memory(&mut self) {
        if self.buffer.capacity() > PAYLOAD_LEN_MAX * 2 {
            self.release_memory();
        }
    }
}

fn parse_header(header: [u8; HEADER_LEN]) -> Result<(FrameKind, usize), FrameError> {
    let [l0, l1, l2, l3, code, flags, r0, r1] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]);
    let kind = FrameKind::from_code(code).ok_or(FrameError::UnknownKind { code })?;
    if (flags, r0, r1) != (0, 0, 0) {
        return Err(FrameError::ReservedBits {
            bytes: [code, flags, r0, r1],
        });
    }
    match usize::try_from(len) {
        Ok(len) if len <= kind.payload_len_max() => Ok((kind, len)),
        _ => Err(FrameError::PayloadTooLong { kind, len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_with(&mut out, kind, |out| out.extend_from_slice(payload));
        out
    }

    #[test]
    fn every_kind_has_one_number() {
        for &kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_code(kind.code()), Some(kind));
        }
        let known = (0..=u8::MAX)
            .filter(|&code| FrameKind::from_code(code).is_some())
            .count();
        assert_eq!(known, FrameKind::ALL.len());
    }

    #[test]
    fn frames_survive_every_split() {
        let mut bytes = encode(FrameKind::Ping, b"{\"nonce\":1}");
        bytes.extend(encode(FrameKind::Ok, b""));
        bytes.extend(encode(FrameKind::Stdout, b"12345678data"));
        for split in 0..=bytes.len() {
            let mut decoder = Decoder::new();
            let mut kinds = Vec::new();
            for piece in [&bytes[..split], &bytes[split..]] {
                decoder.push(piece);
                while let Some(frame) = decoder.poll_frame().unwrap() {
                    kinds.push((frame.kind, frame.payload.len()));
                }
            }
            let expected = [
                (FrameKind::Ping, 11),
                (FrameKind::Ok, 0),
                (FrameKind::Stdout, 12),
            ];
            assert_eq!(kinds, expected, "split at {split}");
            assert!(!decoder.is_mid_frame());
        }
    }

    #[test]
    fn bad_headers_are_refused_for_good() {
        let too_long = u32::try_from(PAYLOAD_LEN_MAX + 1).unwrap();
        let cases: [([u8; 8], FrameError); 4] = [
            (
                [0, 0, 0, 0, 0, 0, 0, 0],
                FrameError::UnknownKind { code: 0 },
            ),
            (
                [0, 0, 0, 0, 3, 1, 0, 0],
                FrameError::ReservedBits {
                    bytes: [3, 1, 0, 0],
                },
            ),
            (
                [0, 0, 0, 0, 3, 0, 0, 1],
                FrameError::ReservedBits {
                    bytes: [3, 0, 0, 1],
                },
            ),
            (
                [1, 0, 1, 0, 3, 0, 0, 0],
                FrameError::PayloadTooLong {
                    kind: FrameKind::Ping,
                    len: too_long,
                },
            ),
        ];
        for (header, error) in cases {
            let mut decoder = Decoder::new();
            decoder.push(&header);
            assert_eq!(decoder.poll_frame(), Err(error));
            decoder.push(&encode(FrameKind::Ok, b""));
            assert_eq!(
                decoder.poll_frame(),
                Err(error),
                "a refused stream stays refused"
            );
        }
    }

    #[test]
    fn what_comes_behind_a_bad_header_takes_no_memory() {
        let mut decoder = Decoder::new();
        decoder.push(&[0xff; HEADER_LEN]);
        decoder.poll_frame().unwrap_err();
        let memory_len = decoder.memory_len();
        decoder.push(&[0; PAYLOAD_LEN_MAX]);
        assert_eq!(decoder.memory_len(), memory_len);
    }

    #[test]
    fn each_limit_holds_at_the_limit_and_not_past_it() {
        for kind in [FrameKind::Stdout, FrameKind::Exec] {
            let max = kind.payload_len_max();
            let mut decoder = Decoder::new();
            decoder.push(&encode(kind, &vec![b'x'; max]));
            assert_eq!(decoder.poll_frame().unwrap().unwrap().payload.len(), max);

            let len = u32::try_from(max + 1).unwrap();
            let mut header = [0; HEADER_LEN];
            header[..4].copy_from_slice(&len.to_le_bytes());
            header[4] = kind.code();
            let mut decoder = Decoder::new();
            decoder.push(&header);
            assert_eq!(
                decoder.poll_frame(),
                Err(FrameError::PayloadTooLong { kind, len })
            );
        }
    }

    /// Small frames take what they need, long ones double, and what was taken is given back.
    #[test]
    fn memory_follows_what_is_held() {
        let mut decoder = Decoder::new();
        for (pushed, most) in [
            (3000, 4096),
            (5000, SMALL_LEN),
            (192, SMALL_LEN),
            (1, 2 * SMALL_LEN),
            (100_000, 200_000),
        ] {
            let before = decoder.held_len();
            decoder.try_push(&vec![b' '; pushed]).unwrap();
            assert_eq!(decoder.held_len(), before + pushed);
            assert!(decoder.memory_len() <= most, "{}", decoder.memory_len());
        }
        decoder.release_memory();
        assert!(decoder.memory_len() > 0, "bytes are held");
        let mut decoder = Decoder::new();
        decoder.push(&encode(FrameKind::Exec, b"{}")[..9]);
        assert_eq!(decoder.announced(), Some((FrameKind::Exec, 2)));
        decoder.try_push(b"}").unwrap();
        assert!(decoder.poll_frame().unwrap().is_some());
        assert_eq!((decoder.held_len(), decoder.announced()), (0, None));
        decoder.release_memory();
        assert_eq!(decoder.memory_len(), 0);
    }

    #[test]
    fn a_large_frame_does_not_keep_its_memory() {
        let mut decoder = Decoder::new();
        decoder.push(&encode(FrameKind::Exec, &vec![b'x'; EXEC_PAYLOAD_LEN_MAX]));
        assert!(decoder.poll_frame().unwrap().is_some());
        assert!(decoder.poll_frame().unwrap().is_none());
        assert_eq!(decoder.buffer.capacity(), 0);
    }
}
