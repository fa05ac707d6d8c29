//! What a test does with a session over a raw connection: start it, attach to it, feed it, and
//! follow its output to its end, with or without acknowledgements.

use nix::sys::signal::Signal;
use shared::limits::STREAM_DATA_LEN_MAX;
use shared::message::{
    Ack, Attach, AttachMode, Chunk, Exec, ExitAck, ExitStatus, Exited, Info, Message, SessionInfo,
    SessionRef, SessionsRequest, Started, StdinEof, Stream,
};

use super::Client;

/// An owner must acknowledge before half of a ring is unacknowledged; this is well before that.
const ACK_AFTER: u64 = 64 * 1024;

/// What came over one stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Received {
    /// Offset of the first byte that was asked for.
    pub from: u64,
    /// The bytes that came, without gaps.
    pub bytes: Vec<u8>,
    /// The gaps, as offsets from and to.
    pub gaps: Vec<(u64, u64)>,
    /// Offset of the next byte.
    next: u64,
    /// The highest offset that was acknowledged.
    acked: u64,
}

impl Received {
    /// How many bytes are in the gaps.
    pub fn missing(&self) -> u64 {
        self.gaps.iter().map(|(from, to)| to - from).sum()
    }

    const fn from(offset: u64) -> Self {
        Self {
            from: offset,
            bytes: Vec::new(),
            gaps: Vec::new(),
            next: offset,
            acked: offset,
        }
    }

    #[track_caller]
    fn push(&mut self, chunk: &Chunk) {
        assert_eq!(chunk.offset, self.next, "a hole or a repetition");
        self.bytes.extend_from_slice(&chunk.bytes);
        self.next += chunk.bytes.len() as u64;
    }

    #[track_caller]
    fn skip(&mut self, from: u64, to: u64) {
        assert_eq!(from, self.next, "a gap that does not begin where it should");
        self.gaps.push((from, to));
        self.next = to;
    }
}

/// A session that was followed to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    pub stdout: Received,
    pub stderr: Received,
    pub exited: Exited,
}

/// The end by a signal, without a core dump.
pub const fn killed_by(signal: Signal) -> ExitStatus {
    ExitStatus::Signal {
        number: signal as u8,
        core: false,
    }
}

/// An ATTACH for all output that is kept, under any generation.
pub const fn attach(session: SessionRef, mode: AttachMode) -> Attach {
    Attach {
        session,
        generation: None,
        mode,
        stdout_from: None,
        stderr_from: None,
    }
}

pub fn stdin(offset: u64, bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.to_vec();
    Message::Stdin(Chunk { offset, bytes }).encode()
}

impl Client {
    /// Sends EXEC and expects STARTED.
    #[track_caller]
    pub fn start(&mut self, exec: &Exec) -> Started {
        expect!(self.ask(&Message::Exec(exec.clone())), Started)
    }

    /// Sends ATTACH and expects ATTACHED.
    #[track_caller]
    pub fn attach(&mut self, attach: Attach) -> Started {
        expect!(self.ask(&Message::Attach(attach)), Attached)
    }

    /// Acknowledges the bytes of a stream before `offset`.
    #[track_caller]
    pub fn ack(&mut self, stream: Stream, offset: u64) {
        self.say(&Message::Ack(Ack { stream, offset }));
    }

    #[track_caller]
    pub fn ack_exit(&mut self, exited: &Exited) {
        let session = exited.session;
        self.say(&Message::ExitAck(ExitAck { session }));
    }

    /// Sends standard input from `offset` on, without regard to credit.
    #[track_caller]
    pub fn feed(&mut self, offset: u64, bytes: &[u8]) {
        let mut offset = offset;
        for part in bytes.chunks(STREAM_DATA_LEN_MAX) {
            self.send(&stdin(offset, part));
            offset += part.len() as u64;
        }
    }

    /// Sends the end of standard input, which had `offset` bytes.
    #[track_caller]
    pub fn feed_end(&mut self, offset: u64) {
        self.say(&Message::StdinEof(StdinEof { offset }));
    }

