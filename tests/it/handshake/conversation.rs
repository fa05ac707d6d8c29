//! Goal: the agent keeps its side of the protocol whatever a client does. Method: a real agent
//! process on a Unix socket, and clients that say frames a well-behaved one would not.

use std::time::Instant;

use nix::sys::signal::Signal;
use shared::frame::FrameKind;
use shared::message::{
    Cause, Depth, Exec, FailCode, Hello, Message, Ping, Policy, Rebind, Reopen, Role,
};
use shared::version::VersionRange;
use tests::DEADLINE;
use tests::agent::Agent;
use tests::client::{exec, generation, probe, quiesce, rebind};
use tests::fifo::Fifo;

#[test]
fn hello_is_answered_with_a_name_only_after_a_rebind() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let Message::Hello(hello) = client.ask(&Message::Hello(Hello::host("test"))) else {
        panic!()
    };
    assert_eq!((hello.role, hello.generation), (Role::Guest, None));
    assert!(hello.boot_id.is_some());
    assert!(matches!(client.ask(&rebind(1)), Message::Rebound(_)));
    let mut client = agent.connect();
    let Message::Hello(hello) = client.ask(&Message::Hello(Hello::host("test"))) else {
        panic!()
    };
    assert_eq!(hello.generation, Some(generation(1)));
}

#[test]
fn a_peer_without_a_common_version_hears_both_ranges() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let protocol = VersionRange { min: 8, max: 9 };
    client.say(&Message::Hello(Hello {
        protocol,
        ..Hello::host("test")
    }));
    let fail = client.is_refused(FailCode::Version);
    assert!(
        fail.text.contains("speaks 1") && fail.text.contains("8 to 9"),
        "{fail:?}"
    );
}

#[test]
fn broken_frames_end_the_connection_with_a_word() {
    let agent = Agent::start();
    let hello = Message::Hello(Hello::host("test")).encode();
    let frame = |kind: FrameKind, payload: &[u8]| {
        let mut bytes = hello.clone();
        shared::frame::encode_with(&mut bytes, kind, |out| out.extend_from_slice(payload));
        bytes
    };
    let too_long = [hello.clone(), vec![1, 0, 1, 0, 3, 0, 0, 0]].concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("no HELLO", Message::Ping(Ping { nonce: 1 }).encode()),
        (
            "unknown kind",
            [hello.clone(), vec![0, 0, 0, 0, 99, 0, 0, 0]].concat(),
        ),
        (
            "flags",
            [hello.clone(), vec![0, 0, 0, 0, 3, 1, 0, 0]].concat(),
        ),
        ("too long", too_long),
        ("no JSON", frame(FrameKind::Ping, b"nonsense")),
        ("a guest's frame", frame(FrameKind::Ok, b"{}")),
        ("two HELLOs", [hello.clone(), hello.clone()].concat()),
    ];
    for (name, bytes) in cases {
        let mut client = agent.connect();
        client.send(&bytes);
        let fail = client.is_refused(FailCode::Protocol);
        assert!(!fail.text.is_empty(), "{name}");
    }
    // None of it did any harm.
    assert_eq!(agent.exec(["true"]).code(), 0);
}

#[test]
fn requests_may_arrive_byte_by_byte_and_all_at_once() {
    let agent = Agent::start();
    let mut flight = Message::Hello(Hello::host("test")).encode();
    for nonce in 0..100 {
        Message::Ping(Ping { nonce }).encode_into(&mut flight);
    }
    let pongs = |mut client: tests::client::Client| {
        assert!(matches!(client.hear(), Message::Hello(_)));
        for nonce in 0..100 {
            assert_eq!(client.hear(), Message::Pong(Ping { nonce }));
        }
    };
    let mut client = agent.connect();
    client.send(&flight);
    pongs(client);
    let mut client = agent.connect();
    for byte in flight {
        client.send(&[byte]);
    }
    pongs(client);
}

