//! Random requests of clients, mostly ones that fit.

use shared::id::{ExecId, Generation, Nonce, Token};
use shared::message::{
    Ack, Attach, AttachMode, AwaitCheckpoint, ByteString, Cause, CheckpointRequest, Chunk, Depth,
    Exec, ExitAck, GenerationRequest, Hello, HookStage, Hooks, Identity, InheritedSessions,
    Message, OutputPolicy, Ping, Policy, PowerAction, Probe, Quiesce, Rebind, Reopen, SessionRef,
    SessionsRequest, Shutdown, Signal, StdinEof, TtySize,
};

use crate::random::Random;

/// 2026-01-01.
const WALL_CLOCK_NS: u64 = 1_767_225_600 * 1_000_000_000;

/// How many generations there are to choose from.
const GENERATION_COUNT: usize = 5;

/// EXEC numbers of clients that follow no rules are below this.
pub const RAW_EXEC_COUNT: usize = 24;

/// The generation with this number.
#[must_use]
pub fn generation(number: u8) -> Generation {
    Generation::from_bytes([number; 16])
}

/// The guest's generation, or another one.
pub fn any_generation(random: &mut Random, known: Option<Generation>) -> Generation {
    let fresh = generation(1 + random.small(GENERATION_COUNT));
    known.filter(|_| random.one_in(2)).unwrap_or(fresh)
}

fn token(random: &mut Random) -> Token {
    Token::from_bytes([random.small(2); 16])
}

pub fn rebind(random: &mut Random, generation: Generation, cause: Cause) -> Rebind {
    Rebind {
        generation,
        cause,
        parent: None,
        wall_clock_ns: WALL_CLOCK_NS,
        entropy: Some([9; 32]),
        identity: Identity::default(),
        sessions: if random.one_in(4) {
            InheritedSessions::Kill
        } else {
            InheritedSessions::Keep
        },
        attempt: 1,
    }
}

/// An EXEC. Its command gets its number and the wanted generation as arguments.
pub fn exec(random: &mut Random, number: u8, wanted: Option<Generation>) -> Exec {
    let text = wanted.map_or_else(String::new, |it| it.as_bytes()[0].to_string());
    let argv = ["x".to_owned(), number.to_string(), text];
    let argv = argv.into_iter().filter_map(ByteString::new).collect();
    let mut exec = Exec::new(ExecId::from_bytes([number; 16]), argv);
    exec.generation = wanted;
    exec.stdin = random.one_in(2);
    exec.tty = random.one_in(4).then_some(TtySize { rows: 1, cols: 1 });
    exec.detached = random.one_in(5);
    exec.output = random.pick(OutputPolicy::ALL).expect("some");
    exec.timeout_ms = random.one_in(6).then_some(700);
    exec.keep_ms = random.one_in(2).then_some(20_000);
    exec
}

fn tag(random: &mut Random) -> Option<String> {
    let tag = random.pick(&["a", "b"]).expect("some");
    random.one_in(2).then(|| tag.to_owned())
}

pub fn probe(random: &mut Random, known: Option<Generation>) -> Probe {
    Probe {
        generation: Some(any_generation(random, known)),
        nonce: Nonce::from_bytes([4; 16]),
        depth: random.pick(Depth::ALL).expect("some"),
    }
}

pub fn quiesce(random: &mut Random) -> Quiesce {
    Quiesce {
        token: token(random),
        policy: random.pick(Policy::ALL).expect("some"),
        limit_ms: 500,
    }
}

pub fn hooks(random: &mut Random) -> Hooks {
    Hooks {
        token: Token::from_bytes([100 + random.small(100); 16]),
        stage: random.pick(HookStage::ALL).expect("some"),
        limit_ms: 300,
        keep_going: random.one_in(2),
    }
}

