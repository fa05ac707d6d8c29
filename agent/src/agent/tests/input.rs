//! STDIN, STDIN_EOF and WINDOW.

use super::*;
use shared::message::{Chunk, StdinEof, TtySize, Window};

fn stdin(offset: u64, bytes: &[u8]) -> Message {
    let bytes = bytes.to_vec();
    Message::Stdin(Chunk { offset, bytes })
}

fn stdin_eof(offset: u64) -> Message {
    Message::StdinEof(StdinEof { offset })
}

fn with_input(exec: &mut Exec) {
    exec.stdin = true;
}

fn input_of(world: &World, pid: i32) -> &InputEnd {
    &world.inputs[&world.session_of(pid)]
}

const CLOSED: Window = Window {
    received: 0,
    limit: 0,
    is_closed: true,
};

#[test]
fn bytes_reach_the_command_and_then_their_end() {
    let mut world = World::new();
    let (id, pid) = running_with(&mut world, &exec_with(1, with_input));
    world.send(id, &stdin(0, b"hello "));
    world.send(id, &stdin(0, b"hello world"));
    assert_eq!(
        input_of(&world, pid).received,
        b"hello world",
        "what is there is skipped"
    );
    assert!(world.receive(id).is_empty(), "there is credit enough");
    world.send(id, &stdin_eof(11));
    assert!(input_of(&world, pid).is_closed);
    let closed = Window {
        received: 11,
        limit: INPUT_LEN_MAX as u64,
        is_closed: true,
    };
    assert_eq!(world.receive(id), [Message::Window(closed)]);
    world.send(id, &stdin_eof(11));
    world.send(id, &stdin(0, b"hello again"));
    assert!(!world.is_closed(id), "both are ignored now");
}

#[test]
fn without_input_started_says_so() {
    let mut world = World::new();
    let id = world.connect();
    let answer = world.ask(id, &exec(1));
    assert!(matches!(answer[..], [Message::Started(it)] if it.stdin == CLOSED));
    world.send(id, &stdin(0, b"ignored"));
    world.finish(world.pid(), 0);
    assert!(
        matches!(world.receive(id)[..], [Message::Exited(_)]),
        "and no WINDOW"
    );
}

#[test]
fn credit_comes_as_the_command_reads() {
    let mut world = World::new();
    let id = world.connect();
    let answer = world.ask(id, &exec_with(1, with_input));
    let limit = INPUT_LEN_MAX as u64;
    let open = |received, limit| Window {
        received,
        limit,
        is_closed: false,
    };
    assert!(matches!(answer[..], [Message::Started(it)] if it.stdin == open(0, limit)));
    let session = world.session_of(world.pid());
    world.inputs.entry(session).or_default().room = Some(1000);
    let mut sent = 0;
    while sent < limit {
        let len = (limit - sent).min(STREAM_DATA_LEN_MAX as u64);
        let bytes = vec![b'i'; usize::try_from(len).expect("small")];
        world.send(id, &stdin(sent, &bytes));
        sent += len;
    }
    // Without credit, any room is worth a WINDOW.
    let window = open(limit, limit + 1000);
    assert_eq!(world.receive(id), [Message::Window(window)]);
    // With some left, half of the buffer is.
    let half = INPUT_LEN_MAX / 2;
    for (room, expected) in [(half - 1, None), (1, Some(limit + 1000 + half as u64))] {
        world.inputs.get_mut(&session).unwrap().room = Some(room);
        world.flush_input(session);
        world.drain_actions();
        let expected: Vec<_> = expected
            .map(|until| Message::Window(open(limit, until)))
            .into_iter()
            .collect();
        assert_eq!(world.receive(id), expected);
    }
}

#[test]
fn what_cannot_be_input_ends_the_connection() {
    let full = vec![0; STREAM_DATA_LEN_MAX];
    let cases: [(&[Message], bool); 6] = [
        (&[stdin(0, b"abc"), stdin(3, b"d")], false),
        (&[stdin(0, b"abc"), stdin(4, b"d")], true),
        (&[stdin(0, b"abc"), stdin_eof(2)], true),
        (&[stdin(0, b"abc"), stdin_eof(4)], true),
        (&[stdin(0, b"abc"), stdin_eof(3), stdin(3, b"d")], false),
        (&[stdin(1, &full)], true),
    ];
    for (messages, is_mistake) in cases {
        let mut world = World::new();
        let (id, _) = running_with(&mut world, &exec_with(1, with_input));
        messages.iter().for_each(|message| world.send(id, message));
        assert_eq!(world.is_closed(id), is_mistake, "{messages:?}");
    }
}

