//! A guest for tests that keeps one command's session as the agent does: it knows the command by id
//! and starts it once, keeps output until it is acknowledged, and accepts each byte of input once.

use std::collections::VecDeque;

use crate::frame::Decoder;
use crate::id::{ExecId, Instance};
use crate::limits::STREAM_DATA_LEN_MAX;
use crate::message::{
    Chunk, ExitStatus, Exited, Fail, FailCode, Hello, Message, ResourceUsage, Role, SessionRef,
    Started, Stream, Window,
};
use crate::version::SUPPORTED;

/// The exit code of the command.
pub(super) const END: u8 = 7;

/// What the command writes to standard error when it starts.
pub(super) const GREETING: &[u8] = b"ready\n";

pub(super) fn hello() -> Message {
    hello_of(7)
}

/// HELLO of the instance with this number.
pub(super) fn hello_of(instance: u8) -> Message {
    Message::Hello(Hello {
        protocol: SUPPORTED,
        role: Role::Guest,
        version: "0.1.0".to_owned(),
        boot_id: Some("b".to_owned()),
        generation: None,
        instance: Some(Instance::from_bytes([instance; 16])),
        sessions_begun: 3,
    })
}

pub(super) fn attachment(stdout_from: u64) -> Started {
    Started {
        session: 1,
        id: Some(ExecId::from_bytes([1; 16])),
        tty: false,
        stdin: Window {
            received: 0,
            limit: 65_536,
            is_closed: false,
        },
        pid: 2,
        fresh: false,
        stdout_from,
        stderr_from: 0,
    }
}

pub(super) fn started(fresh: bool, stdout_from: u64) -> Message {
    Message::Started(Started {
        fresh,
        ..attachment(stdout_from)
    })
}

pub(super) fn attached(stdout_from: u64) -> Message {
    Message::Attached(attachment(stdout_from))
}

pub(super) fn exited(stdout_end: u64, stderr_end: u64) -> Message {
    Message::Exited(Exited {
        session: 1,
        status: ExitStatus::Code(END),
        stdout_end,
        stderr_end,
        writers_alive: false,
        timed_out: false,
        fault: None,
        usage: ResourceUsage::default(),
    })
}

/// One output stream. Everything from `start` on is kept.
#[derive(Debug, Default)]
struct Ring {
    start: u64,
    bytes: VecDeque<u8>,
    /// Offset of the next byte for the open connection.
    cursor: u64,
}

impl Ring {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn acknowledge(&mut self, offset: u64) {
        assert!(offset <= self.end(), "acknowledged what was never sent");
        while self.start < offset {
            self.bytes.pop_front();
            self.start += 1;
        }
    }
}

/// A guest whose command is `cat` with a greeting on standard error. It exits with [`END`] at the
/// end of its input.
#[derive(Debug, Default)]
pub(super) struct Guest {
    pub(super) start_count: u32,
    /// Another number for each guest that takes the place of an earlier one.
    pub(super) instance: u8,
    rings: [Ring; 2],
    received: u64,
    has_input_end: bool,
    decoder: Decoder,
    is_attached: bool,
    is_exited_sent: bool,
    pub(super) is_thanked: bool,
    out: Vec<u8>,
}

/// Credit for standard input, small so that the client has to wait for it.
const CREDIT: u64 = 10;

impl Guest {
    /// Accepts a fresh connection. The earlier one is dropped, and bytes in transit are lost.
    pub(super) fn connect(&mut self) {
        self.decoder = Decoder::new();
        self.is_attached = false;
        self.is_exited_sent = false;
        self.out.clear();
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
        let mut decoder = std::mem::take(&mut self.decoder);
        while let Some(frame) = decoder.poll_frame().unwrap() {
            self.handle(Message::parse(frame, Role::Host).unwrap());
        }
        self.decoder = decoder;
    }

    /// Takes what the guest sends now.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        if self.is_attached {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let ring = &mut self.rings[stream.index()];
                let at = usize::try_from(ring.cursor - ring.start).unwrap();
                let bytes: Vec<u8> = ring.bytes.iter().skip(at).copied().collect();
                for piece in bytes.chunks(STREAM_DATA_LEN_MAX) {
                    Chunk::encode(stream.frame_kind(), ring.cursor, piece, &mut self.out);
                    ring.cursor += piece.len() as u64;
                }
            }
            if self.has_input_end && !self.is_exited_sent {
                self.is_exited_sent = true;
                exited(self.rings[0].end(), self.rings[1].end()).encode_into(&mut self.out);
            }
        }
        std::mem::take(&mut self.out)
    }

    fn window(&self) -> Window {
        Window {
            received: self.received,
            limit: self.received + CREDIT,
            is_closed: false,
        }
    }

    /// Attaches the connection at these offsets, which acknowledge everything before them.
    fn attach(&mut self, from: [u64; 2]) -> Started {
        for (ring, from) in self.rings.iter_mut().zip(from) {
            ring.acknowledge(from);
            ring.cursor = from;
        }
        self.is_attached = true;
        Started {
            stdin: self.window(),
            stderr_from: from[1],
            ..attachment(from[0])
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Hello(_) => hello_of(self.instance).encode_into(&mut self.out),
            Message::Exec(exec) => {
                let instance = exec.origin.expect("an origin").instance;
                if instance != Instance::from_bytes([self.instance; 16]) {
                    let fail = Fail::new(FailCode::Unknown, "another instance");
                    return Message::Fail(fail).encode_into(&mut self.out);
                }
                let from = [exec.stdout_from, exec.stderr_from];
                if self.start_count == 0 && from != [0, 0] {
                    let fail = Fail::new(FailCode::NoSession, "forgotten");
                    return Message::Fail(fail).encode_into(&mut self.out);
                }
                let fresh = self.start_count == 0;
                if fresh {
                    self.start_count += 1;
                    self.rings[1].bytes.extend(GREETING);
                }
                let started = Started {
                    fresh,
                    ..self.attach(from)
                };
                Message::Started(started).encode_into(&mut self.out);
            }
            Message::Attach(request) => {
                assert_eq!(
                    request.session,
                    SessionRef::Exec(ExecId::from_bytes([1; 16]))
                );
                if self.start_count == 0 {
                    let fail = Fail::new(FailCode::NoSession, "forgotten");
                    return Message::Fail(fail).encode_into(&mut self.out);
                }
                let from = [request.stdout_from, request.stderr_from];
                let attached = self.attach(from.map(|from| from.expect("where it was")));
                Message::Attached(attached).encode_into(&mut self.out);
            }
            Message::Stdin(chunk) => {
                let known = self.received.checked_sub(chunk.offset).expect("no hole");
                let known = usize::try_from(known).unwrap().min(chunk.bytes.len());
                let new = &chunk.bytes[known..];
                self.received += new.len() as u64;
                self.rings[0].bytes.extend(new);
                Message::Window(self.window()).encode_into(&mut self.out);
            }
            Message::StdinEof(eof) => {
                assert_eq!(eof.offset, self.received);
                self.has_input_end = true;
            }
            Message::Ack(ack) => self.rings[ack.stream.index()].acknowledge(ack.offset),
            Message::Ping(ping) => Message::Pong(ping).encode_into(&mut self.out),
            Message::ExitAck(_) => self.is_thanked = true,
            other => panic!("{other:?}"),
        }
    }
}
