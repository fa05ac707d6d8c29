//! Who is attached, what output they get, and the effect of their acknowledgements.

use shared::message::{
    Attach, AttachMode, Exec, ExitStatus, FailCode, Message, OutputPolicy, SessionRef, Stream,
};
use tests::agent::Agent;
use tests::client::{attach, exec_id, rebind, shell};
use tests::fifo::Fifo;

use super::{by_number, hears_fail, is_cut};

/// A command that prints a line, waits until the test releases the pipe, and prints another.
fn one_and_two(fifo: &Fifo) -> Exec {
    shell(1, &format!("echo one; cat {}; echo two", fifo.path()))
}

#[test]
fn an_observer_gets_a_copy_and_a_waiter_the_end() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let started = owner.start(&one_and_two(&fifo));
    let mut observer = agent.greet();
    let observed = observer.attach(by_number(&started, AttachMode::Observe));
    let mut waiter = agent.greet();
    waiter.attach(by_number(&started, AttachMode::Wait));
    assert_eq!(
        (observed.session, observed.pid, observed.fresh),
        (started.session, started.pid, false)
    );
    fifo.release();
    let (owned, observed) = (owner.observe(&started), observer.observe(&observed));
    assert_eq!(owned.stdout.bytes, b"one\ntwo\n");
    assert_eq!(owned, observed);
    assert_eq!(
        waiter.hear(),
        Message::Exited(owned.exited),
        "and nothing before it"
    );
}

#[test]
fn a_later_owner_supersedes_an_earlier_one_and_loses_nothing() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut first = agent.greet();
    let started = first.start(&one_and_two(&fifo));
    assert_eq!(first.hear_stdout(4), b"one\n");
    let mut second = agent.greet();
    let attached = second.attach(by_number(&started, AttachMode::Own));
    is_cut(&mut first, FailCode::Superseded);
    fifo.release();
    assert_eq!(second.follow(&attached).stdout.bytes, b"one\ntwo\n");
}

/// The ATTACH of an older connection may arrive late. It must not win over the newer connection.
#[test]
fn of_two_owners_the_one_that_was_accepted_later_wins() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut older = agent.greet();
    let mut newer = agent.greet();
    let started = newer.start(&shell(1, &format!("cat {}; echo end", fifo.path())));
    older.say(&Message::Attach(by_number(&started, AttachMode::Own)));
    is_cut(&mut older, FailCode::Superseded);
    fifo.release();
    assert_eq!(newer.follow(&started).stdout.bytes, b"end\n");
}

#[test]
fn an_exec_of_the_same_id_goes_on_from_its_offsets() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let script = format!(
        "printf 12345; printf abc >&2; cat {}; printf 678",
        fifo.path()
    );
    let mut request = shell(1, &script);
    request.keep_ms = Some(60_000);
    let mut first = agent.greet();
    first.start(&request);
    let mut heard = 0;
    while heard < 8 {
        match first.hear() {
            Message::Stdout(chunk) | Message::Stderr(chunk) => heard += chunk.bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    drop(first);
    (request.stdout_from, request.stderr_from) = (2, 3);
    let mut second = agent.greet();
    let started = second.start(&request);
    assert!(!started.fresh);
    assert_eq!((started.stdout_from, started.stderr_from), (2, 3));
    fifo.release();
    let followed = second.follow(&started);
    assert_eq!(followed.stdout.bytes, b"345678");
    assert_eq!(followed.stderr.bytes, b"");
    assert_eq!(
        (followed.exited.stdout_end, followed.exited.stderr_end),
        (8, 3)
    );
}

#[test]
fn an_offset_past_the_end_is_taken_for_the_end() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let started = owner.start(&one_and_two(&fifo));
    assert_eq!(owner.hear_stdout(4), b"one\n");
    let mut observer = agent.greet();
    let request = Attach {
        stdout_from: Some(1_000_000),
        ..by_number(&started, AttachMode::Observe)
    };
    let attached = observer.attach(request);
    assert_eq!(attached.stdout_from, 4);
    fifo.release();
    assert_eq!(observer.observe(&attached).stdout.bytes, b"two\n");
}

#[test]
fn what_was_acknowledged_is_gone_and_the_gap_says_so() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let started = owner.start(&one_and_two(&fifo));
    assert_eq!(owner.hear_stdout(4), b"one\n");
    owner.ack(Stream::Stdout, 4);
    // Answers come in order, so the agent has seen the ACK.
    owner.info();
    let mut observer = agent.greet();
    let request = Attach {
        stdout_from: Some(0),
        ..by_number(&started, AttachMode::Observe)
    };
    let attached = observer.attach(request);
    fifo.release();
    let observed = observer.observe(&attached).stdout;
    let got = observed.missing();
    assert_eq!(got + observed.bytes.len() as u64, 8, "{observed:?}");
    assert!(observed.bytes.ends_with(b"two\n"), "{observed:?}");
    assert_eq!(observed.gaps, [(0, 4)]);
}

