//! A guest with a workload for tests: it sends each connection a part of the output and cuts it,
//! until all is sent.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use shared::frame::Decoder;
use shared::id::Instance;
use shared::message::{
    Attach, Chunk, ExitStatus, Exited, Fail, FailCode, Gap, Hello, Message, ResourceUsage, Role,
    SessionInfo, SessionState, Sessions, Stream,
};
use shared::version::SUPPORTED;

use crate::os::deadline::Watch;
use crate::vmdir::output_log::journal::tests::attached;

/// Limit on each wait for the host.
const PATIENCE: Duration = Duration::from_secs(30);

/// Output bytes per frame.
const CHUNK_LEN: usize = 1000;

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Bytes of standard output that the ring no longer has.
    pub(crate) stdout_dropped: u64,
    listener: UnixListener,
    /// Whether clients send a CONNECT line first.
    is_hybrid: bool,
}

impl Guest {
    pub(crate) fn listen(path: &Path, is_hybrid: bool) -> Self {
        let lines = |name: &str, count: usize| -> Vec<u8> {
            let lines = (0..count).map(|n| format!("{name} {n}\n"));
            lines.collect::<String>().into_bytes()
        };
        Self {
            stdout: lines("out", 40_000),
            stderr: lines("err", 3000),
            stdout_dropped: 0,
            listener: UnixListener::bind(path).unwrap(),
            is_hybrid,
        }
    }

    /// Serves a connection for each of `limits`, the number of bytes it gets before it is cut, and
    /// then one that gets the rest and EXITED. Calls `on_ack` for every acknowledgement.
    pub(crate) fn serve(&self, limits: &[usize], on_ack: &dyn Fn(Stream, u64)) {
        self.serve_parts(limits);
        self.serve_end(on_ack, || {});
    }

    /// The same for a host that asks for the list of sessions after EXITED.
    pub(crate) fn serve_and_list(&self, limits: &[usize], on_ack: &dyn Fn(Stream, u64)) {
        self.serve_parts(limits);
        self.serve_end(on_ack, || self.list());
    }

    /// Serves a connection for each of `limits`.
    pub(crate) fn serve_parts(&self, limits: &[usize]) {
        for limit in limits {
            let (mut peer, attach) = self.accept();
            let sent = self.send(&mut peer, &attach, *limit);
            assert!(sent.is_some(), "the limit is beyond the end");
        }
    }

