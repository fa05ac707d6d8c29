//! Standard input and its credit, its end, terminals, and signals.

use nix::sys::signal::Signal::{SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use shared::message::{
    AttachMode, ExitStatus, FailCode, Message, SessionRef, Signal, Started, TtySize, Window,
};
use tests::agent::Agent;
use tests::client::{Client, exec, exec_id, exec_numbered, killed_by, shell};
use tests::fifo::Fifo;

use super::{by_number, is_cut};

/// A command with standard input.
fn with_input(byte: u8, argv: &[&str]) -> shared::message::Exec {
    let mut request = exec(byte, argv);
    request.stdin = true;
    request
}

/// The next WINDOW; output before it is skipped.
#[track_caller]
fn hear_window(client: &mut Client) -> Window {
    loop {
        match client.hear() {
            Message::Window(window) => return window,
            Message::Stdout(_) => {}
            other => panic!("no WINDOW but {other:?}"),
        }
    }
}

#[test]
fn input_comes_back_from_cat_and_its_end_ends_it() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let started = client.start(&with_input(1, &["cat"]));
    assert_eq!(
        (started.stdin.received, started.stdin.is_closed),
        (0, false)
    );
    client.feed(0, b"hello ");
    client.feed(6, b"world");
    client.feed_end(11);
    let followed = client.follow(&started);
    assert_eq!(followed.stdout.bytes, b"hello world");
    assert_eq!(followed.exited.status, ExitStatus::Code(0));
}

#[test]
fn without_stdin_the_input_is_closed_from_the_start() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let started = client.start(&exec(1, &["cat"]));
    assert!(started.stdin.is_closed);
    assert_eq!(client.follow(&started).exited.status, ExitStatus::Code(0));
}

/// Sends as much as the credit allows, again and again, to a command that reads it.
#[test]
fn credit_is_given_as_the_command_reads() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let total: u64 = 3_000_000;
    let started = client.start(&with_input(1, &["wc", "-c"]));
    let (mut sent, mut window) = (0, started.stdin);
    while sent < total {
        let room = window.limit.min(total) - sent;
        client.feed(sent, &vec![b'x'; usize::try_from(room).unwrap()]);
        sent += room;
        if sent < total {
            let next = hear_window(&mut client);
            assert!(next.limit >= window.limit && next.received >= window.received);
            window = next;
        }
    }
    client.feed_end(total);
    assert_eq!(
        client.follow(&started).stdout.bytes,
        format!("{total}\n").into_bytes()
    );
}

