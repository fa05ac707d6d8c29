//! A guest whose frames a test scripts, and `host-tool` in front of it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use serde_json::Value;
use shared::frame::{Decoder, FrameKind};
use shared::id::{Instance, Nonce};
use shared::message::{
    Chunk, ExitStatus, Exited, Hello, Message, Probed, ResourceUsage, Role, Started, Window,
};
use shared::version::{SUPPORTED, VersionRange};
use tempfile::TempDir;
use tests::client::frame;
use tests::process::{Finished, run};
use tests::program;

/// A guest that handles every connection in the same way.
pub(super) struct Guest {
    folder: TempDir,
}

impl Guest {
    /// Only `answer` reads what the host sends.
    pub(super) fn new(answer: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let guest = Self {
            folder: TempDir::new().unwrap(),
        };
        let listener = UnixListener::bind(guest.socket()).unwrap();
        // Runs until the test program ends.
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&mut stream.unwrap());
            }
        });
        guest
    }

    /// A guest that sends these bytes and then waits for the host to close.
    pub(super) fn saying(bytes: Vec<u8>) -> Self {
        Self::new(move |stream| {
            let _ = stream.write_all(&bytes);
            drain(stream);
        })
    }

    /// A guest that sends HELLO, reads one request, and continues with `answer`.
    pub(super) fn asked(answer: impl Fn(&mut UnixStream, Message) + Send + 'static) -> Self {
        Self::new(move |stream| {
            let _ = stream.write_all(&hello(SUPPORTED));
            if let Some(request) = Ear::default().hear_request(stream) {
                answer(stream, request);
            }
            drain(stream);
        })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("guest.sock")
    }

    /// `host-tool ARGS… --unix SOCKET`; the guest's args follow a `--`.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("host-tool"));
        let (name, rest) = args.split_first().unwrap();
        command.arg(name).arg("--unix").arg(self.socket());
        command.args(rest);
        command
    }

    pub(super) fn tool(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args))
    }
}

/// What has come from a host.
#[derive(Default)]
pub(super) struct Ear {
    decoder: Decoder,
}

impl Ear {
    /// The next message; `None` when the host has closed.
    pub(super) fn hear(&mut self, stream: &mut UnixStream) -> Option<Message> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.poll_frame().unwrap() {
                return Some(Message::parse(frame, Role::Host).unwrap());
            }
            match stream.read(&mut bytes) {
                Ok(count) if count > 0 => self.decoder.push(&bytes[..count]),
                _ => return None,
            }
        }
    }

    /// The first message that is not HELLO.
    pub(super) fn hear_request(&mut self, stream: &mut UnixStream) -> Option<Message> {
        loop {
            match self.hear(stream)? {
                Message::Hello(_) => {}
                request => return Some(request),
            }
        }
    }
}

/// Reads until the other side closes.
pub(super) fn drain(stream: &mut UnixStream) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes), Ok(count) if count > 0) {}
}

/// Sends messages to a host that may have closed.
pub(super) fn say(stream: &mut UnixStream, messages: &[Message]) {
    let bytes: Vec<u8> = messages.iter().flat_map(Message::encode).collect();
    let _ = stream.write_all(&bytes);
}

pub(super) fn hello(protocol: VersionRange) -> Vec<u8> {
    let version = "9.9.9".to_owned();
    let hello = Hello {
        protocol,
        role: Role::Guest,
        version,
        boot_id: None,
        generation: None,
        instance: Some(Instance::from_bytes([7; 16])),
        sessions_begun: 3,
    };
    Message::Hello(hello).encode()
}

pub(super) fn after_hello(messages: &[Message]) -> Vec<u8> {
    let mut bytes = hello(SUPPORTED);
    messages
        .iter()
        .for_each(|message| message.encode_into(&mut bytes));
    bytes
}

pub(super) fn started() -> Message {
    Message::Started(Started {
        session: 1,
        id: None,
        tty: false,
        stdin: Window {
            received: 0,
            limit: 0,
            is_closed: true,
        },
        pid: 2,
        fresh: true,
        stdout_from: 0,
        stderr_from: 0,
    })
}

pub(super) fn stdout(offset: u64, bytes: &[u8]) -> Message {
    Message::Stdout(Chunk {
        offset,
        bytes: bytes.to_vec(),
    })
}

/// The end of the session of [`started`], with exit code 7.
pub(super) fn exited(stdout_end: u64, stderr_end: u64) -> Message {
    Message::Exited(Exited {
        session: 1,
        status: ExitStatus::Code(7),
        stdout_end,
        stderr_end,
        writers_alive: false,
        timed_out: false,
        fault: None,
        usage: ResourceUsage::default(),
    })
}

/// A frame with any JSON.
pub(super) fn raw(kind: FrameKind, payload: &Value) -> Vec<u8> {
    frame(kind, payload.to_string())
}

/// A PROBED with a nonce of zeroes.
pub(super) fn probed() -> Probed {
    Probed {
        generation: None,
        nonce: Nonce::from_bytes([0; 16]),
        listener_serial: 1,
        accepts_since_rebind: 1,
        exec_us: Some(1),
        hooks: false,
    }
}