/// A request with one completion frame.
pub fn exchange(random: &mut Random, known: Option<Generation>) -> shared::exchange::Request {
    use shared::exchange::Request as R;
    let generation = any_generation(random, known);
    match random.below(40) {
        0..=11 => {
            let cause = random.pick(Cause::ALL).expect("some");
            R::Rebind(rebind(random, generation, cause))
        }
        12..=21 => R::Probe {
            generation: (!random.one_in(4)).then_some(generation),
            depth: random.pick(Depth::ALL).expect("some"),
        },
        22..=27 => R::Quiesce(quiesce(random)),
        28..=30 => R::Reopen(Reopen {
            token: token(random),
        }),
        31 => R::Info,
        32 => R::Sessions(SessionsRequest { after: 0 }),
        33..=34 => R::Signal(signal(random)),
        35..=36 => R::AwaitCheckpoint(AwaitCheckpoint { tag: tag(random) }),
        37..=38 => R::Hooks(hooks(random)),
        _ if random.one_in(4) => R::Shutdown(Shutdown {
            action: random.pick(PowerAction::ALL).expect("some"),
            grace_ms: 100,
        }),
        _ => R::Info,
    }
}

fn signal(random: &mut Random) -> Signal {
    Signal {
        session: Some(session_ref(random)).filter(|_| random.one_in(2)),
        number: 1 + random.small(64),
    }
}

/// A session that may exist.
pub fn session_ref(random: &mut Random) -> SessionRef {
    match random.below(6) {
        0 => SessionRef::Workload,
        1..=3 => SessionRef::Exec(ExecId::from_bytes([random.small(RAW_EXEC_COUNT); 16])),
        _ => SessionRef::Number((1 + random.small(8)).into()),
    }
}

pub fn attach(random: &mut Random, known: Option<Generation>) -> Attach {
    let from = |random: &mut Random| random.one_in(2).then(|| random.number() % 1_000);
    let generation = any_generation(random, known);
    Attach {
        session: session_ref(random),
        generation: Some(generation).filter(|_| random.one_in(8)),
        mode: random.pick(AttachMode::ALL).expect("some"),
        stdout_from: from(random),
        stderr_from: from(random),
    }
}

/// A request of a program in the guest.
pub fn wait(random: &mut Random, known: Option<Generation>) -> Message {
    if random.one_in(3) {
        let from = random.one_in(2).then(|| any_generation(random, known));
        return Message::GenerationRequest(GenerationRequest { from });
    }
    Message::CheckpointRequest(CheckpointRequest {
        tag: tag(random),
        timeout_ms: random.one_in(2).then_some(600),
    })
}

/// Any other frame, which may be out of place.
pub fn other(random: &mut Random, known: Option<Generation>) -> Message {
    let generation = any_generation(random, known);
    match random.below(26) {
        0 => Message::Hello(Hello::host("simulated")),
        1 => Message::StdinEof(StdinEof { offset: 0 }),
        2 => Message::Stdin(Chunk {
            offset: 0,
            bytes: Vec::new(),
        }),
        3 => {
            let cause = random.pick(Cause::ALL).expect("some");
            Message::Rebind(rebind(random, generation, cause))
        }
        4 => Message::Probe(probe(random, known)),
        5 => Message::Quiesce(quiesce(random)),
        6 => Message::Reopen(Reopen {
            token: token(random),
        }),
        7..=9 => Message::InfoRequest,
        10..=11 => Message::Ping(Ping { nonce: 1 }),
        12..=13 => Message::SessionsRequest(SessionsRequest { after: 0 }),
        14..=15 => Message::Resize(TtySize { rows: 1, cols: 1 }),
        16..=17 => Message::ExitAck(ExitAck {
            session: random.small(8).into(),
        }),
        18 => Message::AwaitCheckpoint(AwaitCheckpoint { tag: tag(random) }),
        19 => Message::Hooks(hooks(random)),
        20 => Message::Ack(Ack {
            stream: shared::message::Stream::Stdout,
            offset: random.number() % 10,
        }),
        _ => Message::Signal(signal(random)),
    }
}
