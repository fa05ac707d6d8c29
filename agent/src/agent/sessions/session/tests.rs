//! The session machine: every state with every event, and the order of the events at its end.

use super::*;
use crate::agent::sessions::buffers::PAGE_LEN;

const EXIT: Exit = Exit {
    status: ExitStatus::Code(3),
    usage: ResourceUsage {
        user_us: 1,
        system_us: 2,
        rss_max_kib: 3,
    },
};

const EXITED: Exited = Exited {
    session: 9,
    status: ExitStatus::Code(3),
    stdout_end: 0,
    stderr_end: 0,
    writers_alive: false,
    timed_out: false,
    fault: None,
    usage: EXIT.usage,
};

fn starting(output: OutputPolicy) -> Session {
    let spec = Spec {
        exec: Some(ExecId::from_bytes([7; 16])),
        command: "true".to_owned(),
        generation: None,
        tty: None,
        has_input: false,
        output,
        is_detached: false,
        keep: Duration::ZERO,
        timeout: None,
    };
    Session::new(SessionId::from_number(9), spec, Instant::now())
}

fn running() -> Session {
    let mut session = starting(OutputPolicy::Block);
    session.handle_spawned(42);
    session
}

/// Every legal transition; every other pair of state and event is refused.
#[test]
fn transitions() {
    use {Event as E, State as S};
    let states = [S::Starting, S::Running, S::Reaped(EXIT), S::Ended(EXITED)];
    let events = [E::Spawned, E::Exit(EXIT), E::Restart, E::Complete(EXITED)];
    let legal = [
        (S::Starting, E::Spawned, S::Running),
        (S::Starting, E::Exit(EXIT), S::Reaped(EXIT)),
        (S::Running, E::Exit(EXIT), S::Reaped(EXIT)),
        (S::Reaped(EXIT), E::Restart, S::Starting),
        (S::Reaped(EXIT), E::Complete(EXITED), S::Ended(EXITED)),
    ];
    for (state, event) in states.iter().flat_map(|s| events.map(|e| (*s, e))) {
        let row = legal.iter().find(|row| (row.0, row.1) == (state, event));
        let expected = row.map(|row| row.2);
        assert_eq!(
            transition(state, event),
            expected,
            "{state:?} with {event:?}"
        );
    }
}

/// What can happen to a running session, in every order that the kernel allows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Happening {
    Exit,
    Closed(Stream),
    GraceOver,
}

#[track_caller]
fn check(happenings: &[Happening], complete: bool, writers_alive: bool) {
    let mut session = running();
    for happening in happenings {
        assert_eq!(
            session.completion(),
            None,
            "before {happening:?} of {happenings:?}"
        );
        match happening {
            Happening::Exit => session.handle_exit(EXIT),
            Happening::Closed(stream) => session.handle_output_closed(*stream),
            Happening::GraceOver => session.handle_output_given_up(),
        }
    }
    let completion = session.completion();
    assert_eq!(completion.is_some(), complete, "after {happenings:?}");
    if let Some(exited) = completion {
        assert_eq!(
            (exited.status, exited.writers_alive),
            (EXIT.status, writers_alive)
        );
    }
}

#[test]
fn completion_needs_the_exit_and_both_ends() {
    use Happening::{Closed, Exit, GraceOver};
    use Stream::{Stderr, Stdout};
    for stream in [(Stdout, Stderr), (Stderr, Stdout)] {
        check(&[Exit, Closed(stream.0)], false, false);
        check(&[Closed(stream.0), Closed(stream.1)], false, false);
        check(&[Exit, Closed(stream.0), Closed(stream.1)], true, false);
        check(&[Closed(stream.0), Exit, Closed(stream.1)], true, false);
        check(&[Closed(stream.0), Closed(stream.1), Exit], true, false);
        check(&[Exit, Closed(stream.0), GraceOver], true, true);
    }
    check(&[Exit, GraceOver], true, true);
}