#[test]
fn input_over_its_limit_ends_the_connection() {
    for (excess, is_mistake) in [(0, false), (1, true)] {
        let mut world = World::new();
        let (id, pid) = running_with(&mut world, &exec_with(1, with_input));
        let session = world.session_of(pid);
        world.inputs.entry(session).or_default().room = Some(0);
        let mut sent = 0;
        let total = INPUT_LEN_MAX + excess;
        while sent < total {
            let len = (total - sent).min(STREAM_DATA_LEN_MAX);
            world.send(id, &stdin(sent as u64, &vec![0; len]));
            sent += len;
        }
        assert_eq!(world.is_closed(id), is_mistake);
    }
}

#[test]
fn only_the_owner_sends_input() {
    for mode in [AttachMode::Observe, AttachMode::Wait] {
        let mut world = World::new();
        let (owner, pid) = running_with(&mut world, &exec_with(1, with_input));
        let id = world.connect();
        let session = SessionRef::Number(1);
        for message in [stdin(0, b"x"), stdin_eof(0)] {
            let id = if world.is_closed(id) {
                world.connect()
            } else {
                id
            };
            world.ask(id, &attach(session, mode, None));
            assert_eq!(fail_code(&world.ask(id, &message)), FailCode::Protocol);
        }
        world.send(owner, &stdin(0, b"fine"));
        assert_eq!(input_of(&world, pid).received, b"fine");
    }
    let mut world = World::new();
    let id = world.connect();
    assert_eq!(
        fail_code(&world.ask(id, &stdin(0, b"x"))),
        FailCode::Protocol
    );
}

#[test]
fn the_next_connection_is_told_what_has_arrived() {
    let mut world = World::new();
    let (first, pid) = running_with(&mut world, &exec_with(1, with_input));
    world.send(first, &stdin(0, b"abc"));
    world.end(first, Ended::ByReset);
    let second = world.connect();
    let answer = world.ask(second, &exec_with(1, with_input));
    let limit = INPUT_LEN_MAX as u64 + 3;
    let window = Window {
        received: 3,
        limit,
        is_closed: false,
    };
    assert!(
        matches!(answer[..], [Message::Started(it)] if it.stdin == window),
        "{answer:?}"
    );
    world.send(second, &stdin(3, b"def"));
    assert_eq!(input_of(&world, pid).received, b"abcdef");
}

#[test]
fn a_command_that_stops_reading_or_ends_closes_its_input() {
    let is_closed = |messages: &[Message]| match messages {
        [Message::Window(window), ..] => window.is_closed,
        _ => false,
    };
    let mut world = World::new();
    let (id, pid) = running_with(&mut world, &exec_with(1, with_input));
    let session = world.session_of(pid);
    world.agent.handle_input_closed(session, world.now);
    world.drain_actions();
    assert!(is_closed(&world.receive(id)));
    assert!(
        !world.actions.contains(&Action::CloseInput(session)),
        "it is closed already"
    );

    let (id, pid) = running_with(&mut world, &exec_with(2, with_input));
    let session = world.session_of(pid);
    world.reap(pid, ExitStatus::Code(0));
    assert!(is_closed(&world.receive(id)));
    assert!(world.actions.contains(&Action::CloseInput(session)));
}

#[test]
fn input_that_came_before_the_process_waits_for_it() {
    let mut world = World::new();
    let id = world.connect();
    let messages = [exec_with(1, with_input), stdin(0, b"early"), stdin_eof(5)];
    let bytes = messages.map(|message| message.encode()).concat();
    world.send_bytes(id, &bytes);
    let end = input_of(&world, world.pid());
    assert_eq!((&end.received[..], end.is_closed), (&b"early"[..], true));
    let received = world.receive(id);
    assert!(
        matches!(received[..], [Message::Started(_), Message::Window(_)]),
        "{received:?}"
    );
}

#[test]
fn a_terminal_gets_its_end_of_file_character_and_stays_open() {
    let mut world = World::new();
    let size = TtySize { rows: 24, cols: 80 };
    let request = exec_with(1, |exec| {
        exec.stdin = true;
        exec.tty = Some(size);
    });
    let (id, pid) = running_with(&mut world, &request);
    world.send(id, &stdin(0, b"half a line"));
    world.send(id, &stdin_eof(11));
    let end = input_of(&world, pid);
    assert_eq!(
        (&end.received[..], end.is_closed),
        (&b"half a line\x04\x04"[..], false)
    );
    let session = world.session_of(pid);
    let size = TtySize {
        rows: 50,
        cols: 132,
    };
    world.send(id, &Message::Resize(size));
    assert!(world.actions.contains(&Action::ResizeTty { session, size }));
    // A terminal has one output.
    world
        .agent
        .handle_output_closed(session, Stream::Stdout, world.now);
    world.reap(pid, ExitStatus::Code(0));
    assert!(!exited(&world.receive(id)).writers_alive);
    assert!(!world.actions.contains(&Action::CloseInput(session)));
}
