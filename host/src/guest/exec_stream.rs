//! The host's side of one EXEC conversation, from HELLO to EXITED. No I/O, no clock.
//!
//! ```text
//! Greeting ──HELLO──▶ Waiting ──STARTED──▶ Running ──EXITED──▶ Ended
//!     └──────FAIL────────┴───────────────────────────FAIL──────▶ Ended
//! ```
//!
//! Invariants:
//! - Output is handed out in order and without a hole: each chunk begins where the last one of its
//!   stream ended, or the guest broke the protocol.
//! - EXITED is taken only when both streams are as long as it says.
//! - Nothing is taken after the end.

use std::fmt;

use shared::PayloadError;
use shared::frame::{Decoder, FrameError, FrameKind};
use shared::message::{Chunk, Exited, Fail, Hello, Message, Role, SeverReason, Started};
use shared::version::NoCommonVersion;

/// What the guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It answers, in a version that we speak.
    Greeted(Hello),
    /// The command runs.
    Started(Started),
    /// Standard output of the command.
    Stdout(Vec<u8>),
    /// Standard error of the command.
    Stderr(Vec<u8>),
    /// This connection is about to be cut.
    Severed(SeverReason),
    /// The command ended. Nothing comes after it.
    Exited(Exited),
    /// The request was refused. Nothing comes after it.
    Refused(Fail),
}

/// Where the conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// HELLO has not come.
    Greeting,
    /// The answer to EXEC has not come.
    Waiting,
    /// The command runs. The next byte of each stream has these offsets.
    Running { stdout: u64, stderr: u64 },
    /// EXITED or FAIL has come.
    Ended,
}

/// How the guest broke the protocol.
#[derive(Debug)]
pub enum ExecStreamError {
    /// Not a frame.
    Frame(FrameError),
    /// Not the payload of its frame.
    Payload(PayloadError),
    /// No common version.
    Version(NoCommonVersion),
    /// A frame at a point where it means nothing.
    Unexpected {
        /// The frame.
        kind: FrameKind,
    },
    /// Output that does not begin where the last one ended.
    Hole {
        /// STDOUT, STDERR or EXITED.
        kind: FrameKind,
        /// The offset expected.
        expected: u64,
        /// The offset received.
        received: u64,
    },
}

impl fmt::Display for ExecStreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(error) => error.fmt(f),
            Self::Frame(error) => write!(f, "the guest broke the protocol: {error}"),
            Self::Payload(error) => write!(f, "the guest broke the protocol: {error}"),
            Self::Unexpected { kind } => {
                write!(f, "the guest broke the protocol: unexpected {kind}")
            }
            Self::Hole {
                kind,
                expected,
                received,
            } => write!(
                f,
                "the guest broke the protocol: {kind} at offset {received} where {expected} was \
                 expected"
            ),
        }
    }
}

impl std::error::Error for ExecStreamError {}

/// One conversation on one connection. Push bytes, then poll until there is no event left.
#[derive(Debug)]
pub struct ExecStream {
    decoder: Decoder,
    state: State,
}

impl Default for ExecStream {
    fn default() -> Self {
        Self::new()
    }
}

impl ExecStream {
    /// A conversation whose HELLO and EXEC have just been written.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            state: State::Greeting,
        }
    }

    /// Bytes of the guest.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next event, or `None` until more bytes come.
    ///
    /// # Errors
    ///
    /// When the guest broke the protocol. The connection is of no more use then.
    pub fn poll_event(&mut self) -> Result<Option<ExecEvent>, ExecStreamError> {
        let Some(frame) = self.decoder.poll_frame().map_err(ExecStreamError::Frame)? else {
            return Ok(None);
        };
        let message = Message::parse(frame, Role::Guest).map_err(ExecStreamError::Payload)?;
        let kind = message.kind();
        let event = match (self.state, message) {
            (State::Greeting, Message::Hello(hello)) if hello.role == Role::Guest => {
                hello.negotiate().map_err(ExecStreamError::Version)?;
                self.state = State::Waiting;
                ExecEvent::Greeted(hello)
            }
            // A guest without a common version may not be able to say HELLO in ours.
            (State::Greeting | State::Waiting | State::Running { .. }, Message::Fail(fail)) => {
                self.state = State::Ended;
                ExecEvent::Refused(fail)
            }
            // A connection that was not even read yet is cut like any other.
            (State::Greeting | State::Waiting | State::Running { .. }, Message::Sever(sever)) => {
                ExecEvent::Severed(sever.reason)
            }
            (State::Waiting, Message::Started(started)) => {
                self.state = State::Running {
                    stdout: started.stdout_from,
                    stderr: started.stderr_from,
                };
                ExecEvent::Started(started)
            }
            (State::Running { stdout, stderr }, Message::Stdout(chunk)) => {
                let stdout = follow(kind, stdout, &chunk)?;
                self.state = State::Running { stdout, stderr };
                ExecEvent::Stdout(chunk.bytes)
            }
            (State::Running { stdout, stderr }, Message::Stderr(chunk)) => {
                let stderr = follow(kind, stderr, &chunk)?;
                self.state = State::Running { stdout, stderr };
                ExecEvent::Stderr(chunk.bytes)
            }
            (State::Running { stdout, stderr }, Message::Exited(exited)) => {
                expect_offset(kind, stdout, exited.stdout_end)?;
                expect_offset(kind, stderr, exited.stderr_end)?;
                self.state = State::Ended;
                ExecEvent::Exited(exited)
            }
            (_, _) => return Err(ExecStreamError::Unexpected { kind }),
        };
        Ok(Some(event))
    }
}

