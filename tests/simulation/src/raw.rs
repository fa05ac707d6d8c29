//! A client that follows no rules: it sends anything at any time, in pieces, and reads when it
//! likes. What it receives must be consistent all the same.

use agent::agent::SessionId;
use shared::frame::Decoder;
use shared::message::{
    Ack, AttachMode, Chunk, FailCode, Hello, Message, Role, SessionRef, Started, StdinEof, Stream,
    Window,
};

use crate::commands::Commands;
use crate::guest::{Guest, NO_DESCRIPTORS, life_of};
use crate::kernel::Far;
use crate::pattern::{self, INPUT};
use crate::requests;
use crate::tally::Mark;

/// What it knows of a session.
#[derive(Debug)]
struct View {
    session: SessionId,
    /// The next offset of each output.
    offsets: [u64; 2],
    has_output: bool,
    window: Window,
}

#[derive(Debug)]
pub struct RawClient {
    wire: usize,
    is_local: bool,
    decoder: Decoder,
    view: Option<View>,
    /// The number of agents before the one that it talks to.
    life: usize,
    /// EXEC and ATTACH that were sent, and EXITED that came back.
    request_count: usize,
    end_count: usize,
    /// Whether it has sent QUIESCE or REBIND, which ends its session.
    is_asker: bool,
    /// Bytes that did not fit yet.
    unsent: Vec<u8>,
    /// Whether it was accepted before the guest got its current generation.
    is_old: bool,
    is_over: bool,
}

impl RawClient {
    #[must_use]
    pub fn new(guest: &mut Guest, is_local: bool) -> Self {
        let kernel = &mut guest.kernel;
        let wire = kernel.connect(is_local, false);
        kernel.wires[wire].is_foreign = !is_local && kernel.random.one_in(30);
        let mut client = Self {
            wire,
            is_local,
            decoder: Decoder::new(),
            view: None,
            life: 0,
            request_count: 0,
            end_count: 0,
            is_asker: false,
            unsent: Vec::new(),
            is_old: false,
            is_over: false,
        };
        if !guest.kernel.random.one_in(10) {
            let role = if is_local { Role::Local } else { Role::Host };
            let hello = Message::Hello(Hello::of(role, "simulated"));
            client.say(&hello, guest);
        }
        client
    }

    /// Sends something, and reads something. Returns whether it is over.
    pub fn drive(&mut self, guest: &mut Guest) -> bool {
        if !guest.kernel.random.one_in(4) {
            self.read(guest);
        }
        if guest.kernel.random.one_in(2) && self.unsent.len() < 100_000 {
            let message = self.request(guest);
            self.say(&message, guest);
        }
        self.write(guest);
        if guest.kernel.random.one_in(40) {
            self.leave(guest);
        }
        self.is_over
    }

    /// Closes the connection.
    pub fn leave(&mut self, guest: &mut Guest) {
        guest.kernel.end(self.wire, Far::Closed);
        self.is_over = true;
    }

    fn say(&mut self, message: &Message, guest: &mut Guest) {
        let is_request = matches!(message, Message::Exec(_) | Message::Attach(_));
        self.request_count += usize::from(is_request);
        self.is_asker |= matches!(message, Message::Quiesce(_) | Message::Rebind(_));
        Self::taint(message, guest);
        message.encode_into(&mut self.unsent);
        if guest.kernel.random.one_in(50) {
            let rubbish = guest.kernel.random.number().to_le_bytes();
            self.unsent.extend_from_slice(&rubbish);
        }
    }

    fn write(&mut self, guest: &mut Guest) {
        let len = guest.kernel.random.part(self.unsent.len());
        let len = guest.kernel.send(self.wire, &self.unsent[..len], false);
        self.unsent.drain(..len);
    }

    fn request(&mut self, guest: &mut Guest) -> Message {
        let known = guest.agent.generation();
        let random = &mut guest.kernel.random;
        if self.is_local {
            return requests::wait(random, known);
        }
        if self.is_asker && random.one_in(4) {
            return Message::Probe(requests::probe(random, known));
        }
        match (random.below(20), &self.view) {
            (0..=2, _) => requests::other(random, known),
            (3..=10, Some(_)) => self.ack(guest),
            (11..=18, Some(_)) => self.stdin(guest),
            (3..=9, None) | (19, Some(_)) => Message::Attach(requests::attach(random, known)),
            (_, _) => {
                let number = random.small(requests::RAW_EXEC_COUNT);
                let wanted = random
                    .one_in(4)
                    .then(|| requests::any_generation(random, known));
                let mut exec = requests::exec(random, number, wanted);
                if random.one_in(8) {
                    exec.stdout_from = 1_000;
                }
                exec.origin = Some(Box::new(guest.origin_of(number)));
                Message::Exec(exec)
            }
        }
    }

    /// Notes what other clients of a session may lose by this message.
    fn taint(message: &Message, guest: &mut Guest) {
        let number = match message {
            Message::Rebind(rebind) => return guest.commands.note_rebind(rebind),
            Message::Attach(attach) => match (attach.mode, attach.session) {
                (AttachMode::Own, SessionRef::Number(number)) => number,
                _ => return,
            },
            Message::ExitAck(ack) => ack.session,
            _ => return,
        };
        guest.commands.tainted.insert(number);
    }