#[test]
fn a_command_that_does_not_read_gets_no_more_than_its_credit() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut client = agent.greet();
    let script = format!("cat {}; wc -c", fifo.path());
    let started = client.start(&with_input(1, &["sh", "-c", &script]));
    let _held = fifo.hold();
    let limit = started.stdin.limit;
    client.feed(0, &vec![0; usize::try_from(limit).unwrap()]);
    // The guest gives new credit for what the pipe took, and no more than that.
    let mut highest = limit;
    client.say(&Message::Ping(shared::message::Ping { nonce: 1 }));
    loop {
        match client.hear() {
            Message::Window(window) => highest = highest.max(window.limit),
            Message::Pong(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(highest < limit * 2, "credit without end: {highest}");
}

#[test]
fn what_the_guest_has_already_is_skipped() {
    let agent = Agent::start();
    let mut client = agent.greet();
    let started = client.start(&with_input(1, &["cat"]));
    client.feed(0, b"abc");
    client.feed(0, b"abc");
    client.feed(1, b"bcdef");
    client.feed(6, b"");
    client.feed_end(6);
    assert_eq!(client.follow(&started).stdout.bytes, b"abcdef");
}

#[test]
fn a_hole_and_too_much_and_a_stranger_are_mistakes() {
    let agent = Agent::start();
    let mut owner = agent.greet();
    owner.start(&with_input(1, &["cat"]));
    owner.feed(1, b"x");
    is_cut(&mut owner, FailCode::Protocol);

    let mut owner = agent.greet();
    let started = owner.start(&with_input(2, &["sleep", "1000"]));
    let limit = usize::try_from(started.stdin.limit).unwrap();
    // More than the credit and the pipe, which the agent may enlarge.
    for offset in (0..limit * 3).step_by(32 * 1024) {
        let bytes = tests::client::stdin(offset as u64, &[0; 32 * 1024]);
        if !owner.try_send(&bytes) {
            break;
        }
    }
    is_cut(&mut owner, FailCode::Protocol);

    let mut owner = agent.greet();
    let started = owner.start(&with_input(3, &["cat"]));
    let mut observer = agent.greet();
    observer.attach(by_number(&started, AttachMode::Observe));
    observer.feed(0, b"x");
    is_cut(&mut observer, FailCode::Protocol);
    owner.feed_end(0);
    assert_eq!(owner.follow(&started).stdout.bytes, b"");
}

#[test]
fn input_that_nobody_reads_any_more_is_closed_and_ignored() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut client = agent.greet();
    let script = format!("exec <&-; cat {}", fifo.path());
    let started = client.start(&with_input(1, &["sh", "-c", &script]));
    let held = fifo.hold();
    // Only a write finds out that the pipe has no reader any more.
    client.feed(0, b"x");
    let window = hear_window(&mut client);
    assert!(window.is_closed, "{window:?}");
    client.feed(window.received, b"ignored");
    client.feed_end(window.received + 7);
    drop(held);
    assert_eq!(client.follow(&started).exited.status, ExitStatus::Code(0));
}

/// When a full pipe loses its reader, epoll reports an error and not that it is writable.
#[test]
fn a_full_input_that_nobody_reads_any_more_is_closed() {
    let agent = Agent::start();
    let [full, end] = ["full", "end"].map(|name| Fifo::new(agent.folder(), name));
    let mut client = agent.greet();
    let script = format!("cat {}; exec <&-; cat {}", full.path(), end.path());
    let started = client.start(&with_input(1, &["sh", "-c", &script]));
    let held = full.hold();
    let limit = started.stdin.limit;
    client.feed(0, &vec![0; usize::try_from(limit).unwrap()]);
    // Answers come in order: the guest has received everything, and the pipe is full.
    client.say(&Message::Ping(shared::message::Ping { nonce: 1 }));
    loop {
        match client.hear() {
            Message::Window(window) => assert!(!window.is_closed, "{window:?}"),
            Message::Pong(_) => break,
            other => panic!("{other:?}"),
        }
    }
    drop(held);
    while !hear_window(&mut client).is_closed {}
    end.release();
    assert_eq!(client.follow(&started).exited.status, ExitStatus::Code(0));
}

#[test]
fn a_new_owner_goes_on_where_the_guest_has_the_input() {
    let agent = Agent::start();
    let mut request = with_input(1, &["cat"]);
    request.keep_ms = Some(60_000);
    let mut first = agent.greet();
    first.start(&request);
    first.feed(0, b"abc");
    assert_eq!(first.hear_stdout(3), b"abc");
    drop(first);
    let mut second = agent.greet();
    let started = second.start(&request);
    assert_eq!(started.stdin.received, 3);
    second.feed(3, b"def");
    second.feed_end(6);
    assert_eq!(second.follow(&started).stdout.bytes, b"abcdef");
}

/// A command with a terminal. It switches the echo off and then prints `ready`.
fn on_terminal(client: &mut Client, byte: u8, script: &str) -> Started {
    let script = format!("stty -echo; echo ready; {script}");
    let mut request = shell(byte, &script);
    (request.stdin, request.tty) = (
        true,
        Some(TtySize {
            rows: 30,
            cols: 100,
        }),
    );
    let started = client.start(&request);
    assert!(started.tty);
    assert_eq!(client.hear_stdout(7), b"ready\r\n");
    started
}

#[test]
fn a_terminal_has_the_size_that_it_is_given() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut client = agent.greet();
    let script = format!(
        "trap 'stty size; exit 5' WINCH; stty size; cat {} & wait",
        fifo.path()
    );
    on_terminal(&mut client, 1, &script);
    assert_eq!(client.hear_stdout(8), b"30 100\r\n");
    client.say(&Message::Resize(TtySize {
        rows: 50,
        cols: 132,
    }));
    assert_eq!(client.hear_stdout(8), b"50 132\r\n");
    assert_eq!(client.hear_exited().status, ExitStatus::Code(5));
}