#[test]
fn offsets_count_every_byte_of_each_stream() {
    let mut session = running();
    session.handle_output(Stream::Stdout, b"abcde", &mut BufferPool::default());
    session.handle_output(Stream::Stderr, b"xy", &mut BufferPool::default());
    session.handle_output(Stream::Stdout, b"f", &mut BufferPool::default());
    session.release(Stream::Stdout, 4, &mut BufferPool::default());
    assert_eq!(session.kept_len(), 4);
    session.handle_exit(EXIT);
    assert_eq!(session.group(), None, "the number may be another's");
    Stream::ALL
        .iter()
        .for_each(|it| session.handle_output_closed(*it));
    let exited = session.completion().unwrap();
    assert_eq!(
        (exited.session, exited.stdout_end, exited.stderr_end),
        (9, 6, 2)
    );
    session.handle_complete(exited);
    assert_eq!(
        (session.completion(), session.exited()),
        (None, Some(exited))
    );
}

#[test]
fn a_full_ring_stops_the_reading_until_a_quarter_is_free() {
    let mut session = running();
    let buffers = &mut BufferPool::default();
    assert!(session.open(buffers));
    let page = session.poll_room(Stream::Stderr, buffers);
    assert_eq!(page, PAGE_LEN);
    session.handle_output(Stream::Stderr, &vec![0; RING_LEN_MAX - 1], buffers);
    assert_eq!(session.poll_room(Stream::Stderr, buffers), 1);
    assert!(!session.poll_resume(), "nothing has stopped");
    session.handle_output(Stream::Stderr, &[0], &mut BufferPool::default());
    assert_eq!(session.poll_room(Stream::Stderr, buffers), 0);
    let other = session.poll_room(Stream::Stdout, buffers);
    assert_eq!(other, PAGE_LEN, "the other stream is read on");
    let enough = (RING_LEN_MAX / RESUME_SHARE) as u64;
    session.release(Stream::Stderr, enough - 1, &mut BufferPool::default());
    assert!(!session.poll_resume());
    session.release(Stream::Stderr, enough, &mut BufferPool::default());
    assert!(session.poll_resume() && !session.poll_resume());
}

/// By policy, by whether it was told to end, and by whether it has an owner.
#[test]
fn when_a_command_waits_for_a_reader() {
    use OutputPolicy::{Block, DropOldest};
    for (output, is_terminating, has_owner, waits) in [
        (Block, false, false, true),
        (Block, false, true, true),
        (Block, true, true, true),
        (Block, true, false, false),
        (DropOldest, false, true, false),
        (DropOldest, false, false, false),
    ] {
        let mut session = starting(output);
        session.handle_spawned(42);
        session.handle_output(
            Stream::Stdout,
            &vec![0; RING_LEN_MAX],
            &mut BufferPool::default(),
        );
        let buffers = &mut BufferPool::default();
        session.is_terminating = is_terminating;
        session.owner = has_owner.then_some(ConnectionId::from_number(1));
        let row = (output, is_terminating, has_owner);
        assert_eq!(
            session.poll_room(Stream::Stdout, buffers) == 0,
            waits,
            "{row:?}"
        );
        if !waits {
            session.handle_output(Stream::Stdout, b"new", &mut BufferPool::default());
            assert_eq!(session.ring(Stream::Stdout).start(), 3, "{row:?}");
        }
    }
}

#[test]
fn a_command_text_is_cut_at_its_limit() {
    let text = |argv: &[&[u8]]| command_text(argv.iter().copied());
    assert_eq!(text(&[b"sh", b"-c", b"exit 3"]), "sh -c exit 3");
    assert_eq!(text(&[b"a\xff"]), "a\u{fffd}");
    let long = [b'x'; COMMAND_TEXT_LEN_MAX + 1];
    for (len, expected) in [
        (COMMAND_TEXT_LEN_MAX, COMMAND_TEXT_LEN_MAX),
        (COMMAND_TEXT_LEN_MAX + 1, COMMAND_TEXT_LEN_MAX),
    ] {
        assert_eq!(text(&[&long[..len], b"y"]).len(), expected);
    }
}
