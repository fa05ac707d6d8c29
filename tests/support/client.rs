//! A raw protocol client that sends exactly the frames that a test gives it.

/// What a message of this kind holds; fails for any other.
macro_rules! expect {
    ($message:expr, $kind:ident) => {
        match $message {
            Message::$kind(it) => it,
            other => panic!(concat!("no ", stringify!($kind), " but {:?}"), other),
        }
    };
}

mod session;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use shared::frame::{Decoder, FrameKind, encode_with};
use shared::id::{ExecId, Generation, Nonce, Token};
use shared::limits::PORT_DEFAULT;
use shared::message::{
    ByteString, Cause, Depth, Exec, Fail, FailCode, Hello, Identity, InheritedSessions, Message,
    Policy, Probe, Probed, Quiesce, Rebind, Rebound, Role,
};

pub use session::{Followed, Received, attach, killed_by, stdin};

use crate::DEADLINE;

#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    /// Standard output that came behind the bytes that [`Client::hear_stdout`] returned.
    ahead: Vec<u8>,
}

impl Client {
    /// Connects to an agent's plain socket.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the agent listens");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a time limit");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a time limit");
        Self {
            stream,
            decoder: Decoder::new(),
            ahead: Vec::new(),
        }
    }

    /// Connects through a hybrid vsock socket, and reads its OK line.
    pub fn connect_hybrid(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.send(format!("CONNECT {PORT_DEFAULT}\n").as_bytes());
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            client.stream.read_exact(&mut byte).expect("an OK line");
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        client
    }

    /// Says HELLO and hears the answer.
    #[track_caller]
    pub fn greet(&mut self) -> Hello {
        self.say(&Message::Hello(Hello::host("test")));
        expect!(self.hear(), Hello)
    }

    #[track_caller]
    pub fn say(&mut self, message: &Message) {
        self.send(&message.encode());
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the agent takes bytes");
    }

    /// Sends bytes to an agent that may have closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    #[track_caller]
    pub fn hear(&mut self) -> Message {
        self.hear_or_end().expect("the agent closed the connection")
    }

    /// The next message, or `None` when the agent has closed the connection.
    #[track_caller]
    pub fn hear_or_end(&mut self) -> Option<Message> {
        let mut bytes = [0; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.poll_frame().expect("frames") {
                return Some(Message::parse(frame, Role::Guest).expect("a message"));
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Sends one message and gives the answer; PROGRESS and BUSY are skipped.
    #[track_caller]
    pub fn ask(&mut self, message: &Message) -> Message {
        self.say(message);
        loop {
            match self.hear() {
                Message::Progress(_) | Message::Busy(_) => {}
                answer => return answer,
            }
        }
    }

    /// Sends a request and expects a FAIL with this code.
    #[track_caller]
    pub fn ask_in_vain(&mut self, message: &Message, code: FailCode) -> Fail {
        let fail = expect!(self.ask(message), Fail);
        assert_eq!(fail.code, code, "{fail:?}");
        fail
    }

    /// Sends REBIND and expects REBOUND.
    #[track_caller]
    pub fn rebound(&mut self, rebind: &Message) -> Rebound {
        expect!(self.ask(rebind), Rebound)
    }

    /// Sends PROBE and expects PROBED.
    #[track_caller]
    pub fn probed(&mut self, probe: &Message) -> Probed {
        expect!(self.ask(probe), Probed)
    }

    /// Sends QUIESCE and expects QUIESCED.
    #[track_caller]
    pub fn quiesced(&mut self, quiesce: &Message) -> Token {
        expect!(self.ask(quiesce), Quiesced)
    }

    /// Expects a FAIL with this code, and then the end of the connection.
    #[track_caller]
    pub fn is_refused(&mut self, code: FailCode) -> Fail {
        let answer = loop {
            match self.hear() {
                Message::Hello(_) => {}
                answer => break answer,
            }
        };
        let fail = expect!(answer, Fail);
        assert_eq!(fail.code, code, "{fail:?}");
        assert_eq!(
            self.hear_or_end(),
            None,
            "the connection stays open after {fail:?}"
        );
        fail
    }

    /// Closes the connection in both directions.
    pub fn shut_down(&self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// A frame with any payload, as bytes.
pub fn frame(kind: FrameKind, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_with(&mut bytes, kind, |out| {
        out.extend_from_slice(payload.as_ref())
    });
    bytes
}

/// A header that announces a payload of `len` bytes, without them.
pub fn header(kind: FrameKind, len: u32) -> Vec<u8> {
    [&len.to_le_bytes()[..], &[kind.code(), 0, 0, 0]].concat()
}

/// A generation of 16 times this byte.
pub fn generation(byte: u8) -> Generation {
    Generation::from_bytes([byte; 16])
}

/// A REBIND as after a resume.
pub fn rebind(byte: u8) -> Message {
    Message::Rebind(rebind_fields(byte))
}

/// The fields of [`rebind`], for tests that change some of them.
pub fn rebind_fields(byte: u8) -> Rebind {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_nanos();
    Rebind {
        generation: generation(byte),
        cause: Cause::Resume,
        parent: None,
        wall_clock_ns: u64::try_from(now).expect("before 2554"),
        entropy: None,
        identity: Identity::default(),
        sessions: InheritedSessions::Keep,
        attempt: 1,
    }
}

/// A PROBE for this generation.
pub fn probe(byte: u8, depth: Depth) -> Message {
    let nonce = Nonce::from_bytes([byte; 16]);
    Message::Probe(Probe {
        generation: Some(generation(byte)),
        nonce,
        depth,
    })
}

/// A QUIESCE with a token of 16 times this byte.
pub fn quiesce(byte: u8, policy: Policy) -> Message {
    Message::Quiesce(Quiesce {
        token: Token::from_bytes([byte; 16]),
        policy,
        limit_ms: 30_000,
    })
}

/// An EXEC with an id of 16 times this byte.
pub fn exec(byte: u8, argv: &[&str]) -> Exec {
    exec_numbered(u64::from_le_bytes([byte; 8]), argv)
}

/// An EXEC whose id holds this number, for tests that run more than 256.
pub fn exec_numbered(number: u64, argv: &[&str]) -> Exec {
    let string = |text: &&str| ByteString::new(*text).expect("no NUL");
    Exec::new(exec_id(number), argv.iter().map(string).collect())
}

/// The id of [`exec_numbered`].
pub fn exec_id(number: u64) -> ExecId {
    let half = number.to_le_bytes();
    ExecId::from_bytes(std::array::from_fn(|index| half[index % 8]))
}

/// An EXEC of a shell script.
pub fn shell(byte: u8, script: &str) -> Exec {
    exec(byte, &["sh", "-c", script])
}