#[test]
fn the_same_generation_is_answered_twice_and_acted_on_once() {
    let agent = Agent::start();
    let Message::Rebound(first) = agent.greet().ask(&rebind(1)) else {
        panic!()
    };
    let Message::Rebound(again) = agent.greet().ask(&rebind(1)) else {
        panic!()
    };
    assert_eq!(first, again, "the second answer repeats the first");
    let Message::Rebound(other) = agent.greet().ask(&rebind(2)) else {
        panic!()
    };
    assert_eq!(other.listener_serial, first.listener_serial + 1);
}

#[test]
fn a_rebind_closes_the_connections_of_the_generation_before() {
    let agent = Agent::start();
    let mut old = agent.greet();
    let Message::Rebound(rebound) = agent.greet().ask(&rebind(1)) else {
        panic!()
    };
    assert!(rebound.connections_dropped >= 1, "{rebound:?}");
    while let Some(message) = old.hear_or_end() {
        assert!(matches!(message, Message::Sever(_)), "{message:?}");
    }
}

#[test]
fn a_probe_proves_the_listener_it_came_through() {
    let agent = Agent::start();
    let mut control = agent.greet();
    let Message::Rebound(rebound) = control.ask(&rebind(1)) else {
        panic!()
    };
    let refused = control.ask(&probe(1, Depth::Listener));
    assert!(
        matches!(refused, Message::Fail(_)),
        "accepted before the rebind: {refused:?}"
    );
    let Message::Probed(probed) = agent.greet().ask(&probe(1, Depth::Exec)) else {
        panic!()
    };
    assert_eq!(probed.listener_serial, rebound.listener_serial);
    assert!(
        probed.accepts_since_rebind >= 1 && probed.exec_us.is_some(),
        "{probed:?}"
    );
    let stale = agent.greet().ask(&probe(2, Depth::Exec));
    assert!(
        matches!(&stale, Message::Fail(fail) if fail.code == FailCode::Stale),
        "{stale:?}"
    );
}

/// One event of the listener stands for all who came while the guest stood still. The last of them
/// speaks first, so that nobody who came earlier wakes the guest for it.
#[test]
fn connections_that_come_during_a_pause_are_all_served() {
    let agent = Agent::start();
    agent.signal(Signal::SIGSTOP);
    let mut clients: Vec<_> = (0..10).map(|_| agent.connect()).collect();
    agent.signal(Signal::SIGCONT);
    for client in clients.iter_mut().rev() {
        client.greet();
    }
}

/// The guest finds a probe and, behind it, a connection in its queue: proving itself is nothing
/// that whoever is at the door then would have to come again for.
#[test]
fn a_connection_that_comes_with_a_probe_is_served() {
    let agent = Agent::start();
    assert!(matches!(agent.greet().ask(&rebind(1)), Message::Rebound(_)));
    let mut prover = agent.greet();
    agent.signal(Signal::SIGSTOP);
    prover.say(&probe(1, Depth::Listener));
    let mut late = agent.connect();
    agent.signal(Signal::SIGCONT);
    assert!(matches!(prover.hear(), Message::Probed(_)));
    late.greet();
}

#[test]
fn an_exec_under_another_name_does_not_run() {
    let agent = Agent::start();
    assert!(matches!(agent.greet().ask(&rebind(1)), Message::Rebound(_)));
    let file = agent.folder().join("ran");
    let touch = exec(9, &["touch", file.to_str().unwrap()]);
    let stale = Exec {
        generation: Some(generation(2)),
        ..touch.clone()
    };
    let answer = agent.greet().ask(&Message::Exec(stale));
    assert!(
        matches!(&answer, Message::Fail(fail) if fail.code == FailCode::Stale),
        "{answer:?}"
    );
    let mut client = agent.greet();
    let good = Exec {
        generation: Some(generation(1)),
        ..touch
    };
    assert!(!file.exists());
    assert!(matches!(
        client.ask(&Message::Exec(good)),
        Message::Started(_)
    ));
    client.collect();
    assert!(file.exists());
}

