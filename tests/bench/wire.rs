//! A small client of the agent. It sends what host-tool sends, in the same order, and counts output
//! in place of keeping it, so that the agent is measured and not its client.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shared::frame::{FrameKind, encode_with};
use shared::id::ExecId;
use shared::limits::{HEADER_LEN, PAYLOAD_LEN_MAX, STREAM_DATA_LEN_MAX, STREAM_OFFSET_LEN};
use shared::message::{
    Ack, ByteString, Exec, ExitAck, Exited, Hello, Message, Role, StdinEof, Stream,
};

use crate::Failure;

/// How long a peer may be silent before the measurement has failed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Unacknowledged bytes after which the protocol requires an ACK: half a ring.
const ACK_LEN: u64 = 128 * 1024;

/// Read buffer once the first one was full.
const READ_LEN: usize = 2 * (PAYLOAD_LEN_MAX + HEADER_LEN);

/// First read buffer, as large as those of the clients of the alternatives.
const FIRST_READ_LEN: usize = 4096;

/// Where a service listens.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// A plain Unix socket.
    Unix(PathBuf),
    /// A port behind a Unix socket that expects a CONNECT line first.
    Hybrid(PathBuf, u32),
    /// A port of a guest.
    Vsock(u32, u32),
}

impl Endpoint {
    /// Another port of the same guest.
    pub(crate) fn with_port(&self, port: u32) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(path.clone()),
            Self::Hybrid(path, _) => Self::Hybrid(path.clone(), port),
            Self::Vsock(cid, _) => Self::Vsock(*cid, port),
        }
    }

    /// Connects and writes `flight`, in one write with the CONNECT line if there is one.
    pub(crate) fn open(&self, flight: &[u8]) -> io::Result<File> {
        let (mut stream, line) = match self {
            Self::Unix(path) => (unix(path)?, String::new()),
            Self::Hybrid(path, port) => (unix(path)?, format!("CONNECT {port}\n")),
            Self::Vsock(cid, port) => (vsock(*cid, *port)?, String::new()),
        };
        let mut bytes = line.into_bytes();
        let has_line = !bytes.is_empty();
        bytes.extend_from_slice(flight);
        if !bytes.is_empty() {
            stream.write_all(&bytes)?;
        }
        if has_line {
            skip_line(&mut stream)?;
        }
        Ok(stream)
    }
}

fn unix(path: &Path) -> io::Result<File> {
    Ok(limited(OwnedFd::from(UnixStream::connect(path)?))?.into())
}

fn vsock(cid: u32, port: u32) -> io::Result<File> {
    let fd = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(fd.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(limited(fd)?.into())
}

fn limited(fd: OwnedFd) -> nix::Result<OwnedFd> {
    let limit = TimeVal::seconds(i64::try_from(SILENCE_MAX.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    Ok(fd)
}

/// Reads the VMM's answer byte by byte, because the bytes behind it are the guest's.
fn skip_line(stream: &mut File) -> io::Result<()> {
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if byte == *b"\n" {
            return Ok(());
        }
    }
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exited: Exited,
    /// Bytes of standard output received.
    pub(crate) stdout_len: u64,
}

impl Ran {
    /// CPU time of the command itself, µs.
    pub(crate) fn cpu_us(&self) -> u64 {
        self.exited.usage.user_us + self.exited.usage.system_us
    }
}

/// An open connection to an agent.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: File,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// A frame, for a client that only counts output.
enum Heard {
    Output(Stream, u64),
    Control(Box<Message>),
}

impl Wire {
    /// Connects, and sends HELLO and a request in one write.
    pub(crate) fn open(endpoint: &Endpoint, request: &[u8]) -> Result<Self, Failure> {
        let mut flight = Message::Hello(Hello::host("bench")).encode();
        flight.extend_from_slice(request);
        let buffer = vec![0; FIRST_READ_LEN];
        Ok(Self {
            stream: endpoint.open(&flight)?,
            buffer,
            start: 0,
            end: 0,
        })
    }

    /// Runs one command to its end on a new connection.
    pub(crate) fn run(endpoint: &Endpoint, exec: Exec) -> Result<Ran, Failure> {
        let mut wire = Self::open(endpoint, &Message::Exec(exec).encode())?;
        wire.finish(None)
    }

    /// Runs one command to its end on this connection.
    pub(crate) fn exec(&mut self, exec: Exec) -> Result<Ran, Failure> {
        self.stream.write_all(&Message::Exec(exec).encode())?;
        self.finish(None)
    }

    /// Sends a request and returns the answer.
    pub(crate) fn ask(&mut self, request: &Message) -> Result<Message, Failure> {
        self.stream.write_all(&request.encode())?;
        self.answer()
    }

    /// Reads up to the next message that is an answer.
    pub(crate) fn answer(&mut self) -> Result<Message, Failure> {
        loop {
            match self.hear()? {
                Heard::Control(message) => match *message {
                    Message::Hello(_) | Message::Progress(_) => {}
                    Message::Fail(fail) => return Err(fail.text.into()),
                    message => return Ok(message),
                },
                Heard::Output(..) => {}
            }
        }
    }

    /// Follows a requested command to its end, and feeds `input` to it if there is any.
    pub(crate) fn finish(&mut self, mut input: Option<Input>) -> Result<Ran, Failure> {
        let mut consumed = [0_u64; 2];
        let mut acknowledged = [0_u64; 2];
        loop {
            match self.hear()? {
                Heard::Output(stream, len) => {
                    let index = stream.index();
                    consumed[index] += len;
                    if consumed[index] - acknowledged[index] >= ACK_LEN {
                        acknowledged[index] = consumed[index];
                        let offset = consumed[index];
                        self.say(&Message::Ack(Ack { stream, offset }))?;
                    }
                }
                Heard::Control(message) => match *message {
                    Message::Exited(exited) => {
                        let session = exited.session;
                        self.say(&Message::ExitAck(ExitAck { session }))?;
                        let stdout_len = consumed[Stream::Stdout.index()];
                        if stdout_len != exited.stdout_end {
                            let end = exited.stdout_end;
                            return Err(format!("{stdout_len} of {end} bytes came").into());
                        }
                        return Ok(Ran { exited, stdout_len });
                    }
                    Message::Started(started) => {
                        if let Some(input) = &mut input {
                            input.feed(&mut self.stream, started.stdin.limit)?;
                        }
                    }
                    Message::Window(window) => {
                        if let Some(input) = &mut input {
                            input.feed(&mut self.stream, window.limit)?;
                        }
                    }
                    Message::Fail(fail) => return Err(fail.text.into()),
                    Message::Hello(_) | Message::Progress(_) => {}
                    other => return Err(format!("unexpected {other:?}").into()),
                },
            }
        }
    }

    fn say(&mut self, message: &Message) -> io::Result<()> {
        self.stream.write_all(&message.encode())
    }

    /// Reads the next frame. Output is counted without a copy.
    fn hear(&mut self) -> Result<Heard, Failure> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some((frame_len, heard)) = parse(bytes)? {
                self.start += frame_len;
                return Ok(heard);
            }
            let is_filled = self.end == self.buffer.len();
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if is_filled {
                self.buffer.resize(READ_LEN, 0);
            }
            let len = self.stream.read(&mut self.buffer[self.end..])?;
            if len == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.end += len;
        }
    }
}