/// The offset behind `chunk`, which must begin at `expected`.
fn follow(kind: FrameKind, expected: u64, chunk: &Chunk) -> Result<u64, ExecStreamError> {
    expect_offset(kind, expected, chunk.offset)?;
    let len = u64::try_from(chunk.bytes.len()).unwrap_or(u64::MAX);
    let hole = ExecStreamError::Hole {
        kind,
        expected,
        received: chunk.offset,
    };
    expected.checked_add(len).ok_or(hole)
}

const fn expect_offset(
    kind: FrameKind,
    expected: u64,
    received: u64,
) -> Result<(), ExecStreamError> {
    if expected == received {
        Ok(())
    } else {
        Err(ExecStreamError::Hole {
            kind,
            expected,
            received,
        })
    }
}

#[cfg(test)]
mod tests {
    use shared::message::{ExitStatus, FailCode, ResourceUsage};
    use shared::version::{SUPPORTED, VersionRange};

    use super::*;

    fn hello(protocol: VersionRange) -> Message {
        Message::Hello(Hello {
            protocol,
            role: Role::Guest,
            version: "0".to_owned(),
            boot_id: None,
            generation: None,
        })
    }

    fn started(stdout_from: u64) -> Message {
        Message::Started(Started {
            session: 1,
            id: None,
            tty: false,
            stdin: shared::message::Window {
                received: 0,
                limit: 0,
                is_closed: true,
            },
            pid: 2,
            fresh: true,
            stdout_from,
            stderr_from: 0,
        })
    }

    fn chunk(offset: u64, bytes: &[u8]) -> Chunk {
        Chunk {
            offset,
            bytes: bytes.to_vec(),
        }
    }

    fn exited(stdout_end: u64, stderr_end: u64) -> Message {
        Message::Exited(Exited {
            session: 1,
            status: ExitStatus::Code(3),
            stdout_end,
            stderr_end,
            writers_alive: false,
            timed_out: false,
            usage: ResourceUsage::default(),
        })
    }

    fn events(messages: &[Message]) -> Result<Vec<ExecEvent>, ExecStreamError> {
        let mut stream = ExecStream::new();
        for message in messages {
            stream.handle_bytes(&message.encode());
        }
        let mut events = Vec::new();
        while let Some(event) = stream.poll_event()? {
            events.push(event);
        }
        Ok(events)
    }

    #[track_caller]
    fn refused(messages: &[Message], expected: &str) {
        assert_eq!(events(messages).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_whole_conversation() {
        let events = events(&[
            hello(SUPPORTED),
            started(0),
            Message::Stdout(chunk(0, b"ab")),
            Message::Stderr(chunk(0, b"x")),
            Message::Stdout(chunk(2, b"c")),
            exited(3, 1),
        ]);
        let events = events.unwrap();
        assert_eq!(events.len(), 6);
        assert_eq!(events[4], ExecEvent::Stdout(b"c".to_vec()));
        assert!(matches!(events[5], ExecEvent::Exited(_)));
    }

    #[test]
    fn output_has_no_holes() {
        let broke = "the guest broke the protocol: ";
        let hole = [
            hello(SUPPORTED),
            started(5),
            Message::Stdout(chunk(6, b"x")),
        ];
        refused(
            &hole,
            &format!("{broke}STDOUT at offset 6 where 5 was expected"),
        );
        let end = [
            hello(SUPPORTED),
            started(u64::MAX),
            Message::Stdout(chunk(u64::MAX, b"x")),
        ];
        let max = u64::MAX;
        refused(
            &end,
            &format!("{broke}STDOUT at offset {max} where {max} was expected"),
        );
        let short = [hello(SUPPORTED), started(0), exited(0, 1)];
        refused(
            &short,
            &format!("{broke}EXITED at offset 1 where 0 was expected"),
        );
    }

    #[test]
    fn frames_out_of_turn_are_refused() {
        let broke = "the guest broke the protocol: unexpected ";
        refused(&[started(0)], &format!("{broke}STARTED"));
        let twice = [hello(SUPPORTED), hello(SUPPORTED)];
        refused(&twice, &format!("{broke}HELLO"));
        let early = [hello(SUPPORTED), Message::Stdout(chunk(0, b"x"))];
        refused(&early, &format!("{broke}STDOUT"));
        let late = [hello(SUPPORTED), started(0), exited(0, 0), exited(0, 0)];
        refused(&late, &format!("{broke}EXITED"));
    }

    #[test]
    fn a_newer_guest_is_named_and_may_fail_before_hello() {
        let newer = VersionRange { min: 7, max: 9 };
        let text = "no common protocol version: this side speaks 1, the peer 7 to 9";
        refused(&[hello(newer)], text);
        let fail = Message::Fail(Fail::new(FailCode::Version, "no"));
        assert!(matches!(
            events(&[fail]).unwrap()[..],
            [ExecEvent::Refused(_)]
        ));
    }
}