    fn serve_end(&self, on_ack: &dyn Fn(Stream, u64), then: impl FnOnce()) {
        let (mut peer, attach) = self.accept();
        assert_eq!(self.send(&mut peer, &attach, usize::MAX), None);
        peer.write_all(&Message::Exited(self.exited()).encode())
            .unwrap();
        then();
        let mut reader = Reader::new(peer);
        loop {
            match reader.next() {
                Message::Ack(ack) => on_ack(ack.stream, ack.offset),
                Message::ExitAck(_) => break,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Answers one connection with the list of sessions.
    pub(crate) fn list(&self) {
        let (mut reader, request) = self.accept_request();
        assert!(
            matches!(request, Message::SessionsRequest(_)),
            "{request:?}"
        );
        let sessions = vec![self.info()];
        let more = false;
        self.say(
            &mut reader.peer,
            &[Message::Sessions(Sessions { sessions, more })],
        );
    }

    /// Answers one connection that there is no workload.
    pub(crate) fn refuse(&self, code: FailCode) {
        let (mut peer, _) = self.accept();
        self.say(&mut peer, &[Message::Fail(Fail::new(code, "no"))]);
    }

    fn accept(&self) -> (UnixStream, Attach) {
        match self.accept_request() {
            (reader, Message::Attach(attach)) => (reader.peer, attach),
            (_, other) => panic!("{other:?}"),
        }
    }

    /// The next connection and its request, which follows HELLO.
    fn accept_request(&self) -> (Reader, Message) {
        let mut reader = Reader::new(self.peer());
        self.skip_connect(&mut reader);
        assert!(matches!(reader.next(), Message::Hello(_)));
        let request = reader.next();
        (reader, request)
    }

    fn peer(&self) -> UnixStream {
        let watch = Watch::until(Instant::now() + PATIENCE);
        watch.readable(&self.listener).unwrap();
        let (peer, _) = self.listener.accept().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    fn skip_connect(&self, reader: &mut Reader) {
        if self.is_hybrid {
            let mut byte = [0];
            while byte != *b"\n" {
                reader.peer.read_exact(&mut byte).unwrap();
            }
            reader.peer.write_all(b"OK 7\n").unwrap();
        }
    }

    fn say(&self, peer: &mut UnixStream, messages: &[Message]) {
        let hello = Hello {
            protocol: SUPPORTED,
            role: Role::Guest,
            version: "0".to_owned(),
            boot_id: None,
            generation: None,
            instance: Some(Instance::from_bytes([7; 16])),
            sessions_begun: 3,
        };
        let mut bytes = Message::Hello(hello).encode();
        for message in messages {
            message.encode_into(&mut bytes);
        }
        peer.write_all(&bytes).unwrap();
    }

    /// Sends what was asked for, up to `limit` bytes. `None` if that was all.
    fn send(&self, peer: &mut UnixStream, attach: &Attach, limit: usize) -> Option<()> {
        let first = |wanted: Option<u64>, dropped: u64| wanted.unwrap_or(dropped);
        let from = [
            first(attach.stdout_from, self.stdout_dropped),
            first(attach.stderr_from, 0),
        ];
        let mut messages = vec![Message::Attached(attached(from[0], from[1]))];
        let mut at = from.map(|from| usize::try_from(from).unwrap());
        if from[0] < self.stdout_dropped {
            messages.push(Message::Gap(Gap {
                stream: Stream::Stdout,
                from: from[0],
                to: self.stdout_dropped,
            }));
            at[0] = usize::try_from(self.stdout_dropped).unwrap();
        }
        self.say(peer, &messages);
        let mut left = limit;
        let outputs = [&self.stdout, &self.stderr];
        while at[0] < self.stdout.len() || at[1] < self.stderr.len() {
            for index in [0, 1] {
                let rest = &outputs[index][at[index]..];
                let chunk = &rest[..rest.len().min(CHUNK_LEN).min(left)];
                let offset = u64::try_from(at[index]).unwrap();
                let bytes = chunk.to_vec();
                at[index] += chunk.len();
                left -= chunk.len();
                let chunk = Chunk { offset, bytes };
                let message = match index {
                    0 => Message::Stdout(chunk),
                    _ => Message::Stderr(chunk),
                };
                // The host may have closed the connection.
                let _ = peer.write_all(&message.encode());
            }
            if left == 0 {
                return Some(());
            }
        }
        None
    }

    fn exited(&self) -> Exited {
        Exited {
            session: 1,
            status: ExitStatus::Code(3),
            stdout_end: u64::try_from(self.stdout.len()).unwrap(),
            stderr_end: u64::try_from(self.stderr.len()).unwrap(),
            writers_alive: false,
            timed_out: false,
            fault: None,
            usage: ResourceUsage::default(),
        }
    }

    fn info(&self) -> SessionInfo {
        let exited = self.exited();
        SessionInfo {
            session: 1,
            id: None,
            state: SessionState::Exited,
            pid: 2,
            age_ms: 1,
            generation: None,
            command: "app".to_owned(),
            tty: false,
            detached: false,
            attached: 1,
            restarts: 4,
            cgroup: true,
            stdout_end: exited.stdout_end,
            stderr_end: exited.stderr_end,
            exited: Some(exited),
        }
    }
}

/// Reads the host's frames.
struct Reader {
    peer: UnixStream,
    decoder: Decoder,
}

impl Reader {
    fn new(peer: UnixStream) -> Self {
        let decoder = Decoder::new();
        Self { peer, decoder }
    }

    fn next(&mut self) -> Message {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.poll_frame().unwrap() {
                return Message::parse(frame, Role::Host).unwrap();
            }
            let len = self.peer.read(&mut bytes).unwrap();
            assert!(len > 0, "the host closed");
            self.decoder.push(&bytes[..len]);
        }
    }
}