    /// An ACK, mostly of what has come, sometimes of more.
    fn ack(&self, guest: &mut Guest) -> Message {
        let random = &mut guest.kernel.random;
        let stream = random.pick(Stream::ALL).expect("some");
        let view = self.view.as_ref();
        let known = view.map_or(0, |view| view.offsets[stream.index()]);
        let offset = match random.below(30) {
            0 => known + 1_000_000,
            1..=10 => known / 2,
            _ => known,
        };
        Message::Ack(Ack { stream, offset })
    }

    /// STDIN, mostly what comes next, also repetitions, sometimes with a gap or beyond the limit.
    fn stdin(&self, guest: &mut Guest) -> Message {
        let random = &mut guest.kernel.random;
        let Some(view) = &self.view else {
            return Message::StdinEof(StdinEof { offset: 0 });
        };
        let window = view.window;
        let offset = match random.below(30) {
            0 => window.received + 1,
            1..=5 => window.received.saturating_sub(100),
            _ => window.received,
        };
        if random.one_in(15) {
            return Message::StdinEof(StdinEof { offset });
        }
        let room = usize::try_from(window.limit.saturating_sub(offset)).expect("small");
        let most = if random.one_in(10) { 20_000 } else { 300 };
        let excess = usize::from(random.one_in(30)) * 1_000;
        let len = random.below(most).min(room) + excess;
        let bytes = pattern::at(Commands::INPUT_KEY, INPUT, offset, len).to_vec();
        Message::Stdin(Chunk { offset, bytes })
    }

    fn read(&mut self, guest: &mut Guest) {
        let len = guest.kernel.random.part(1 << 16);
        let Some(bytes) = guest.kernel.receive(self.wire, len) else {
            self.leave(guest);
            return;
        };
        self.decoder.push(&bytes);
        let mut decoder = std::mem::take(&mut self.decoder);
        while let Some(frame) = decoder.poll_frame().expect("frames") {
            let message = Message::parse(frame, Role::Guest).expect("messages");
            self.observe(message, guest);
        }
        self.decoder = decoder;
    }

    fn observe(&mut self, message: Message, guest: &mut Guest) {
        let tally = &mut guest.kernel.tally;
        match message {
            Message::Hello(hello) => {
                tally.count(Mark::Hello);
                self.life = hello.instance.map_or(0, life_of);
            }
            Message::Rebound(_) => {
                tally.count(Mark::Rebound);
                self.is_old |= guest.kernel.wires[self.wire].accepted_under < guest.rebind_count;
            }
            Message::Probed(_) => {
                tally.count(Mark::Probed);
                assert!(
                    !self.is_old,
                    "a connection older than the generation has proven it"
                );
            }
            Message::Started(started) | Message::Attached(started) => self.attached(&started),
            Message::Stdout(chunk) => self.chunk(Stream::Stdout, &chunk),
            Message::Stderr(chunk) => self.chunk(Stream::Stderr, &chunk),
            Message::Gap(gap) => {
                tally.count(Mark::Gap);
                let view = self.view.as_mut().expect("a session");
                let next = &mut view.offsets[gap.stream.index()];
                assert_eq!(*next, gap.from, "a gap at the wrong offset");
                assert!(gap.from < gap.to, "an empty gap");
                *next = gap.to;
                view.has_output = true;
            }
            Message::Exited(exited) => {
                tally.count(Mark::Exited);
                let view = self.view.take().expect("a session");
                assert_eq!(view.session.number(), exited.session);
                let ends = [exited.stdout_end, exited.stderr_end];
                // A client that only waits gets no output.
                assert!(!view.has_output || view.offsets == ends, "an early end");
                self.end_count += 1;
                assert!(
                    self.end_count <= self.request_count,
                    "more ends than requests"
                );
            }
            Message::Fail(fail) => {
                tally.count(match fail.code {
                    FailCode::Protocol => Mark::Mistake,
                    FailCode::Unknown => Mark::Unknown,
                    _ => Mark::Refused,
                });
                let is_ours = fail.code == FailCode::Internal && fail.text != NO_DESCRIPTORS;
                assert!(!is_ours, "{}", fail.text);
            }
            Message::Window(window) => {
                assert!(window.received <= window.limit);
                let view = self.view.as_mut().expect("a session");
                assert!(window.received >= view.window.received);
                view.window = window;
            }
            _ => {}
        }
    }

    fn attached(&mut self, started: &Started) {
        let view = View {
            session: SessionId::from_number(started.session),
            offsets: [started.stdout_from, started.stderr_from],
            has_output: false,
            window: started.stdin,
        };
        let previous = self.view.replace(view);
        assert!(
            previous.is_none() || self.is_asker,
            "it serves two sessions"
        );
    }

    fn chunk(&mut self, stream: Stream, chunk: &Chunk) {
        let view = self.view.as_mut().expect("STARTED came first");
        let index = stream.index();
        assert_eq!(view.offsets[index], chunk.offset, "{stream:?} has a hole");
        view.offsets[index] += chunk.bytes.len() as u64;
        view.has_output = true;
        let key = Commands::key(self.life, view.session);
        let expected = pattern::at(key, index, chunk.offset, chunk.bytes.len());
        assert!(chunk.bytes == expected, "{stream:?} at {}", chunk.offset);
    }
}