#[test]
fn the_end_of_a_terminals_input_is_its_end_of_file() {
    let agent = Agent::start();
    for (byte, input) in [(1, &b"a line\n"[..]), (2, b"half a line"), (3, b"")] {
        let mut client = agent.greet();
        on_terminal(&mut client, byte, "wc -c; exit 3");
        client.feed(0, input);
        client.feed_end(input.len() as u64);
        let answer = format!("{}\r\n", input.len());
        assert_eq!(client.hear_stdout(answer.len()), answer.into_bytes());
        assert_eq!(client.hear_exited().status, ExitStatus::Code(3));
    }
}

/// A program closes its terminal before it exits. If the agent closed its own end in between, the
/// program would get SIGHUP and its exit code would be lost.
#[test]
fn a_command_that_ends_by_itself_is_not_hung_up() {
    let agent = Agent::start();
    let mut client = agent.greet();
    for number in 1..=100 {
        let mut request = exec_numbered(number, &["cat"]);
        (request.stdin, request.tty) = (true, Some(TtySize { rows: 24, cols: 80 }));
        let started = client.start(&request);
        client.feed_end(0);
        let exited = client.follow(&started).exited;
        assert_eq!(exited.status, ExitStatus::Code(0), "run {number}");
    }
}

#[test]
fn keys_of_a_terminal_are_signals() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    for (byte, key, signal) in [(1, 3, SIGINT), (2, 28, SIGQUIT)] {
        let mut client = agent.greet();
        let script = format!("ulimit -c 0; exec cat {}", fifo.path());
        on_terminal(&mut client, byte, &script);
        let _held = fifo.hold();
        client.feed(0, &[key]);
        assert_eq!(client.hear_exited().status, killed_by(signal));
    }
}

/// The terminal must not be closed together with the owner's connection.
#[test]
fn a_terminal_stays_while_its_session_is_kept() {
    let agent = Agent::start();
    let mut request = shell(1, "stty -echo; echo ready; read x; echo got $x; tty -s");
    (request.stdin, request.tty) = (true, Some(TtySize { rows: 24, cols: 80 }));
    request.keep_ms = Some(60_000);
    let mut first = agent.greet();
    first.start(&request);
    assert_eq!(first.hear_stdout(7), b"ready\r\n");
    drop(first);
    request.stdout_from = 7;
    let mut second = agent.greet();
    let started = second.start(&request);
    second.feed(0, b"it\n");
    let followed = second.follow(&started);
    assert_eq!(followed.stdout.bytes, b"got it\r\n");
    assert_eq!(followed.exited.status, ExitStatus::Code(0));
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut client = agent.greet();
    let script = format!("cat {0} & cat {0} | cat", fifo.path());
    client.start(&shell(1, &script));
    let held = fifo.hold();
    let signal = Signal {
        session: None,
        number: 15,
    };
    assert_eq!(client.ask(&Message::Signal(signal)), Message::Ok);
    held.wait_gone();
    assert_eq!(client.hear_exited().status, killed_by(SIGTERM));
}

#[test]
fn a_signal_can_name_any_session_and_none_that_is_not_there() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let started = owner.start(&shell(1, &format!("exec cat {}", fifo.path())));
    let mut other = agent.greet();
    let signal = |session, number| Message::Signal(Signal { session, number });
    let number = Some(SessionRef::Number(started.session));
    let id = Some(SessionRef::Exec(exec_id(u64::from_le_bytes([1; 8]))));
    assert_eq!(other.ask(&signal(number, 18)), Message::Ok);
    assert_eq!(other.ask(&signal(id, 10)), Message::Ok);
    assert_eq!(owner.hear_exited().status, killed_by(SIGUSR1));
    // A signal to a session that has ended does not fail.
    assert_eq!(other.ask(&signal(id, 9)), Message::Ok);
    let unknown = Some(SessionRef::Number(4711));
    other.ask_in_vain(&signal(unknown, 9), FailCode::NoSession);
    other.ask_in_vain(&signal(None, 9), FailCode::NoSession);
}