    /// Gives output and end of a session whose owner this connection is; acknowledges both.
    #[track_caller]
    pub fn follow(&mut self, started: &Started) -> Followed {
        let followed = self.receive(started, true);
        self.ack_exit(&followed.exited);
        followed
    }

    /// The same without acknowledgements.
    #[track_caller]
    pub fn observe(&mut self, started: &Started) -> Followed {
        self.receive(started, false)
    }

    /// Gives output and end of a session that this connection has started. Acknowledges the output
    /// only.
    #[track_caller]
    pub fn collect(&mut self) -> (Vec<u8>, Vec<u8>, Exited) {
        let start = [Received::from(0), Received::from(0)];
        let followed = self.receive_from(start, true);
        let is_whole = followed.stdout.gaps.is_empty() && followed.stderr.gaps.is_empty();
        assert!(is_whole, "gaps in {followed:?}");
        (
            followed.stdout.bytes,
            followed.stderr.bytes,
            followed.exited,
        )
    }

    #[track_caller]
    fn receive(&mut self, started: &Started, acks: bool) -> Followed {
        let start = [started.stdout_from, started.stderr_from].map(Received::from);
        self.receive_from(start, acks)
    }

    #[track_caller]
    fn receive_from(&mut self, start: [Received; 2], acks: bool) -> Followed {
        let mut streams = start;
        loop {
            let stream = match self.hear() {
                Message::Stdout(chunk) => {
                    streams[0].push(&chunk);
                    Stream::Stdout
                }
                Message::Stderr(chunk) => {
                    streams[1].push(&chunk);
                    Stream::Stderr
                }
                Message::Gap(gap) => {
                    streams[gap.stream.index()].skip(gap.from, gap.to);
                    gap.stream
                }
                Message::Window(_) | Message::Ok => continue,
                Message::Exited(exited) => {
                    let [stdout, stderr] = streams;
                    assert_eq!(exited.stdout_end, stdout.next, "{exited:?}");
                    assert_eq!(exited.stderr_end, stderr.next, "{exited:?}");
                    return Followed {
                        stdout,
                        stderr,
                        exited,
                    };
                }
                other => panic!("unexpected {other:?}"),
            };
            let received = &mut streams[stream.index()];
            if acks && received.next - received.acked >= ACK_AFTER {
                received.acked = received.next;
                self.ack(stream, received.next);
            }
        }
    }

    /// The next `len` bytes of standard output, not acknowledged. Bytes that come with them are
    /// kept for the next call.
    #[track_caller]
    pub fn hear_stdout(&mut self, len: usize) -> Vec<u8> {
        while self.ahead.len() < len {
            match self.hear() {
                Message::Stdout(chunk) => self.ahead.extend_from_slice(&chunk.bytes),
                Message::Window(_) => {}
                other => panic!("no output but {other:?}"),
            }
        }
        let rest = self.ahead.split_off(len);
        std::mem::replace(&mut self.ahead, rest)
    }

    /// Waits for the end; everything before it is skipped.
    #[track_caller]
    pub fn hear_exited(&mut self) -> Exited {
        loop {
            match self.hear() {
                Message::Exited(exited) => return exited,
                Message::Fail(fail) => panic!("no EXITED but {fail:?}"),
                _ => {}
            }
        }
    }

    #[track_caller]
    pub fn info(&mut self) -> Info {
        expect!(self.ask(&Message::InfoRequest), Info)
    }

    /// All sessions, and how many pages they came in.
    #[track_caller]
    pub fn sessions(&mut self) -> (Vec<SessionInfo>, usize) {
        let (mut all, mut pages) = (Vec::new(), 0);
        loop {
            let after = all.last().map_or(0, |last: &SessionInfo| last.session);
            let request = Message::SessionsRequest(SessionsRequest { after });
            let page = expect!(self.ask(&request), Sessions);
            assert!(!page.more || !page.sessions.is_empty(), "an empty page");
            pages += 1;
            all.extend(page.sessions);
            if !page.more {
                let in_order = all.windows(2).all(|two| two[0].session < two[1].session);
                assert!(in_order, "sessions are out of order");
                return (all, pages);
            }
        }
    }
}