/// The frame at the front of `bytes` and its length, if it is complete.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Heard)>, Failure> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [a, b, c, d, code, ..] = *header;
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d]))?;
    if len > PAYLOAD_LEN_MAX {
        return Err(format!("a frame of {len} bytes").into());
    }
    let Some(payload) = rest.get(..len) else {
        return Ok(None);
    };
    let kind = FrameKind::from_code(code).ok_or("an unknown frame")?;
    let data_len = || u64::try_from(len.saturating_sub(STREAM_OFFSET_LEN));
    let heard = match kind {
        FrameKind::Stdout => Heard::Output(Stream::Stdout, data_len()?),
        FrameKind::Stderr => Heard::Output(Stream::Stderr, data_len()?),
        _ => {
            let frame = shared::frame::Frame { kind, payload };
            Heard::Control(Box::new(Message::parse(frame, Role::Guest)?))
        }
    };
    Ok(Some((HEADER_LEN + len, heard)))
}

/// Standard input for a command: zeros, as far as the credit allows.
#[derive(Debug)]
pub(crate) struct Input {
    len: u64,
    sent: u64,
    is_ended: bool,
    /// Data bytes of one frame.
    piece_len: u64,
    frame: Vec<u8>,
}

impl Input {
    /// `len` bytes in frames of `piece_len`.
    pub(crate) fn new(len: u64, piece_len: usize) -> Self {
        let piece_len = u64::try_from(piece_len.min(STREAM_DATA_LEN_MAX)).unwrap_or(u64::MAX);
        Self {
            len,
            sent: 0,
            is_ended: false,
            piece_len,
            frame: Vec::new(),
        }
    }

    /// Sends as much as `limit` allows.
    fn feed(&mut self, stream: &mut File, limit: u64) -> Result<(), Failure> {
        let limit = limit.min(self.len);
        while self.sent < limit {
            let len = self.piece_len.min(limit - self.sent);
            let data_len = usize::try_from(len)?;
            let offset = self.sent;
            self.frame.clear();
            encode_with(&mut self.frame, FrameKind::Stdin, |out| {
                out.extend_from_slice(&offset.to_le_bytes());
                out.resize(out.len() + data_len, 0);
            });
            stream.write_all(&self.frame)?;
            self.sent += len;
        }
        if self.sent == self.len && !self.is_ended {
            self.is_ended = true;
            let offset = self.len;
            stream.write_all(&Message::StdinEof(StdinEof { offset }).encode())?;
        }
        Ok(())
    }
}

/// An EXEC of `argv` with a new id.
pub(crate) fn exec_of<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> Exec {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let started = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_nanos();
    let id = started ^ (u128::from(count) << 80);
    let string = |text: S| ByteString::new(text.as_ref()).unwrap_or_default();
    Exec::new(
        ExecId::from_bytes(id.to_le_bytes()),
        argv.into_iter().map(string).collect(),
    )
}