#[test]
fn a_quiesced_agent_refuses_work_until_it_is_reopened_or_renamed() {
    let agent = Agent::start();
    for (round, reopen) in [(1, true), (2, false)] {
        let mut other = agent.greet();
        let mut control = agent.greet();
        let quiesced = control.ask(&quiesce(round, Policy::Keep));
        assert!(matches!(quiesced, Message::Quiesced(_)), "{quiesced:?}");
        while let Some(message) = other.hear_or_end() {
            assert!(matches!(message, Message::Sever(_)), "{message:?}");
        }
        let refused = agent.greet().ask(&Message::Exec(exec(round, &["true"])));
        let is_refusing = matches!(&refused, Message::Fail(f) if f.code == FailCode::Refusing);
        assert!(is_refusing, "{refused:?}");
        if reopen {
            let token = shared::id::Token::from_bytes([round; 16]);
            let answer = agent.greet().ask(&Message::Reopen(Reopen { token }));
            assert_eq!(answer, Message::Ok);
        } else {
            assert!(matches!(
                agent.greet().ask(&rebind(round)),
                Message::Rebound(_)
            ));
        }
        assert_eq!(agent.exec(["true"]).code(), 0, "round {round}");
    }
}

#[test]
fn quiesce_refuses_or_waits_for_sessions_as_its_policy_says() {
    let agent = Agent::start();
    let mut running = agent.greet();
    // Ends when its connection does something: `cat` on a fifo that the test opens.
    let fifo = agent.folder().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let argv = ["cat", fifo.to_str().unwrap()];
    assert!(matches!(
        running.ask(&Message::Exec(exec(1, &argv))),
        Message::Started(_)
    ));
    let refused = agent.greet().ask(&quiesce(1, Policy::Refuse));
    assert!(matches!(refused, Message::Fail(_)), "{refused:?}");
    let mut control = agent.greet();
    control.say(&quiesce(2, Policy::Drain));
    let Message::Busy(busy) = control.hear() else {
        panic!()
    };
    assert_eq!(busy.sessions.len(), 1);
    drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    loop {
        match control.hear() {
            Message::Busy(_) => {}
            answer => break assert!(matches!(answer, Message::Quiesced(_)), "{answer:?}"),
        }
    }
}

/// Whoever connects when the asker has gone is somebody else, and is cut off like all others.
#[test]
fn what_a_lost_connection_has_asked_for_is_told_to_no_other() {
    let agent = Agent::start();
    let fifo = Fifo::new(agent.folder(), "fifo");
    let mut running = agent.greet();
    running.start(&exec(1, &["cat", fifo.path()]));
    let held = fifo.hold();
    let mut control = agent.greet();
    control.say(&quiesce(1, Policy::Drain));
    let busy = control.hear();
    assert!(matches!(busy, Message::Busy(_)), "{busy:?}");
    drop(control);
    let began = Instant::now();
    while running.info().connections > 1 {
        assert!(began.elapsed() < DEADLINE, "the asker is still there");
    }
    let mut other = agent.greet();
    drop(held);
    let told = other.hear();
    assert!(matches!(told, Message::Sever(_)), "{told:?}");
    assert_eq!(other.hear_or_end(), None);
}

#[test]
fn a_restore_without_entropy_is_no_restore() {
    let agent = Agent::start();
    let Message::Rebind(good) = rebind(1) else {
        unreachable!()
    };
    let bad = Message::Rebind(Rebind {
        cause: Cause::Restore,
        entropy: None,
        ..good
    });
    let mut client = agent.greet();
    client.say(&bad);
    let fail = client.is_refused(FailCode::Protocol);
    assert!(fail.text.contains("entropy"), "{fail:?}");
}

#[test]
fn more_clients_than_there_is_room_for_are_told_so() {
    let agent = Agent::start();
    let mut clients = Vec::new();
    // Well past any limit that is documented, and each of them silent.
    let refused = (0..5000).find_map(|_| {
        let mut client = agent.connect();
        client.try_send(&Message::Hello(Hello::host("test")).encode());
        let answer = client.hear_or_end();
        let is_refused = !matches!(answer, Some(Message::Hello(_)));
        clients.push(client);
        is_refused.then_some(answer)
    });
    let refused = refused.expect("a limit");
    let is_limit = matches!(&refused, Some(Message::Fail(fail)) if fail.code == FailCode::Limit);
    assert!(is_limit || refused.is_none(), "{refused:?}");
    drop(clients);
    assert_eq!(agent.exec(["true"]).code(), 0, "there is room again");
}
