//! The text lines in front of a hybrid vsock connection. No I/O.
//!
//! The client writes `CONNECT <port>\n`, and when the guest has accepted, one line `OK <number>\n`
//! comes back, followed by what the guest sends. The number is a port of one side, which side
//! depends on the VMM, and is not used here. If the guest does not listen, the VMM closes without a
//! line.

use std::fmt;

/// Longest line that is read. Firecracker's is at most 14 bytes.
pub const LINE_LEN_MAX: usize = 64;

/// The line that asks for `port`. It goes out in one write with what follows: Firecracker reads it
/// from a non-blocking socket and drops a connection whose line comes in pieces.
#[must_use]
pub fn connect_line(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// Reads the answer at the start of `bytes`: its length with the line end, or `None` while it is
/// incomplete. The bytes after it are the guest's.
///
/// # Errors
///
/// When the bytes are not, and cannot become, the answer.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<usize>, NotHybridVsock> {
    const PREFIX: &[u8] = b"OK ";
    let window = &bytes[..bytes.len().min(LINE_LEN_MAX)];
    let known = window.len().min(PREFIX.len());
    if window[..known] != PREFIX[..known] {
        return Err(NotHybridVsock);
    }
    match window.iter().position(|&byte| byte == b'\n') {
        Some(index) if window[PREFIX.len()..index].iter().all(u8::is_ascii_digit) => {
            Ok(Some(index + 1))
        }
        None if window.len() < LINE_LEN_MAX => Ok(None),
        Some(_) | None => Err(NotHybridVsock),
    }
}

/// The peer does not answer as a hybrid vsock socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHybridVsock;

impl fmt::Display for NotHybridVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the socket does not answer CONNECT with OK: not a hybrid vsock socket \
             (for an agent on a plain Unix socket use --unix)",
        )
    }
}

impl std::error::Error for NotHybridVsock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_at_every_split() {
        let whole = b"OK 1073741824\nrest";
        for end in 0..14 {
            assert_eq!(parse_answer(&whole[..end]), Ok(None), "{end} bytes");
        }
        for end in 14..=whole.len() {
            assert_eq!(parse_answer(&whole[..end]), Ok(Some(14)), "{end} bytes");
        }
    }

    #[test]
    fn other_answers_are_refused_as_soon_as_they_differ() {
        for bad in [
            &b"E"[..],
            b"ok 1\n",
            b"OK\n",
            b"OK x\n",
            b"\n",
            b"HTTP/1.1 400\r\n",
            &[0xff],
        ] {
            assert_eq!(parse_answer(bad), Err(NotHybridVsock), "{bad:?}");
        }
    }

    #[test]
    fn the_line_has_a_limit() {
        let mut line = b"OK ".to_vec();
        line.resize(LINE_LEN_MAX - 1, b'1');
        assert_eq!(parse_answer(&line), Ok(None));
        line.push(b'\n');
        assert_eq!(parse_answer(&line), Ok(Some(LINE_LEN_MAX)));
        line.insert(3, b'1');
        assert_eq!(parse_answer(&line), Err(NotHybridVsock));
    }

    #[test]
    fn the_port_is_decimal() {
        assert_eq!(connect_line(5252), "CONNECT 5252\n");
    }
}