#[test]
fn an_observer_that_does_not_read_holds_nobody_up() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    let script = format!("cat {} && head -c 10000000 /dev/zero", fifo.path());
    let started = owner.start(&shell(1, &script));
    let mut observer = agent.greet();
    let attached = observer.attach(by_number(&started, AttachMode::Observe));
    fifo.release();
    assert_eq!(owner.follow(&started).stdout.bytes.len(), 10_000_000);
    // Each byte has come, or is in a gap.
    let observed = observer.observe(&attached).stdout;
    let missing = observed.missing();
    assert_eq!(missing + observed.bytes.len() as u64, 10_000_000);
}

#[test]
fn without_a_reader_drop_oldest_goes_on_and_names_what_is_missing() {
    let agent = Agent::start();
    let mut starter = agent.greet();
    let mut request = shell(1, "head -c 1000000 /dev/zero; echo end");
    (request.output, request.detached) = (OutputPolicy::DropOldest, true);
    starter.start(&request);
    drop(starter);
    let mut waiter = agent.greet();
    waiter.attach(attach(SessionRef::Exec(request.id), AttachMode::Wait));
    assert_eq!(waiter.hear_exited().status, ExitStatus::Code(0));
    let mut late = agent.greet();
    let from_start = Attach {
        stdout_from: Some(0),
        ..attach(SessionRef::Exec(request.id), AttachMode::Observe)
    };
    let attached = late.attach(from_start);
    let observed = late.observe(&attached).stdout;
    let [(0, to)] = observed.gaps[..] else {
        panic!("{:?}", observed.gaps)
    };
    assert_eq!(to + observed.bytes.len() as u64, 1_000_004);
    assert!(observed.bytes.ends_with(b"end\n"));
}

#[test]
fn an_ack_of_what_was_not_sent_is_a_mistake() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut owner = agent.greet();
    owner.start(&shell(1, &format!("echo one; cat {}", fifo.path())));
    assert_eq!(owner.hear_stdout(4), b"one\n");
    owner.ack(Stream::Stdout, 5);
    is_cut(&mut owner, FailCode::Protocol);
}

#[test]
fn a_connection_serves_one_session_after_another() {
    let agent = Agent::start();
    let mut client = agent.greet();
    for byte in 1..=3 {
        let started = client.start(&shell(byte, &format!("echo {byte}; exit {byte}")));
        let followed = client.follow(&started);
        assert_eq!(followed.stdout.bytes, format!("{byte}\n").into_bytes());
        assert_eq!(followed.exited.status, ExitStatus::Code(byte));
    }
}

#[test]
fn a_second_command_on_a_busy_connection_does_not_run() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let file = agent.folder().join("ran");
    let mut client = agent.greet();
    client.start(&shell(1, &format!("cat {}", fifo.path())));
    client.say(&Message::Exec(shell(
        2,
        &format!("touch {}", file.display()),
    )));
    hears_fail(&mut client, FailCode::Limit);
    let unknown = attach(
        SessionRef::Exec(exec_id(u64::from_le_bytes([2; 8]))),
        AttachMode::Wait,
    );
    agent.refuses(&Message::Attach(unknown), FailCode::NoSession);
    assert!(!file.exists());
}

#[test]
fn there_is_no_attaching_to_what_is_not_there() {
    let agent = Agent::start();
    let mut client = agent.greet();
    for session in [
        SessionRef::Number(4711),
        SessionRef::Exec(exec_id(1)),
        SessionRef::Workload,
    ] {
        for mode in [AttachMode::Own, AttachMode::Observe, AttachMode::Wait] {
            client.ask_in_vain(&Message::Attach(attach(session, mode)), FailCode::NoSession);
        }
    }
}

#[test]
fn an_attach_of_another_generation_is_stale() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    agent.greet().rebound(&rebind(1));
    let mut owner = agent.greet();
    let started = owner.start(&shell(1, &format!("cat {}", fifo.path())));
    let request = Attach {
        generation: Some(tests::client::generation(2)),
        ..by_number(&started, AttachMode::Observe)
    };
    agent.refuses(&Message::Attach(request), FailCode::Stale);
}
